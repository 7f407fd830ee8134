"""Checkpoints: written in the background by orbax, valid once their manifest exists, verified when read.

    checkpoints/<step>/state             the arrays of a `TrainState`
                       about             JSON: step, config, position in the data, versions, state of the loop
                       manifest.json     size and CRC-32 of these files; written last, and makes the step valid
                       annotations.json  annotations added later, such as the bound; they override `about`
    checkpoints/<step>.damaged          a step that did not verify, set aside
    checkpoints/lock                    held by the process that writes here

Orbax renames a complete folder into place, but it neither notices a bit that changes later nor reports a failed
save before the next one. Whatever is read here has been verified, or is not returned. A saved step is never
written again: a kill or a full disk in between would lose it.
"""

import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vdm_jax.runtime.console import warn
from vdm_jax.runtime.files import finite_json, make_folder, read_bytes, remove_tree
from vdm_jax.runtime.lock import FolderLock
from vdm_jax.runtime.manifest import ANNOTATIONS, write_annotations, write_manifest
from vdm_jax.runtime.processes import all_gather_json, is_first, on_process_0
from vdm_jax.runtime.versions import library_versions
from vdm_jax.training.reader import CheckpointReader
from vdm_jax.training.recovery import recover, whole_steps
from vdm_jax.training.retention import open_manager
from vdm_jax.training.state import TrainState, step_of
from vdm_jax.training.stored import SAVE_ERRORS, array_types, message_of, plain_keys

LOCK = "lock"


class CheckpointStore(CheckpointReader):
    """The checkpoints of a run, in `folder`, for the process that trains it.

    Opening a store finds the newest whole step, removes what a killed run left half-written, and sets damaged
    steps aside. As a context manager it waits for the last save.

    Args:
      folder: made if missing.
      keep: number of newest steps to keep; at least 2, because orbax deletes the oldest before the manifest of
        the newest is written. The step with the lowest bound is kept as well, if any has one.
      log: called with each warning, in process 0.

    Raises:
      ValueError: there are steps, and all of them are damaged; fewer than 2 are to be kept; another process
        sees another folder.
      OSError: another process writes here, the folder holds links or special files, or it cannot be read or
        written.

    Attributes:
      failure: why the last save or annotation failed, or None.
      token: identifies this opening of the folder; the same in all processes.
    """

    retries = 1  # nobody else deletes steps

    def __init__(self, folder: Path | str, keep: int = 2, *, log: Callable[[str], None] = warn):
        if keep < 2:
            raise ValueError(f"keep: expected at least 2 checkpoints, found {keep}")
        self.keep = keep
        self.failure: str | None = None
        self.saving: tuple[int, Future] | None = None
        self.thread = ThreadPoolExecutor(1)
        self.lock: FolderLock | None = None
        self.bounds: dict[int, float] = {}
        try:
            super().__init__(folder, log=log)
        except BaseException:
            self._release()
            raise

    def _find(self) -> None:
        self.newest, self.token = on_process_0(self._claim)
        self._check_shared()
        self.annotations = self._read_annotations()
        self.manager = self._manager()
        old = partial(whole_steps, self.folder, self._report_old)
        self.bounds |= self._bounds(on_process_0(old))

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()
        super().__exit__()
        self._release()

    def _release(self) -> None:
        self.thread.shutdown()
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def check_owner(self) -> None:
        """Check that the folder is still the one that this process has locked.

        Raises:
          OSError: the folder was deleted, or begun anew by another process.
        """
        if self.lock is not None:
            self.lock.check()

    def save(self, state: TrainState, about: dict[str, Any]) -> None:
        """Begin to save a state under its step; returns before it is written.

        The newest step is left as it is if it is saved again; `annotate` adds to it.

        A failed save is reported, and `failure` is set until another one succeeds; with several processes it is
        raised, because the others wait.
        """
        step, plain = step_of(state), plain_keys(state)
        self.wait()
        if step == self.newest:
            return
        on_process_0(self.check_owner)
        if self.newest is not None and step < self.newest:
            raise ValueError(f"step {step} is older than {self.newest} in {self.folder}")
        more = {"step": step, "arrays": array_types(plain), "versions": library_versions()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(plain),
            about=ocp.args.JsonSave(finite_json(about | more)),
        )
        try:
            if not self.manager.save(step, args=items):
                raise RuntimeError("orbax did not save it")
            self.saving = step, self.thread.submit(self._commit, step)
        except SAVE_ERRORS as error:
            self._failed(step, error)

    def annotate(self, step: int, known: dict[str, Any]) -> None:
        """Annotate the newest step with what became known after its save; it overrides what was saved.

        Waits for the save; if that failed, there is no step to annotate. "bound" makes the step one of those
        of which the lowest is kept. As with a save, a failure is reported, or raised in several processes.
        """
        self.wait()
        if step != self.newest:
            return
        on_process_0(self.check_owner)
        known = finite_json(self.annotations.get(step, {}) | known)
        try:
            on_process_0(partial(write_annotations, self._path(step), known))
        except OSError as error:
            name = f"{ANNOTATIONS} of checkpoint {step} in {self.folder}"
            words = f"{name} could not be written: {message_of(error)}"
            if jax.process_count() > 1:
                raise OSError(words) from error
            self.failure = words
            self.log(f"{words}; the checkpoint itself is whole")
            return
        self.annotations[step] = known
        bound = known.get("bound")
        if bound is not None:  # only now that the disk has it, for another one is deleted for it
            self.bounds[step] = bound

    def poll(self) -> None:
        """Take notice of a save that has ended, and of a folder that is gone; cheap, for every step."""
        if jax.process_count() == 1:  # several find out together, at the next save
            self.check_owner()
        if self.saving is not None and self.saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save that is going on."""
        if self.saving is None:
            return
        (step, saved), self.saving = self.saving, None
        try:
            saved.result()
            self.newest, self.failure = step, None
        except SAVE_ERRORS as error:
            self._failed(step, error)

    def _check_shared(self) -> None:
        """Refuse processes that would write to different folders."""
        if jax.process_count() == 1:
            return
        try:
            there = read_bytes(self.folder / LOCK).decode(errors="replace")
        except (OSError, ValueError):
            there = None
        for i, token in enumerate(all_gather_json(there)):
            if token != self.token:
                raise ValueError(
                    f"{self.folder}: process {i} sees another folder than process 0, expected one that "
                    "all processes share"
                )

    def _report_old(self, line: str) -> None:
        """Report damage, but not missing files of old steps: a killed run was deleting them."""
        if not line.endswith(" is missing"):
            self.log(line)

    def _claim(self) -> tuple[int | None, str]:
        """Lock and recover the folder; return its newest whole step and the token, in process 0."""
        make_folder(self.folder)
        self.lock = FolderLock(self.folder / LOCK)
        newest, token = recover(self.folder, self.log), secrets.token_hex(8)
        self.lock.write(token)
        return newest, token

    def _manager(self) -> Any:
        return open_manager(self.folder, self.keep, self.bounds, create=True)

    def _commit(self, step: int) -> None:
        """In a thread: orbax renames the complete folder into place, and has no hook for what comes after."""
        self.manager.wait_until_finished()
        if is_first():
            write_manifest(self._path(step))

    def _failed(self, step: int, error: Exception) -> None:
        if jax.process_count() > 1:
            raise OSError(f"checkpoint {step} could not be written: {message_of(error)}") from error
        self.failure = (
            f"checkpoint {step} in {self.folder} could not be written: {message_of(error)}"
        )
        safe = "there is none yet" if self.newest is None else f"the last good one is {self.newest}"
        self.log(f"{self.failure}; {safe}")
        self._close_manager()
        for left in [self._path(step), *self.folder.glob(f"{step}.orbax-checkpoint-tmp*")]:
            remove_tree(left)
        self.manager = self._manager()

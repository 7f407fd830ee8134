"""Checkpoints: orbax writes them in the background, a manifest makes them valid, readers verify them.

    checkpoints/<step>/state             the arrays of a `TrainState`
                       about             JSON: step, config, position in the data, versions, state of the loop
                       manifest.json     size and CRC-32 of these files; written last, and makes the step valid
                       annotations.json  fields added later, such as the bound; they override `about`
    checkpoints/<step>.damaged          a step that failed verification, set aside
    checkpoints/lock                    held by the process that writes here

Orbax renames a complete folder into place, but it neither detects a bit that flips later nor reports a failed
save before the next one. Therefore every step is verified before it is read. A saved step is never written
again: a kill or a full disk in between would lose it.
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

    Opening a store finds the newest intact step, removes unfinished files of a killed run and sets damaged
    steps aside. Leaving its context waits for the last save.

    Args:
      folder: created if missing.
      keep: number of newest steps to keep; at least 2, because orbax deletes the oldest before the manifest of
        the newest is written. The step with the lowest bound is kept as well, if any has one.
      log: called with each warning, in process 0.

    Raises:
      ValueError: all steps are damaged; `keep` is below 2; another process sees another folder.
      OSError: another process writes here, the folder holds links or special files, or it cannot be read or
        written.

    Attributes:
      failure: why the last save or annotation failed, or None.
      token: a random identifier of this opening of the folder, shared by all processes of the run.
    """

    retries = 1  # the lock excludes any other process that could delete steps

    def __init__(self, folder: Path | str, keep: int = 2, *, log: Callable[[str], None] = warn):
        if keep < 2:
            raise ValueError(f"keep: expected at least 2 checkpoints, found {keep}")
        self.keep = keep
        self.failure: str | None = None
        self.pending_save: tuple[int, Future] | None = None
        self.executor = ThreadPoolExecutor(1)
        self.lock: FolderLock | None = None
        self.bounds: dict[int, float] = {}
        try:
            super().__init__(folder, log=log)
        except BaseException:
            # a lock that is not released would exclude later stores of this process
            self._release()
            raise

    def _open(self) -> None:
        self.newest, self.token = on_process_0(self._claim)
        self._check_shared()
        self.annotations = self._read_annotations()
        self.manager = self._open_manager()
        intact_steps = on_process_0(partial(whole_steps, self.folder, self._report_damage))
        self.bounds |= self._bounds(intact_steps)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        super().__exit__()
        self._release()

    def _release(self) -> None:
        self.executor.shutdown()
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def check_owner(self) -> None:
        """Check that the folder is still the one that this process has locked.

        Raises:
          OSError: the folder was deleted, or another process has replaced it.
        """
        if self.lock is not None:
            self.lock.check()

    def save(self, state: TrainState, about: dict[str, Any]) -> None:
        """Start to save a state under its step, and return before it is written.

        Saving the newest step again does nothing; `annotate` adds fields to it. A failed save is reported, and
        `failure` is set until a later save succeeds. With several processes it is raised instead, because the
        other processes wait for this one.

        Args:
          state: the train state.
          about: JSON fields to store beside it.

        Raises:
          ValueError: the state is older than the newest step.
          OSError: the folder is gone; with several processes, also a save that failed.
        """
        step, plain = step_of(state), plain_keys(state)
        self.wait()
        if step == self.newest:
            return
        on_process_0(self.check_owner)
        if self.newest is not None and step < self.newest:
            raise ValueError(f"step {step} is older than {self.newest} in {self.folder}")
        about = about | {
            "step": step,
            "arrays": array_types(plain),
            "versions": library_versions(),
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(plain),
            about=ocp.args.JsonSave(finite_json(about)),
        )
        try:
            if not self.manager.save(step, args=items):
                raise RuntimeError("orbax did not save it")
            self.pending_save = step, self.executor.submit(self._commit, step)
        except SAVE_ERRORS as error:
            self._handle_failure(step, error)

    def annotate(self, step: int, fields: dict[str, Any]) -> None:
        """Add fields to the newest step after its save; they override those that were saved with it.

        Waits for the save; if that failed, there is no step to annotate, and nothing is written. A failure is
        reported or raised as for `save`.

        Args:
          step: the newest step; others are ignored.
          fields: JSON; "bound" enters the step in the choice of the best one, which is never deleted.
        """
        self.wait()
        if step != self.newest:
            return
        on_process_0(self.check_owner)
        annotations = finite_json(self.annotations.get(step, {}) | fields)
        try:
            on_process_0(partial(write_annotations, self._path(step), annotations))
        except OSError as error:
            name = f"{ANNOTATIONS} of checkpoint {step} in {self.folder}"
            message = f"{name} could not be written: {message_of(error)}"
            if jax.process_count() > 1:
                raise OSError(message) from error
            self.failure = message
            self.log(f"{message}; the checkpoint itself is whole")
            return
        self.annotations[step] = annotations
        bound = annotations.get("bound")
        if bound is not None:
            # only after it is on disk, because orbax may delete the previous best
            self.bounds[step] = bound

    def poll(self) -> None:
        """Handle a save that has ended, and check that the folder still exists; cheap enough for every step."""
        if jax.process_count() == 1:  # several processes check together, at the next save
            self.check_owner()
        if self.pending_save is not None and self.pending_save[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the pending save, if there is one."""
        if self.pending_save is None:
            return
        (step, commit), self.pending_save = self.pending_save, None
        try:
            commit.result()
            self.newest, self.failure = step, None
        except SAVE_ERRORS as error:
            self._handle_failure(step, error)

    def _check_shared(self) -> None:
        """Check that all processes see the folder that process 0 has locked.

        Raises:
          ValueError: a process sees another folder of that path, for example on its own disk.
        """
        if jax.process_count() == 1:
            return
        try:
            token_here = read_bytes(self.folder / LOCK).decode(errors="replace")
        except (OSError, ValueError):
            token_here = None
        for i, token in enumerate(all_gather_json(token_here)):
            if token != self.token:
                raise ValueError(
                    f"{self.folder}: process {i} sees another folder than process 0, expected one that "
                    "all processes share"
                )

    def _report_damage(self, line: str) -> None:
        """Report damage, except missing files: a killed run may have been deleting an old step."""
        if not line.endswith(" is missing"):
            self.log(line)

    def _claim(self) -> tuple[int | None, str]:
        """Lock and recover the folder in process 0; return its newest intact step and the token."""
        make_folder(self.folder)
        self.lock = FolderLock(self.folder / LOCK)
        newest, token = recover(self.folder, self.log), secrets.token_hex(8)
        self.lock.write(token)
        return newest, token

    def _open_manager(self) -> ocp.CheckpointManager:
        return open_manager(self.folder, self.keep, self.bounds, create=True)

    def _commit(self, step: int) -> None:
        """Wait for orbax, then write the manifest, in a thread: orbax has no hook after its rename."""
        self.manager.wait_until_finished()
        if is_first():  # one manifest covers the files of all processes
            write_manifest(self._path(step))

    def _handle_failure(self, step: int, error: Exception) -> None:
        """Report a failed save and remove its files; raise it with several processes."""
        if jax.process_count() > 1:
            raise OSError(f"checkpoint {step} could not be written: {message_of(error)}") from error
        self.failure = (
            f"checkpoint {step} in {self.folder} could not be written: {message_of(error)}"
        )
        safe = "there is none yet" if self.newest is None else f"the last good one is {self.newest}"
        self.log(f"{self.failure}; {safe}")
        # after an error orbax's manager raises it again at the next call, so that a new one is needed
        self._close_manager()
        for leftover in [self._path(step), *self.folder.glob(f"{step}.orbax-checkpoint-tmp*")]:
            remove_tree(leftover)
        self.manager = self._open_manager()

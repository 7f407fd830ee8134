"""Checkpoints: written in the background by orbax, counted when their manifest is there, verified when read.

    checkpoints/<step>/state            the arrays of a `TrainState`
                       about            JSON: config, position in the data, versions, what the loop carries
                       manifest.json    size and CRC-32 of these files; written last, and makes it count
                       noted.json       what became known later, such as the bound; goes before `about`
    checkpoints/<step>.damaged          what did not verify, set aside
    checkpoints/lock                    held by the process that writes here

Orbax renames a complete folder into place, but neither notices a bit that changes later nor says before the
next save that one failed. Whatever is read here has been verified, or is not returned. What was saved is never
written again: it would be lost to a kill or a full disk in between.
"""

import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from vdm_jax.training.console import warn
from vdm_jax.training.manifest import (
    MANIFEST,
    NOTED,
    UNFINISHED,
    read_noted,
    verify,
    write_manifest,
    write_noted,
)
from vdm_jax.training.processes import by_first, is_first
from vdm_jax.training.state import TrainState, step_of

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None

LIBRARIES = "vdm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"


def library_versions() -> dict[str, str]:
    """Versions that a checkpoint or a report was made with."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, not installed
            found[name] = "unknown"
    return found


class CheckpointStore:
    """The checkpoints of one run, in `folder`; a context manager that waits for the last save.

    Opening it finds the newest step that is whole. To write, it also removes what a killed run left
    half-written and sets aside what is damaged.

    Args:
      folder: made if missing, unless it is only read.
      keep: how many of the newest steps are kept; at least 2, for orbax deletes the oldest before the manifest
        of the newest is written. The one with the lowest bound is kept as well, if any has one.
      read_only: change nothing: the run may be going on.
      say: gets the warnings, in process 0.

    Raises:
      ValueError: there are steps, and all of them are damaged; fewer than 2 are to be kept.
      OSError: another process writes here, or the folder cannot be read or written.

    Attributes:
      failure: why the last save or note failed, or None.
    """

    def __init__(
        self,
        folder: Path | str,
        keep: int = 2,
        *,
        read_only: bool = False,
        say: Callable[[str], None] = warn,
    ):
        if keep < 2:
            raise ValueError(f"keep: expected at least 2 checkpoints, found {keep}")
        self.folder = Path(folder).absolute()
        self.keep, self.read_only, self.say = keep, read_only, say
        self.failure: str | None = None
        self.saving: tuple[int, Future] | None = None
        self.thread = ThreadPoolExecutor(1)
        self.lock: Any = None
        self.bounds: dict[int, float] = {}
        try:
            self.newest: int | None = by_first(self._open)
            self.noted = self._read_noted()
            self.manager = self._manager()
            if not read_only:
                self.bounds |= self._bounds(by_first(partial(self._whole, self._say_of_old)))
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()
        self._close_manager()
        self._release()

    def _release(self) -> None:
        self.thread.shutdown()
        if self.lock is not None:
            self.lock.close()

    def _close_manager(self) -> None:
        """Close orbax's; after a failed save it says so again before it closes anything."""
        for _ in range(2):
            with suppress(Exception):
                self.manager.close()
                return

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return [step for step in _numbers(self.folder) if (self._path(step) / MANIFEST).exists()]

    def latest(self) -> int | None:
        """The newest committed step, or None; the newest that was whole when the store was opened, at least."""
        return self.newest

    def whole(self) -> list[int]:
        """The committed steps that verify, oldest first; what is wrong with the others is said."""
        return by_first(partial(self._whole, self.say))

    def best(self) -> int | None:
        """The step with the lowest bound, or None if none was saved with one; what is damaged is said."""
        return _lowest(self._bounds(self.whole()))

    def save(self, state: TrainState, about: dict[str, Any]) -> None:
        """Begin to save a state under its step; returns before it is written.

        The newest step is left as it is if it is saved again; `note` adds to it.

        A save that fails is said when it does, and `failure` is set until another one succeeds; in one of
        several processes it is raised, for the others wait.
        """
        step, plain = step_of(state), _plain(state)
        self.wait()
        if step == self.newest:
            return
        if self.newest is not None and step < self.newest:
            raise ValueError(f"step {step} is older than {self.newest} in {self.folder}")
        more = {"arrays": _arrays(plain), "versions": library_versions()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(plain), about=ocp.args.JsonSave(about | more)
        )
        try:
            if not self.manager.save(step, args=items):
                raise RuntimeError("orbax did not save it")
            self.saving = step, self.thread.submit(self._commit, step)
        except SAVE_ERRORS as error:
            self._failed(step, error)

    def note(self, step: int, known: dict[str, Any]) -> None:
        """Note what became known of the newest step after its save, instead of what it said under these names.

        Waits for the save; if that failed, there is nothing to note it of. "bound" makes the step one of those
        of which the lowest is kept. As with a save, a failure is said, or raised in several processes.
        """
        self.wait()
        if step != self.newest:
            return
        try:
            by_first(partial(write_noted, self._path(step), known))
        except OSError as error:
            words = f"{NOTED} of checkpoint {step} in {self.folder} could not be written: {_line(error)}"
            if jax.process_count() > 1:
                raise OSError(words) from error
            self.failure = words
            self.say(f"{words}; the checkpoint itself is whole")
            return
        self.noted[step] = known
        bound = known.get("bound")
        if bound is not None:  # only now that the disk has it, for another one is deleted for it
            self.bounds[step] = bound

    def poll(self) -> None:
        """Take notice of a save that has ended; costs nothing while it goes on."""
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

    def about(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself: what it was saved with, its arrays, versions, what was noted."""
        items = ocp.args.Composite(about=ocp.args.JsonRestore())
        return self.manager.restore(step, args=items)["about"] | self.noted.get(step, {})

    def restore(
        self, like: TrainState, step: int | None = None, *, shardings: Any = None
    ) -> TrainState:
        """Restore a step (the newest that is whole) in the structure, shapes and types of `like`.

        `shardings`, a tree like it, say where its arrays are to lie, wherever they lay when they were saved;
        on the first device by default.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is damaged, or its arrays are not those of `like`, by name, shape and type.
        """
        if step is not None:
            if step not in (there := self.steps()):
                raise FileNotFoundError(f"no checkpoint {step} in {self.folder}, found {there}")
            if fault := by_first(partial(verify, self._path(step))):
                raise ValueError(f"checkpoint {step} in {self.folder} is damaged: {fault}")
            return self._restore(like, step, shardings)
        for _ in range(RETRIES if self.read_only else 0):
            if self.newest is None or by_first(self._path(self.newest).exists):
                break
            self._reopen()  # the run goes on, and has deleted it meanwhile
        if self.newest is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        return self._restore(like, self.newest, shardings)

    def _restore(self, like: TrainState, step: int, shardings: Any) -> TrainState:
        shapes = jax.eval_shape(_plain, like)
        found, expected = self.about(step)["arrays"], _arrays(shapes)
        for name in [*expected, *found]:  # orbax would convert types without a word
            here, there = expected.get(name, "nothing"), found.get(name, "nothing")
            if here != there:
                raise ValueError(
                    f"checkpoint {step} in {self.folder}: expected {here} at state{name}, found {there}"
                )
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: first, like) if shardings is None else shardings
        target = jax.tree.map(_placed, shapes, places)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        plain = self.manager.restore(step, args=items)["state"]
        return plain._replace(key=jax.random.wrap_key_data(plain.key))

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _reopen(self) -> None:
        self.newest = by_first(self._open)
        self.noted = self._read_noted()
        self._close_manager()
        self.manager = self._manager()

    def _whole(self, say: Callable[[str], None]) -> list[int]:
        found = []
        for step in self.steps():
            if fault := verify(self._path(step)):
                say(f"checkpoint {step} in {self.folder} is damaged: {fault}")
            else:
                found.append(step)
        return found

    def _say_of_old(self, line: str) -> None:
        """Nothing is said of files that are missing: a killed run was deleting the step."""
        if not line.endswith(" is missing"):
            self.say(line)

    def _bounds(self, steps: list[int]) -> dict[int, float]:
        """Step -> bound of those that have one."""
        bounds = {step: self.about(step).get("bound") for step in steps}
        return {step: bound for step, bound in bounds.items() if bound is not None}

    def _read_noted(self) -> dict[int, dict[str, Any]]:
        """What was noted of each step; a damaged note is said, and is no damage of the step."""

        def pairs():
            found = []
            for step in self.steps():
                noted, fault = read_noted(self._path(step))
                if fault:
                    self.say(f"checkpoint {step} in {self.folder}: {fault}; it is passed over")
                found.append([step, noted])
            return found

        return dict(by_first(pairs))

    def _open(self) -> int | None:
        """The newest step that is whole; in process 0."""
        if not self.read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = _locked(self.folder / "lock")
            for left in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        faults: dict[int, str] = {}
        for _ in range(RETRIES):
            there, faults = _numbers(self.folder), {}
            for step in reversed(there):
                fault = verify(self._path(step))
                if fault is None:
                    self._set_aside(faults, f"going back to step {step}")
                    return step
                if not (self.read_only and fault == UNFINISHED):
                    faults[step] = fault
            if not self.read_only or {*there} <= {*_numbers(self.folder)}:
                break  # otherwise the run goes on, and has deleted some that were being read
        if any(fault != UNFINISHED for fault in faults.values()):
            raise ValueError(
                f"no checkpoint in {self.folder} is whole: "
                + "; ".join(f"{step}: {fault}" for step, fault in faults.items())
                + "; move them away to start anew"
            )
        self._set_aside(faults, "starting anew")
        return None

    def _set_aside(self, faults: dict[int, str], instead: str) -> None:
        for step, fault in faults.items():
            path = self._path(step)
            words = f"checkpoint {step} in {self.folder} is damaged: {fault}"
            if not self.read_only:
                aside = path.with_name(f"{step}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                words += f"; set aside as {aside.name}"
            self.say(f"{words}; {instead}")

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            create=not self.read_only,
            preservation_policy=AnyPreservationPolicy([LatestN(self.keep), _Lowest(self.bounds)]),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _commit(self, step: int) -> None:
        """In a thread: orbax renames the complete folder into place, and has no hook for what comes after."""
        self.manager.wait_until_finished()
        if is_first():
            write_manifest(self._path(step))

    def _failed(self, step: int, error: Exception) -> None:
        if jax.process_count() > 1:
            raise OSError(f"checkpoint {step} could not be written: {_line(error)}") from error
        self.failure = f"checkpoint {step} in {self.folder} could not be written: {_line(error)}"
        safe = "there is none yet" if self.newest is None else f"the last good one is {self.newest}"
        self.say(f"{self.failure}; {safe}")
        self._close_manager()
        for left in [self.folder / f"{step}", *self.folder.glob(f"{step}.orbax-checkpoint-tmp*")]:
            shutil.rmtree(left, ignore_errors=True)
        self.manager = self._manager()


class _Lowest:
    """A preservation policy of orbax, whose own knows only the metrics that a step was saved with."""

    def __init__(self, bounds: dict[int, float]):
        self.bounds = bounds

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Keep the one with the lowest of the bounds, which may become known after this."""
        del context
        there = [checkpoint.step for checkpoint in checkpoints]
        lowest = _lowest({step: self.bounds[step] for step in there if step in self.bounds})
        return [step == lowest for step in there]


RETRIES = 5
"""Of a reader, while a run that goes on deletes what it reads."""

SAVE_ERRORS = OSError, ValueError, RuntimeError
"""What orbax and TensorStore raise when something cannot be written."""


def _numbers(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))


def _locked(path: Path) -> Any:
    """An open file that no other process has locked."""
    file = path.open("a")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OSError(f"{path.parent}: another process is training there") from error
    except OSError:  # a file system without locks
        pass
    return file


def _lowest(bounds: dict[int, float]) -> int | None:
    """The step with the lowest bound, the first of several."""
    return min(sorted(bounds), key=bounds.__getitem__, default=None)


def _line(error: BaseException) -> str:
    """What the system said, if it did, else the first line."""
    text = str(error)
    of_system = re.search(r"\[?(?:OS error|Errno) \d+[^\]\n]*\]?[^\n\[]{0,80}", text)
    return of_system[0] if of_system else (text.splitlines() or [type(error).__name__])[0]


def _plain(state: TrainState) -> TrainState:
    """Typed keys as the integers that can be written."""
    return state._replace(key=jax.random.key_data(state.key))


def _arrays(plain: TrainState) -> dict[str, str]:
    """Name -> type and shape of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{[*leaf.shape]}" for path, leaf in leaves}


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

"""Checkpoints on disk: find the intact ones, read their metadata, and recover a folder after a killed run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdm_jax.runtime.files import check_tree, read_json, remove_tree
from vdm_jax.runtime.manifest import MANIFEST, UNFINISHED, read_annotations, verify

Report = Callable[[str], None]
"""A function that reports a warning."""

RETRIES = 5
"""Number of attempts of a reader while a running process deletes old steps."""

ABOUT_TYPES: dict[str, type] = {
    "step": int,
    "arrays": dict,
    "versions": dict,
    "config": dict,
    "data": dict,
    "statistics": str,
    "position": dict,
    "loop": dict,
}
"""Fields that `about` may have, and their JSON types; the first two are required."""

LOOP_TYPES: dict[str, type] = {
    "sums": dict,
    "streaks": dict,
    "spreads": dict,
    "lines": int,
    "evaluation_due": bool,
}
"""Fields that the `loop` of `about` may have, and their JSON types."""


def numbers(folder: Path) -> list[int]:
    """Return the steps that have a folder, finished or not, oldest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    # no leading zeros: 07 and 7 would be the same step
    return sorted(
        int(path.name)
        for path in paths
        if re.fullmatch(r"0|[1-9]\d{0,17}", path.name) and path.is_dir()
    )


def committed(folder: Path) -> list[int]:
    """Return the steps that have a manifest, oldest first."""
    return [step for step in numbers(folder) if (folder / str(step) / MANIFEST).exists()]


def damage(folder: Path, step: int) -> str | None:
    """Return a description of the damage of a step, or None if all of its files are intact.

    Raises:
      OSError: a file cannot be read, which does not mean that it is damaged.
    """
    path = folder / str(step)
    if fault := verify(path):
        return fault
    try:
        _read_about(path, step)
    except ValueError as error:
        return str(error).removeprefix(f"{path}/")
    except FileNotFoundError:
        return "about/metadata is missing"
    return None


def read_about(folder: Path, step: int) -> dict[str, Any]:
    """Read the `about` of a step, overridden by its annotations.

    Raises:
      FileNotFoundError: there is no such step.
      ValueError: the file is damaged.
    """
    path = folder / str(step)
    return _read_about(path, step) | read_annotations(path)[0]


def _read_about(path: Path, step: int) -> dict[str, Any]:
    about = read_json(path / "about" / "metadata")
    if not isinstance(about, dict) or not {"step", "arrays"} <= about.keys():
        raise ValueError(f"{path / 'about'}: expected the fields of a checkpoint")
    _check_types(about, ABOUT_TYPES, path / "about")
    _check_types(about.get("loop", {}), LOOP_TYPES, path / "about")
    if about["step"] != step:
        raise ValueError(f"{path / 'about'}: it is of step {about['step']}")
    return about


def _check_types(fields: dict[str, Any], types: dict[str, type], where: Path) -> None:
    for name, kind in types.items():
        if name in fields and not isinstance(fields[name], kind):
            raise ValueError(f"{where}: {name} is no {kind.__name__}")


def whole_steps(folder: Path, report: Report) -> list[int]:
    """Return the intact steps, oldest first; report the damage of the other committed ones."""
    intact = []
    for step in committed(folder):
        if fault := damage(folder, step):
            report(f"checkpoint {step} in {folder} is damaged: {fault}")
        else:
            intact.append(step)
    return intact


def annotations_by_step(folder: Path, report: Report) -> dict[int, dict[str, Any]]:
    """Return the annotations of every committed step; a damaged file is reported and ignored."""
    annotations = {}
    for step in committed(folder):
        annotations[step], fault = read_annotations(folder / str(step))
        if fault:
            report(f"checkpoint {step} in {folder}: {fault}; it is ignored")
    return annotations


def recover(folder: Path, report: Report) -> int | None:
    """Prepare a folder for writing: return its newest intact step, or None if it is empty.

    Removes unfinished files of a killed run, and renames newer, damaged steps to `<step>.damaged`.

    Raises:
      ValueError: all steps are damaged.
      OSError: the folder holds links or special files, or cannot be read or written.
    """
    check_tree(folder)
    for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
        remove_tree(leftover)
    newest, faults = _newest_whole(folder)
    if newest is None:
        _refuse_to_start_anew(folder, faults)
    consequence = "starting anew" if newest is None else f"going back to step {newest}"
    for step, fault in faults.items():
        aside = folder / f"{step}.damaged"
        remove_tree(aside)  # of an earlier recovery: a rename cannot replace a folder
        (folder / str(step)).rename(aside)
        report(
            f"checkpoint {step} in {folder} is damaged: {fault}; set aside as {aside.name}; {consequence}"
        )
    return newest


def find_newest(folder: Path, report: Report) -> int | None:
    """Return the newest intact step of a folder that a running process may be writing; change nothing.

    Raises:
      ValueError: all steps are damaged.
      OSError: the folder holds links or special files, or cannot be read.
    """
    newest, faults = None, {}
    for _ in range(RETRIES):
        check_tree(folder)
        newest, faults = _newest_whole(folder)
        # a step without a manifest is still being written
        faults = {step: fault for step, fault in faults.items() if fault != UNFINISHED}
        # a step that a running process has deleted meanwhile looks damaged: then look again
        if faults.keys() <= {*numbers(folder)}:
            break
    if newest is None:
        _refuse_to_start_anew(folder, faults)
    for step, fault in faults.items():
        report(f"checkpoint {step} in {folder} is damaged: {fault}; going back to step {newest}")
    return newest


def _newest_whole(folder: Path) -> tuple[int | None, dict[int, str]]:
    """Return the newest intact step, and the damage of every newer one."""
    faults: dict[int, str] = {}
    for step in reversed(numbers(folder)):
        fault = damage(folder, step)
        if fault is None:
            return step, faults
        faults[step] = fault
    return None, faults


def _refuse_to_start_anew(folder: Path, faults: dict[int, str]) -> None:
    """Raise ValueError if steps are damaged, because the run would silently start again from step 0."""
    if any(fault != UNFINISHED for fault in faults.values()):
        listed = "; ".join(f"{step}: {fault}" for step, fault in faults.items())
        raise ValueError(
            f"no checkpoint in {folder} is whole: {listed}; move them away to start anew"
        )

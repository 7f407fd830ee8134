"""The folder of a run: claim it for training, read it, and check that its files belong together.

config.json        the resolved config
statistics.npz     statistics of the training split that the model was built with
checkpoints/       states, by step; each names its config, its data and the digest of its statistics
metrics.jsonl      training metrics, also in tensorboard/
evaluation.json    the last evaluation, with the identity of what was evaluated
samples.png, loss.png and the model's own plots

A file may come from somebody else, be damaged, or be left over from other data of the same name. A checkpoint
is verified by its manifest, so the other files are compared with what the checkpoint stores of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.config import difference, resolve
from vdm_jax.data import Dataset, fingerprint
from vdm_jax.models import Statistics
from vdm_jax.models.statistics import digest_of, load_statistics, save_statistics
from vdm_jax.runs.start import load_data
from vdm_jax.runtime.console import log, warn
from vdm_jax.runtime.files import check_tree, make_folder, read_json, remove_temporary, write_json
from vdm_jax.runtime.processes import all_gather_json, is_first, on_process_0
from vdm_jax.settings import DataSettings, Settings
from vdm_jax.training.checkpoint import CheckpointStore
from vdm_jax.training.recovery import read_about

CONFIG, STATISTICS, CHECKPOINTS = "config.json", "statistics.npz", "checkpoints"


def about_data(dataset: Dataset) -> dict[str, Any]:
    """Return the description of the data that a checkpoint stores: names, size and a fingerprint."""
    return {
        "name": dataset.name,
        "version": dataset.version,
        "split": dataset.train.name,
        "examples": len(dataset.train.images),
        "fingerprint": fingerprint(dataset),
    }


def check_data(about: Mapping[str, Any], data: Mapping[str, Any], folder: Path) -> None:
    """Check that data are those that a checkpoint was trained on.

    Raises:
      ValueError: other images; the message has both fingerprints.
    """
    expected = about.get("data", {}).get("fingerprint")
    if data["fingerprint"] != expected:
        raise ValueError(
            f"config.data: {data['name']!r} has other images than those that {folder} was trained on: "
            f"fingerprint {data['fingerprint']}, expected {expected}"
        )


def checked_loader(about: Mapping[str, Any], folder: Path) -> Callable[[DataSettings], Dataset]:
    """Return a function from settings to a data set, which checks its fingerprint and caches it.

    Args:
      about: description of the checkpoint; its `data` is None if there is no checkpoint to compare with.
      folder: of the run, for messages.
    """

    @cache
    def load(settings: DataSettings) -> Dataset:
        # the config may be somebody else's: show which folder is read on its behalf
        if settings.data_dir is not None and is_first():
            log(f"reading {settings.name!r} from {settings.data_dir}, the data_dir of {folder}")
        dataset = load_data(settings)
        if about.get("data", {}) is not None:
            check_data(about, about_data(dataset), folder)
        return dataset

    return load


def read_config(workdir: Path) -> Settings:
    """Read and validate the config of a run.

    Raises:
      FileNotFoundError: the folder has no config.
      ValueError: the file is damaged, or its config is not valid.
    """
    path = workdir / CONFIG
    saved = read_json(path)
    try:
        return resolve(saved)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_run(workdir: Path) -> tuple[Settings, Statistics]:
    """Read the config and the statistics of a run, and check that all processes read the same.

    Raises:
      FileNotFoundError: the folder holds no run.
      OSError: the folder holds links or special files, or cannot be read.
      ValueError: a file is damaged, or another process reads other files.
    """
    for name in (CONFIG, STATISTICS, CHECKPOINTS):
        if not (workdir / name).exists():
            raise FileNotFoundError(f"no run to load in {workdir}: {name} is missing")
    check_tree(workdir)
    settings, statistics = read_config(workdir), load_statistics(workdir / STATISTICS)
    agree(f"files in {workdir}", settings.plain | {"statistics": digest_of(statistics)})
    return settings, statistics


def check_run(
    about: Mapping[str, Any], settings: Settings, statistics: Statistics, workdir: Path
) -> None:
    """Check that a config and statistics are those of a checkpoint.

    Differences in settings that may change, such as those of an evaluation, are only reported.

    Raises:
      ValueError: another config or other statistics; the message has the file and the differences.
    """
    saved, config, path = about.get("config", {}), settings.plain, workdir / CONFIG
    if lines := difference(saved, config):
        raise ValueError(
            f"{path} is that of another run than checkpoint {about['step']}: {'; '.join(lines)}"
        )
    if (lines := difference(saved, config, free=())) and is_first():
        warn(f"{path} differs from checkpoint {about['step']} (there): {'; '.join(lines)}")
    if digest_of(statistics) != about.get("statistics"):
        raise ValueError(
            f"{workdir / STATISTICS} is that of another run than checkpoint {about['step']}"
        )


def check_statistics(saved: Statistics, fitted: Statistics, workdir: Path) -> None:
    """Check saved statistics against those of the data, for a run without a checkpoint.

    The error of the base is compared to 1 %, because it is measured on the device.

    Raises:
      ValueError: they differ.
    """
    exact = digest_of(saved._replace(residual=None)) == digest_of(fitted._replace(residual=None))
    residuals = [np.asarray([] if s.residual is None else s.residual) for s in (saved, fitted)]
    same_shape = residuals[0].shape == residuals[1].shape
    if not (exact and same_shape and np.allclose(*residuals, atol=0.01)):
        raise ValueError(f"{workdir / STATISTICS} is not that of the data that the config names")


@contextmanager
def claim_workdir(
    workdir: Path,
    settings: Settings,
    data: dict[str, Any],
    fit: Callable[[], Statistics],
) -> Iterator[tuple[CheckpointStore, Statistics]]:
    """Lock the folder of a run and write its config and statistics, or check those that exist.

    Without a checkpoint the run starts anew, so the config and the statistics are overwritten. With a
    checkpoint, they have to belong to it.

    Args:
      workdir: folder of the run; made if missing.
      settings: of the run.
      data: description of the data, see `about_data`.
      fit: computes the statistics of the training split.

    Raises:
      ValueError: the folder holds a run of another config or other data, or is damaged.
      OSError: the folder cannot be written, holds links, or another process trains there.
    """
    config = settings.plain
    # before the store is opened, which changes the folder: it removes temporary files and sets steps aside
    on_process_0(partial(_check_claim, workdir, config))
    with CheckpointStore(workdir / CHECKPOINTS, settings.train.keep_checkpoints) as store:
        on_process_0(partial(_claim, store, workdir, config, data, fit))
        if store.newest is not None and config != store.about(store.newest)["config"]:
            # all differences are in settings that may change: readers compare with the annotated config
            store.annotate(store.newest, {"config": config})
        yield store, load_statistics(workdir / STATISTICS)


def agree(subject: str, facts: dict[str, Any]) -> None:
    """Check that facts are equal in all processes.

    Raises:
      ValueError: in every process; the message has the differences.
    """
    first, *others = all_gather_json(facts)
    for i, other in enumerate(others, start=1):
        if lines := difference(first, other, free=()):
            raise ValueError(
                f"process 0 (there) and process {i} (here) have different {subject}: {'; '.join(lines)}"
            )


def _check_claim(workdir: Path, config: dict[str, Any]) -> None:
    """Refuse a folder of another config, or one that cannot be written."""
    check_tree(workdir)
    path = workdir / CONFIG
    saved = read_config(workdir).plain if path.exists() else config
    if lines := difference(saved, config):
        raise ValueError(
            f"{workdir} holds a run of another config ({CONFIG}); give another --workdir, or undo: "
            + "; ".join(lines)
        )
    try:
        make_folder(workdir)
        remove_temporary(workdir)
        write_json(path, saved)  # tests that the folder can be written
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be written: {error.strerror or error}") from error


def _claim(
    store: CheckpointStore,
    workdir: Path,
    config: dict[str, Any],
    data: dict[str, Any],
    fit: Callable[[], Statistics],
) -> None:
    """Write the config and the statistics, or check them against the newest checkpoint; in process 0."""
    path, step = workdir / STATISTICS, store.newest
    if step is None:
        save_statistics(path, fit())
    else:
        # not by `store.about`, a collective operation of all processes
        about = read_about(store.folder, step)
        lines = difference(about.get("config", {}), config)
        if lines:
            raise ValueError(f"checkpoint {step} in {store.folder}: {'; '.join(lines)}")
        check_data(about, data, store.folder)
        _repair_statistics(path, about.get("statistics"), fit)
    if read_json(workdir / CONFIG) != config:
        write_json(workdir / CONFIG, config)


def _repair_statistics(path: Path, expected: str | None, fit: Callable[[], Statistics]) -> None:
    """Fit statistics again if they are missing, damaged or of another run."""
    try:
        if digest_of(load_statistics(path)) == expected:
            return
        fault = f"{path} is that of another run"
    except FileNotFoundError:
        fault = f"{path} is missing"
    except ValueError as error:
        fault = str(error)
    statistics = fit()
    if digest_of(statistics) != expected:
        raise ValueError(f"{fault}, and those of the data are not those of the checkpoints")
    warn(f"{fault}; written again")
    save_statistics(path, statistics)

"""Kinds of hostile folders of runs, and the errors that their readers report.

Each kind changes the folder `run` of a finished run and has a regular expression of the error that every door
prints, or None if the doors may ignore the change. `outside` is a folder that no door may change.
"""

import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from prepared import write_tfds

from vdm_jax.runtime.files import write_checked
from vdm_jax.runtime.manifest import MANIFEST, write_manifest


class Kind(NamedTuple):
    """A hostile folder and a pattern of its error; None if every door works as usual."""

    change: Callable[[Path, Path], None]
    pattern: str | None


def linked(name, target=None):
    """Replace a file or folder by a link to its copy, or to `target`, outside."""

    def change(run, outside):
        place, goal = run / name, outside / Path(name).name
        if place.exists():
            shutil.move(place, goal)
        place.symlink_to(target or goal)

    return Kind(change, r"is a link")


def special(name, make):
    """Replace a file by one that blocks its reader."""

    def change(run, _):
        (run / name).unlink(missing_ok=True)
        make(run / name)

    return Kind(change, r"is a special file")


def written(name, content, pattern):
    return Kind(lambda run, _: (run / name).write_bytes(content), pattern)


def listening(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


def in_the_manifest(name):
    """Name a file outside of the step, with its correct checksum, in the manifest."""

    def change(run, outside):
        (outside / "victim").write_bytes(b"")
        path = run / "checkpoints" / "40" / MANIFEST
        content = json.loads(path.read_text())
        files = {**content["files"], name: [0, 0]}
        write_checked(path, {"name": content["name"], "files": files})

    return Kind(change, r"checkpoint 40 in .* is damaged: .* is missing")


def sealed(name, content):
    """Change a file of the newest step and its manifest accordingly."""

    def change(run, _):
        step = run / "checkpoints" / "40"
        (step / name).write_bytes(content)
        write_manifest(step)

    return Kind(change, r"checkpoint 40 in .* is damaged")


def sparse(run, _):
    with (run / "config.json").open("wb") as file:
        file.truncate(2**40)


def promise(run, _):
    """Write an array whose header promises a terabyte."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472,), }"
    header = header.ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(run / "statistics.npz", "w") as archive:
        archive.writestr("counts.npy", content)


class Payload:
    """A pickle that leaves a trace when it is loaded."""

    def __reduce__(self):
        return open, ("executed", "w")


def pickled(run, _):
    with zipfile.ZipFile(run / "statistics.npz", "w") as archive:
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        header = header.ljust(117) + b"\n"
        prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        archive.writestr("counts.npy", prefix + pickle.dumps([Payload()]))


def strange_data(run, outside):
    """Point the config to a prepared data set whose description names a stranger's class."""
    write_tfds(outside / "data")
    (outside / "stranger.py").write_text("open('executed', 'w')\nclass Image: pass\n")
    path = outside / "data" / "tiny" / "1.0.0" / "features.json"
    path.write_text(path.read_text().replace("tensorflow_datasets", "stranger"))
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"name": "tiny", "data_dir": str(outside / "data")}
    config["data"] |= {"train_split": "train", "test_split": "test"}
    (run / "config.json").write_text(json.dumps(config))


def renumbered(run, _):
    (run / "checkpoints" / "40").rename(run / "checkpoints" / "99")


DEEP = b"[" * 10**5
CONFIG_ERROR = r"config\.json"
STATISTICS_ERROR = r"statistics\.npz"

KINDS = {
    "link as config": linked("config.json"),
    "link as log": linked("metrics.jsonl"),
    "link as evaluation": linked("evaluation.json"),
    "link as picture": linked("samples.png"),
    "link as folder of events": linked("tensorboard"),
    "link as checkpoints": linked("checkpoints"),
    "link as step": linked("checkpoints/40"),
    "link as state": linked("checkpoints/40/state"),
    "link as lock": linked("checkpoints/lock"),
    "link that dangles": linked("loss.png", "../outside/new.png"),
    "link to a device": linked("evaluation.json", "/dev/zero"),
    "link that loops": linked("checkpoints/41", "../checkpoints"),
    "FIFO as config": special("config.json", os.mkfifo),
    "FIFO as statistics": special("statistics.npz", os.mkfifo),
    "FIFO as log": special("metrics.jsonl", os.mkfifo),
    "FIFO as annotations": special("checkpoints/40/annotations.json", os.mkfifo),
    "socket as evaluation": special("evaluation.json", listening),
    "manifest that names a file above": in_the_manifest("../../../outside/victim"),
    "manifest that names a device": in_the_manifest("/dev/zero"),
    "description nested deeply": sealed("about/metadata", DEEP),
    "description of another type": sealed("about/metadata", b"[]"),
    "config nested deeply": written("config.json", DEEP, CONFIG_ERROR),
    "config of another type": written("config.json", b"[]", CONFIG_ERROR),
    "config of a terabyte": Kind(sparse, CONFIG_ERROR),
    "array of a terabyte": Kind(promise, STATISTICS_ERROR),
    "pickle in the statistics": Kind(pickled, STATISTICS_ERROR),
    "config that names a stranger's data": Kind(strange_data, r"config\.data|data_dir"),
    "step under another number": Kind(renumbered, r"checkpoint 99 in .* is damaged"),
    "step that is a file": written("checkpoints/41", b"", None),
    "names with control characters": written("\x1b[31m\nred", b"", None),
}

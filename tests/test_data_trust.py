"""A data folder of a stranger is read as data: nothing in it is executed, and nothing waits."""

import json
import os
import shutil
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import write_tfds

from vdm_jax.data import load_dataset
from vdm_jax.data.prepared import feature_classes

SCALAR = "tensorflow_datasets.core.features.scalar.Scalar"
PAYLOAD = "payload_of_a_stranger.Scalar"


def features(change):
    """Change the description of the features."""

    def apply(folder):
        path = folder / "features.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return apply


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def renamed(value):
    return json.loads(json.dumps(value).replace(SCALAR, PAYLOAD))


def nested(value):
    """A class inside a string of JSON inside a feature."""
    inner = json.dumps({"feature": {"type": PAYLOAD, "content": {}}, "length": 2})
    sequence = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    return {"type": sequence, "content": {"json": inner}} | {"image": value}


def other_spelling(value):
    return json.loads(json.dumps(renamed(value)).replace("pythonClassName", "python_class_name"))


def legacy(value):
    del value
    return {"type": PAYLOAD, "content": {}}


def in_another_version(folder):
    """TFDS reads the newest version."""
    shutil.copytree(folder, folder.with_name("2.0.0"))
    features(renamed)(folder.with_name("2.0.0"))


def shards(template):
    def apply(folder):
        path = folder / "dataset_info.json"
        info = json.loads(path.read_text())
        for split in info["splits"]:
            split["filepathTemplate"] = template
        path.write_text(json.dumps(info))

    return apply


def in_place_of(name, make):
    def apply(folder):
        path = next(folder.glob(name))
        path.unlink()
        make(path)

    return apply


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


HOSTILE = {
    "class": features(renamed),
    "class in a string": features(nested),
    "other spelling": features(other_spelling),
    "legacy format": features(legacy),
    "another version": in_another_version,
    "builtin class": features(lambda value: {"type": "os.system", "content": {}}),
    "no json": text("features.json", "{"),
    "deep json": text("features.json", "[" * 10**5),
    "deep objects": text("features.json", '{"a":' * 900 + "1" + "}" * 900),
    "wrong type": text("features.json", "[1]"),
    "deep info": text("dataset_info.json", "[" * 10**5),
    "shards above": shards("../../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"),
    "shards at the root": shards("/dev/{SPLIT}"),
    "fifo as features": in_place_of("features.json", os.mkfifo),
    "fifo as info": in_place_of("dataset_info.json", os.mkfifo),
    "fifo as shard": in_place_of("*train*", os.mkfifo),
    "device as shard": in_place_of("*train*", lambda path: path.symlink_to("/dev/zero")),
    "dangling shard": in_place_of("*train*", lambda path: path.symlink_to("nothing")),
    "huge features": in_place_of("features.json", sparse),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_folder_is_refused_in_one_line(change, tmp_path, monkeypatch):
    write_tfds(tmp_path / "data")
    change(tmp_path / "data" / "tiny" / "1.0.0")
    marker = tmp_path / "executed"
    (tmp_path / "payload_of_a_stranger.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    errors = []

    def load():
        try:
            load_dataset("tiny", data_dir=tmp_path / "data")
        except (ValueError, OSError) as error:
            errors.append(str(error))

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(20)
    (line,) = errors
    assert "\n" not in line and line.startswith("data_dir: ")
    assert not marker.exists() and "payload_of_a_stranger" not in sys.modules


def test_camel_case_names_are_checked_too(tmp_path):
    write_tfds(tmp_path, "my_data")
    features(renamed)(tmp_path / "my_data" / "1.0.0")
    with pytest.raises(ValueError, match="not one of TFDS's own"):
        load_dataset("MyData", data_dir=tmp_path)


def test_own_classes_are_known():
    assert SCALAR in feature_classes() and len(feature_classes()) >= 13
    assert PAYLOAD not in feature_classes()


def _png(width, height):
    """A PNG that promises many pixels in few bytes."""

    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "image",
    [_png(60_000, 60_000), b"no image", b""],
    ids=["bomb", "text", "empty"],
)
def test_hostile_image_is_one_line(image, tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    write_tfds(tmp_path)
    shape = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": tfds.features.Scalar(np.int64)}
    described = tfds.features.FeaturesDict(shape)
    path = tmp_path / "tiny" / "1.0.0" / "tiny-train.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(25):
        writer.write(described.serialize_example({"image": image, "label": 0}))
    writer.close()
    with pytest.raises(OSError, match="cannot be decoded") as caught:
        load_dataset("tiny", data_dir=tmp_path)
    assert "\n" not in str(caught.value)

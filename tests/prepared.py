"""Data sets as TFDS itself lays them out, written for a test."""

import io
import json

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image


def write_tfds(
    root,
    name="tiny",
    *,
    images=None,
    feature=None,
    splits=("train", "test"),
    file_format="array_record",
    key="image",
):
    """Write a prepared TFDS data set as TFDS itself lays it out; return its images by split."""
    rng = np.random.default_rng(len(name))
    if images is None:
        images = {s: rng.integers(0, 256, (25, 4, 4, 3), dtype=np.uint8) for s in splits}
    feature = feature or tfds.features.Image(shape=(4, 4, 3))
    features = tfds.features.FeaturesDict({key: feature, "label": tfds.features.Scalar(np.int64)})
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    for split, rows in images.items():
        path = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in rows:
            example = {key: as_png(row) if feature_is_image(feature) else row, "label": 0}
            writer.write(features.serialize_example(features.encode_example(example)))
        writer.close()
    info = {
        "fileFormat": file_format,
        "name": name,
        "version": "1.0.0",
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(rows))],
            }
            for split, rows in images.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    return images


def feature_is_image(feature) -> bool:
    return isinstance(feature, tfds.features.Image)


def as_png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer

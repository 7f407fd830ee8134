"""File operations in folders that may be damaged or a stranger's."""

import json
import os
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.runtime import files, npz

WRITERS = {
    "bytes": lambda path: files.write_file(path, lambda file: file.write(b"new")),
    "text": lambda path: files.write_text(path, "new"),
    "json": lambda path: files.write_json(path, "new"),
}
READERS = {"bytes": files.read_bytes, "json": files.read_json, "npz": npz.read_npz}


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_write_replaces_a_link(write, tmp_path, outside):
    link = tmp_path / "link"
    link.symlink_to(outside)
    write(link)
    assert outside.read_text() == "mine" and "new" in link.read_text() and not link.is_symlink()


def test_failed_write_leaves_the_previous_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fail(file):
        file.write(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        files.write_file(path, fail)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_append_refuses_links_and_special_files(tmp_path, outside):
    for target in (outside, tmp_path / "missing"):
        link = tmp_path / f"to_{target.name}"
        link.symlink_to(target)
        with pytest.raises(OSError, match="link"):
            files.open_append(link)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="fifo"):
        files.open_append(tmp_path / "fifo")
    assert outside.read_text() == "mine" and not (tmp_path / "missing").exists()


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_read_refuses_special_files_at_once(read, tmp_path, outside):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "device").symlink_to("/dev/zero")
    failures = []

    def attempt():
        for name in ("fifo", "link", "device", "."):
            try:
                read(tmp_path / name)
            except OSError:
                failures.append(name)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert failures == ["fifo", "link", "device", "."]
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 10**5, "NaN", '{"a": Infinity}', "9" * 10**4, "\udcff", "\x00"],
    ids=["empty", "cut", "deep", "nan", "infinity", "digits", "no utf-8", "zero"],
)
def test_damaged_json_is_one_error(text, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"file\.json is damaged"):
        files.read_json(path)


def test_large_files_are_refused_by_their_size(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40)
    for read in READERS.values():
        with pytest.raises(ValueError, match="bytes, expected at most"):
            read(path)


def test_json_has_null_for_nonfinite_numbers(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": [1.5, float("nan")], "b": (float("inf"), -float("inf"), "nan")})
    strict = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert strict == {"a": [1.5, None], "b": [None, None, "nan"]} == files.read_json(path)


def test_npz_round_trip(tmp_path):
    path = tmp_path / "file.npz"
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asarray(3),
        "c": np.zeros((0, 2), np.uint8),
    }
    files.write_file(path, lambda file: np.savez(file, **arrays))
    loaded = npz.read_npz(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def _promise(path: Path, shape: str, dtype: str = "<f8", compression=zipfile.ZIP_STORED):
    """Write an archive whose header promises an array that the file does not hold."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", content)


@pytest.mark.parametrize(
    "options",
    [
        {"shape": "(1000000000000,)"},
        {"shape": "(-1,)"},
        {"shape": "(2, "},
        {"shape": "(1,)", "dtype": "|O"},
        {"shape": "(1,)", "compression": zipfile.ZIP_DEFLATED},
    ],
    ids=["huge", "negative", "cut", "pickle", "compressed"],
)
def test_hostile_npz_is_damaged(options, tmp_path):
    path = tmp_path / "file.npz"
    _promise(path, **options)
    with pytest.raises(ValueError, match=r"file\.npz is damaged"):
        npz.read_npz(path)


def test_flipped_npz_is_damaged_or_equal(tmp_path):
    path = tmp_path / "file.npz"
    array = np.arange(40.0)
    np.savez(path, a=array)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 200):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            loaded = npz.read_npz(path)
        except ValueError:
            continue
        # the names of members have no checksum
        assert all(np.array_equal(value, array) for value in loaded.values())


def test_tree_without_links(tmp_path, outside):
    run = tmp_path / "run"
    (run / "a" / "b").mkdir(parents=True)
    (run / "a" / "file").write_text("")
    files.check_tree(run)
    files.check_tree(tmp_path / "missing")
    (tmp_path / "elsewhere").symlink_to(run)
    files.check_tree(tmp_path / "elsewhere")
    link = run / "a" / "b" / "link"
    for target in (outside, tmp_path, tmp_path / "missing"):
        link.symlink_to(target)
        with pytest.raises(OSError, match="link is a link"):
            files.check_tree(run)
        link.unlink()
    os.mkfifo(link)
    with pytest.raises(OSError, match="link is a special file"):
        files.check_tree(run)


def test_temporary_files_are_removed(tmp_path, monkeypatch):
    (tmp_path / "a.new").write_text("of the user")
    monkeypatch.setattr(Path, "replace", lambda self, target: os._exit)
    files.write_text(tmp_path / "file", "killed before the rename")
    assert len(os.listdir(tmp_path)) == 2
    files.remove_temporary(tmp_path)
    assert os.listdir(tmp_path) == ["a.new"]


def test_make_folder_refuses_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is a link"):
        files.make_folder(tmp_path / "link")
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="exists"):
        files.make_folder(tmp_path / "file")

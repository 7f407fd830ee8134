"""Paths that a user gives."""

from pathlib import Path

import pytest

from vdm_jax.runtime.paths import check_workdir, local_path


@pytest.mark.parametrize("door", [local_path, check_workdir])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://bucket/run", "expected a path on this machine, found 'gs://bucket/run'; buckets"),
        ("s3://bucket", "expected a path on this machine"),
        ("file:///tmp/x", "expected a path on this machine"),
        (
            Path("gs://bucket/run"),
            "expected a path on this machine, found 'gs:/bucket/run'; buckets",
        ),
        ("", "expected a path, found ''"),
        ("a\0b", r"expected a path, found 'a\x00b'"),
        ("~nobody-of-that-name/x", "has no home folder here"),
        (None, "expected a path, found None"),
        (3, "expected a path, found 3"),
        (b"run", "expected a path, found b'run'"),
    ],
)
def test_what_is_no_folder_here(door, path, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        door(path, "workdir")
    assert str(caught.value).startswith("workdir: ") and message in str(caught.value)


def test_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, expected in {
        "~/run": tmp_path / "run",
        "~": tmp_path,
        "a/~/b": Path("a/~/b"),
        "C:/x": Path("C:/x"),
        "a:b": Path("a:b"),
        "./gs:/x": Path("gs:/x"),
        tmp_path: tmp_path,
    }.items():
        assert check_workdir(path) == local_path(path, "x") == expected


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        NotADirectoryError, match=r"^--workdir: expected a folder, found the file '"
    ):
        check_workdir(tmp_path / "file", "--workdir")

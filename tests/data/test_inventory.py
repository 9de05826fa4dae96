"""Inventories: what changed is named, what did not is not read again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fewlabel.core.errors import DataError
from fewlabel.core.files import sha256_file
from fewlabel.data import inventory
from fewlabel.data.inventory import Inventory, difference, take

LONG_AGO = 1_600_000_000_000_000_000


def write(path: Path, text: str, mtime_ns: int = LONG_AGO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for name in ("images/a.png", "images/b.png", "masks/a.png", "train.txt"):
        write(root / name, f"content of {name}")
    write(root / ".cache/x", "hidden")
    write(root / "images/.DS_Store", "hidden")
    return root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(inventory, "sha256_file", counted)
    return names


def test_names_sizes_times_and_hashes(root):
    taken = take(root)
    assert list(taken.files) == ["images/a.png", "images/b.png", "masks/a.png", "train.txt"]
    entry = taken.files["train.txt"]
    assert entry == (len("content of train.txt"), LONG_AGO, sha256_file(root / "train.txt"))
    assert list(take(root / "train.txt").files) == ["train.txt"]


def test_file_there_and_back(root, tmp_path):
    taken = take(root)
    taken.save(tmp_path / "out/inventory.json")
    assert Inventory.load(tmp_path / "out/inventory.json") == taken
    for text in ("{}", "[]", '{"taken_ns": 1, "files": {"a": "1 2"}}', '{"taken_ns": 1, "files": {"a": 3}}', "x"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match="bad.json"):
            Inventory.load(tmp_path / "bad.json")


def test_each_kind_of_change_is_named(root):
    old = take(root)
    assert difference(old, old) == ""
    for number in range(5):
        write(root / f"images/n{number}.png", "new")
    (root / "masks/a.png").unlink()
    write(root / "train.txt", "content of train.tx2", LONG_AGO + 1)  # the same size
    new = take(root, old)
    assert difference(old, new) == (
        "5 files were added (images/n0.png, images/n1.png, images/n2.png and 2 more), "
        "1 file was removed (masks/a.png), 1 file was changed (train.txt)"
    )
    assert difference(new, old).startswith("1 file was added (masks/a.png), 5 files were removed")
    assert old.sha256 != new.sha256


def test_only_files_of_another_size_or_time_are_read_again(root, read):
    old = take(root)
    assert len(read) == 4
    read.clear()
    assert take(root, old).files == old.files and read == []
    write(root / "images/a.png", "content of images/a.png", LONG_AGO + 5)  # touched
    write(root / "images/b.png", "longer than it was before")
    new = take(root, old)
    assert read == ["a.png", "b.png"] and difference(old, new) == "1 file was changed (images/b.png)"
    assert new.files["images/a.png"].mtime_ns == LONG_AGO + 5


def test_a_file_changed_while_it_was_hashed_is_read_again(root, read):
    fresh = take(root)
    recent = fresh.taken_ns - 1_000_000_000
    write(root / "train.txt", "one", recent)
    old = take(root, fresh)
    read.clear()
    write(root / "train.txt", "two", recent)  # the same size within one tick of the clock
    assert difference(old, take(root, old)) == "1 file was changed (train.txt)" and read == ["train.txt"]


def test_a_copy_is_no_change(root, tmp_path):
    old = take(root)
    shutil.copytree(root, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path)
    new = take(tmp_path / "copy", old)
    assert difference(old, new) == "" and new.sha256 == old.sha256


def test_a_renamed_file_is_a_change(root):
    old = take(root)
    (root / "images/a.png").rename(root / "images/c.png")
    new = take(root, old)
    assert difference(old, new) == "1 file was added (images/c.png), 1 file was removed (images/a.png)"
    assert new.sha256 != old.sha256


def test_linked_folders_are_entered_once(root, tmp_path):
    write(tmp_path / "elsewhere/z.png", "far")
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (root / "images/loop").symlink_to(root)
    assert set(take(root).files) == {"images/a.png", "images/b.png", "masks/a.png", "train.txt", "far/z.png"}
    (root / "gone").symlink_to(tmp_path / "nothing")
    assert "gone" not in take(root).files


def test_what_cannot_be_read_is_said(root, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nowhere does not exist"):
        take(tmp_path / "nowhere")

    def denied(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(inventory, "sha256_file", denied)
    with pytest.raises(DataError, match=r"a.png cannot be read \(Permission denied\): change its rights"):
        take(root)


def test_a_name_that_is_not_utf8_is_a_name(root, tmp_path):
    plain = take(root)
    name = os.fsdecode(b"images/caf\xe9.png")
    try:
        write(root / name, "content")
    except OSError:
        pytest.skip("this file system refuses such names")
    taken = take(root)
    taken.save(tmp_path / "inventory.json")
    assert Inventory.load(tmp_path / "inventory.json") == taken and name in taken.files
    assert taken.sha256 == take(root, taken).sha256 != plain.sha256
    assert difference(plain, taken) == f"1 file was added ({name})"
    (root / name).rename(root / os.fsdecode(b"images/caf\xe8.png"))
    assert take(root).sha256 != taken.sha256

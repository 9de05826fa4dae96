"""Atomic files and folder swaps, with a kill at every rename."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewlabel.core import files
from fewlabel.core.errors import DataError


def test_atomic_path_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "value.txt"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["value.txt"]


def test_rejected_table_survives_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    rows = [("a", tmp_path / "a, b.png", 'said "no"'), ("c", tmp_path / "c.png", "two\nlines")]
    files.write_rejected(tmp_path / "out" / "rejected.csv", rows)
    with (tmp_path / "out" / "rejected.csv").open(newline="", encoding="utf-8") as stream:
        head, *found = csv.reader(stream)
    assert head == ["id", "file", "reason"]
    assert found == [[id, str(file), reason] for id, file, reason in rows]
    files.write_rejected(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text() == "id,file,reason\n"


def test_read_json_names_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(DataError, match="broken.json is not valid JSON"):
        files.read_json(broken)
    with pytest.raises(DataError, match="absent.json does not exist"):
        files.read_json(tmp_path / "absent.json")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"Pd": float("nan"), "list": [float("inf"), 1.5], "text": "NaN"})
    assert files.read_json(tmp_path / "a.json") == {"Pd": None, "list": [None, 1.5], "text": "NaN"}


def test_replace_folder_swaps_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    for text in ("one", "two"):
        with files.replace_folder(folder) as fresh:
            (fresh / "value").write_text(text)
    assert (folder / "value").read_text() == "two"
    with pytest.raises(RuntimeError), files.replace_folder(folder) as fresh:
        (fresh / "value").write_text("three")
        raise RuntimeError
    assert (folder / "value").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


KILLER = """
import os, sys
from pathlib import Path
from fewlabel.core import files
folder, when = Path(sys.argv[1]), int(sys.argv[2])
count = 0
rename = Path.rename
def counting(self, target):
    global count
    if count == when:
        os._exit(9)
    count += 1
    return rename(self, target)
Path.rename = counting
with files.replace_folder(folder) as fresh:
    (fresh / "value").write_text("new")
"""


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_kill_between_renames_leaves_old_or_new(tmp_path: Path, when: int) -> None:
    folder = tmp_path / "state"
    with files.replace_folder(folder) as fresh:
        (fresh / "value").write_text("old")
    ended = subprocess.run([sys.executable, "-c", KILLER, str(folder), str(when)], check=False)
    assert ended.returncode == 9
    files.recover_folder(folder)
    assert (folder / "value").read_text() == ("old" if when == 0 else "new")
    with files.replace_folder(folder) as fresh:
        (fresh / "value").write_text("newer")
    assert (folder / "value").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(path) == expected
    assert files.sha256_json({"a": 1, "b": [2]}) == files.sha256_json({"b": [2], "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


BAD = os.fsdecode(b"caf\xe9 \xff.png")  # a name in Latin-1


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", f"é {BAD}")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == r"é caf\udce9 \udcff.png"
    files.write_rejected(tmp_path / "a.csv", [(BAD, tmp_path / BAD, "broken")])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as stream:
        shown = r"caf\udce9 \udcff.png"
        assert list(csv.reader(stream))[1] == [shown, f"{tmp_path}/{shown}", "broken"]


def test_json_gives_names_back_that_are_not_utf8(tmp_path: Path) -> None:
    value = {BAD: ["\\" + BAD, "é"], "plain": r"\udce9"}  # a backslash before, and the escape as a name of its own
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert json.loads((tmp_path / "a.json").read_text(encoding="ascii", errors="ignore"))  # other readers parse it


def test_hashes_of_names_that_are_not_utf8() -> None:
    assert files.sha256_json({BAD: 1}) == files.sha256_json({os.fsdecode(os.fsencode(BAD)): 1})
    others = [BAD, BAD.replace("\udce9", "\udce8"), BAD.replace("\udce9", r"\udce9"), "café \xff.png"]
    assert len({files.sha256_json(name) for name in others}) == len(others)
    digest = "7ab44b65251d851a"  # records of earlier versions stay true
    assert files.sha256_json({"é": "ü"})[:16] == digest

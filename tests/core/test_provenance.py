import re
import subprocess
from pathlib import Path

import pytest

from fewlabel.core.provenance import commit, processor


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init", "-q")
    git("config", "user.email", "nobody@example.org")
    git("config", "user.name", "nobody")
    for name in ("src/code.py", "benchmarks/speed/results/a.json", "docs/speed.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    return tmp_path


def test_commit_is_named_by_its_short_hash_from_any_folder_of_the_checkout(checkout: Path) -> None:
    assert re.fullmatch(r"[0-9a-f]{7,}", commit(checkout))
    assert commit(checkout / "src") == commit(checkout)


@pytest.mark.parametrize("name", ["src/code.py", "src/new.py", "benchmarks/speed/run.py"])
def test_changed_and_new_code_is_marked(checkout: Path, name: str) -> None:
    (checkout / name).write_text("2")
    assert commit(checkout / "benchmarks" / "speed").endswith("-dirty")


def test_what_a_measurement_writes_is_no_change_of_the_code(checkout: Path) -> None:
    (checkout / "benchmarks/speed/results/a.json").write_text("2")
    (checkout / "benchmarks/speed/results/b.json").write_text("2")
    (checkout / "docs/speed.md").write_text("2")
    assert not commit(checkout).endswith("-dirty")


def test_outside_a_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"


def test_processor_says_how_many_cores() -> None:
    assert re.search(r".+, \d+ cores$", processor())

"""The list of public sets: complete entries, and names that are found or explained."""

import re
import subprocess
import sys

import pytest

from fewlabel.core.errors import RunError
from fewlabel.data.fetch.catalogue import SETS, find_set


@pytest.mark.parametrize("entry", SETS, ids=lambda entry: entry.name)
def test_entries_are_complete(entry) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", entry.name)
    assert entry.images > 0 and entry.archives
    assert all((entry.title, entry.licence, entry.citation, entry.layout, entry.home.startswith("http")))
    for archive in entry.archives:
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
        assert archive.size is None or archive.size > 0
        assert archive.urls and archive.urls[0].startswith("https://")
        assert all(url.endswith("/" + archive.file) for url in archive.urls)
        assert "/" not in archive.file and "/" not in archive.into


def test_names_and_hashes_are_not_shared() -> None:
    hashes = [archive.sha256 for entry in SETS for archive in entry.archives]
    assert len({entry.name for entry in SETS}) == len(SETS)
    assert len(set(hashes)) == len(hashes)


def test_sizes_add_up_or_are_unknown() -> None:
    assert find_set("bbbc039").size == 77_915_748 + 2_753_811 + 17_816
    assert find_set("bbbc038").size is None


def test_an_unknown_name_gets_the_list() -> None:
    with pytest.raises(RunError, match=r"'imagenet' in the list: choose one of bbbc038, .*voc2012\."):
        find_set("imagenet")


def test_the_list_is_light() -> None:
    code = "import sys, fewlabel.data.fetch.catalogue, fewlabel.data.fetch.get\n"
    code += "print(sorted({'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

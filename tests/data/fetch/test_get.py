"""Fetching a set: whole or not at all, resumed after a kill, never over what is there."""

import datetime
import fcntl
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from fewlabel.core.errors import DataError, RunError
from fewlabel.core.files import replace_folder
from fewlabel.data.fetch.archive import Limits
from fewlabel.data.fetch.catalogue import Archive, PublicSet
from fewlabel.data.fetch.get import SOURCE, fetch

IMAGES = {f"images/{i}.png": random.Random(i).randbytes(50_000) for i in range(8)}
MASKS = {f"{i}.png": bytes([i]) for i in range(8)}


def zipped(files: dict[str, bytes]) -> bytes:
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return store.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    store = io.BytesIO()
    with tarfile.open(fileobj=store, mode="w:gz") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return store.getvalue()


def offer(site, bodies: dict[str, bytes], into: dict[str, str] | None = None) -> PublicSet:
    archives = tuple(
        Archive(name, hashlib.sha256(body).hexdigest(), len(body), (site.give(name, body),), (into or {}).get(name, ""))
        for name, body in bodies.items()
    )
    return PublicSet("small", "a small set", "http://home", 8, "CC0", "Nobody: Nothing", "images, masks", archives)


@pytest.fixture
def public(site) -> PublicSet:
    return offer(site, {"images.zip": zipped(IMAGES), "masks.tar.gz": tarred(MASKS)}, {"masks.tar.gz": "masks"})


def data_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {**IMAGES, **{f"masks/{name}": body for name, body in MASKS.items()}}


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "empty folder"])
def test_a_set_arrives_whole(there: bool, public: PublicSet, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "set"
    if there:
        folder.mkdir(parents=True)
    found = fetch(public, folder, accepted=True)
    data = data_in(folder)
    source = json.loads(data.pop(SOURCE))
    assert data == EXPECTED
    assert found.files == 17 and found.size >= sum(map(len, EXPECTED.values())) and found.folder == folder
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    assert source["name"] == "small" and source["licence"] == "CC0" and source["citation"] == "Nobody: Nothing"
    assert datetime.date.fromisoformat(source["fetched"])
    assert source["archives"][0] == {
        "file": "images.zip",
        "bytes": len(zipped(IMAGES)),
        "sha256": public.archives[0].sha256,
        "urls": list(public.archives[0].urls),
    }


def test_nothing_is_asked_before_the_licence_is_accepted(public: PublicSet, site, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"licence of small \(CC0\) is not accepted"):
        fetch(public, tmp_path / "set", accepted=False)
    assert site.asked == [] and list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(public: PublicSet, site, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="set is not empty"):
        fetch(public, folder, accepted=True)
    with pytest.raises(RunError, match="mine.txt is a file"):
        fetch(public, folder / "mine.txt", accepted=True)
    assert site.asked == [] and data_in(tmp_path) == {"set/mine.txt": b"mine"}


def test_a_folder_that_holds_the_set_says_so(public: PublicSet, tmp_path: Path) -> None:
    fetch(public, tmp_path / "set", accepted=True)
    with pytest.raises(RunError, match=r"holds small already \(see SOURCE.json\)"):
        fetch(public, tmp_path / "set", accepted=True)


def test_what_appears_meanwhile_is_not_replaced(public: PublicSet, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "set"
    from fewlabel.data.fetch import get

    def unpack_and_meddle(*arguments: object) -> object:
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")
        return original(*arguments)

    original = get.unpack
    monkeypatch.setattr(get, "unpack", unpack_and_meddle)
    with pytest.raises(RunError, match="is not empty"):
        fetch(public, folder, accepted=True)
    assert data_in(folder) == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    "bad",
    [zipped({"a.png": b"1", "../out.png": b"2"}), tarred({"a.png": b"1", SOURCE: b"{}"}), b"no archive"],
    ids=["slip", "own SOURCE.json", "no archive"],
)
def test_a_hostile_archive_leaves_no_folder(bad: bytes, site, tmp_path: Path) -> None:
    public = offer(site, {"images.zip": zipped(IMAGES), "bad.bin": bad})
    with pytest.raises(DataError, match="bad.bin"):
        fetch(public, tmp_path / "set", accepted=True)
    assert [path.name for path in tmp_path.iterdir()] == [".set.download"]


def test_limits_are_passed_on(public: PublicSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 7"):
        fetch(public, tmp_path / "set", accepted=True, limits=Limits(files=7))
    assert not (tmp_path / "set").exists()


def test_a_wrong_hash_is_never_unpacked(site, tmp_path: Path) -> None:
    public = offer(site, {"images.zip": zipped(IMAGES)})
    site.files["images.zip"] = zipped({**IMAGES, "images/0.png": random.Random(99).randbytes(50_000)})
    with pytest.raises(DataError, match="SHA-256"):
        fetch(public, tmp_path / "set", accepted=True)
    assert list(tmp_path.iterdir()) == []


def test_two_at_a_time_are_refused(public: PublicSet, tmp_path: Path) -> None:
    with (tmp_path / ".set.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="Another process is fetching"):
            fetch(public, tmp_path / "set", accepted=True)
    assert fetch(public, tmp_path / "set", accepted=True).files == 17


def test_a_swap_that_was_cut_short_is_finished(public: PublicSet, site, tmp_path: Path) -> None:
    fetch(public, tmp_path / "set", accepted=True)
    (tmp_path / "set").rename(tmp_path / ".set.ready")  # as after a kill between the two renames of `replace_folder`
    asked = len(site.asked)
    assert fetch(public, tmp_path / "set", accepted=True).files == 17
    assert len(site.asked) == asked and [path.name for path in tmp_path.iterdir()] == ["set"]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from fewlabel.data.fetch import archive, get
from fewlabel.data.fetch.catalogue import Archive, PublicSet
public = eval(sys.argv[1])
if sys.argv[3] == "unpack":
    make, made = archive._Writer.make_file, []
    def make_and_die(self, path, source):
        make(self, path, source)
        made.append(path)
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    archive._Writer.make_file = make_and_die
get.fetch(public, Path(sys.argv[2]), accepted=True)
"""


def start(public: PublicSet, folder: Path, where: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, repr(public), str(folder), where], env={**os.environ})


def test_a_kill_while_downloading_leaves_nothing_and_is_resumed(public: PublicSet, site, tmp_path: Path) -> None:
    site.breaks, site.stall = [200_000], 30.0
    process = start(public, tmp_path / "set", "download")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not _kept(tmp_path):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = _kept(tmp_path)
    assert kept > 0 and not (tmp_path / "set").exists()
    fetch(public, tmp_path / "set", accepted=True)
    assert site.asked[1] == ("images.zip", f"bytes={kept}-")
    assert {name: body for name, body in data_in(tmp_path / "set").items() if name != SOURCE} == EXPECTED
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def _kept(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(".set.download/*.part"))


def test_a_kill_while_unpacking_leaves_nothing_and_needs_no_second_download(
    public: PublicSet, site, tmp_path: Path
) -> None:
    process = start(public, tmp_path / "set", "unpack")
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "set").exists() and (tmp_path / ".set.filling" / "images").is_dir()
    assert len(site.asked) == 2
    assert fetch(public, tmp_path / "set", accepted=True).files == 17
    assert len(site.asked) == 2 and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_folders_are_swapped_by_the_house_rule(tmp_path: Path) -> None:
    """The names that the tests above look for are those of `replace_folder`."""
    with replace_folder(tmp_path / "set") as fresh:
        assert fresh.name == ".set.filling"

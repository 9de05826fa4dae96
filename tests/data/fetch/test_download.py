"""Downloads from a local server: whole, resumed, refused, and explained when they fail."""

import hashlib
import random
import shutil
import socket
from pathlib import Path

import pytest

from fewlabel.core.errors import DataError, RunError
from fewlabel.data.fetch.catalogue import Archive
from fewlabel.data.fetch.download import ATTEMPTS, BLOCK, download, megabytes

BODY = random.Random(0).randbytes(3 * BLOCK + 17)


def archive_of(body: bytes, *urls: str, size: bool = True) -> Archive:
    return Archive("data.zip", hashlib.sha256(body).hexdigest(), len(body) if size else None, urls)


def part_of(archive: Archive, folder: Path) -> Path:
    return folder / f"{archive.sha256[:12]}-{archive.file}.part"


@pytest.mark.parametrize("size", [True, False], ids=["size known", "size unknown"])
def test_a_whole_file_arrives_and_is_kept(size: bool, site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY), size=size)
    done = download(archive, tmp_path)
    assert done.read_bytes() == BODY and list(tmp_path.iterdir()) == [done]
    assert download(archive, tmp_path) == done and len(site.asked) == 1


def test_without_a_length_the_hash_decides(site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY), size=False)
    site.lengths["data.zip"] = None
    assert download(archive, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("size", [True, False], ids=["size known", "size unknown"])
def test_a_break_is_resumed_by_range(size: bool, site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY), size=size)
    site.breaks = [BLOCK, BLOCK]
    assert download(archive, tmp_path).read_bytes() == BODY
    assert [asked for _, asked in site.asked] == [None, f"bytes={BLOCK}-", f"bytes={2 * BLOCK}-"]


def test_many_breaks_end_the_call_and_the_next_one_goes_on(site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY))
    site.breaks = [100] * ATTEMPTS
    with pytest.raises(RunError, match=rf"broke off .*{100 * ATTEMPTS} bytes are kept and the same command goes on"):
        download(archive, tmp_path)
    assert part_of(archive, tmp_path).stat().st_size == 100 * ATTEMPTS
    assert download(archive, tmp_path).read_bytes() == BODY
    assert site.asked[-1] == ("data.zip", f"bytes={100 * ATTEMPTS}-")


def test_a_server_without_ranges_starts_again(site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY))
    site.ranges = False
    site.breaks = [BLOCK]
    assert download(archive, tmp_path).read_bytes() == BODY


def test_a_range_from_elsewhere_is_not_appended(site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY))
    site.breaks, site.shift = [BLOCK], 5
    assert download(archive, tmp_path).read_bytes() == BODY
    assert [asked for _, asked in site.asked] == [None, f"bytes={BLOCK}-", None]


@pytest.mark.parametrize("size", [True, False], ids=["size known", "size unknown"])
def test_a_complete_part_is_verified_not_fetched(size: bool, site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY), size=size)
    part_of(archive, tmp_path).write_bytes(BODY)
    assert download(archive, tmp_path).read_bytes() == BODY
    assert site.asked == ([] if size else [("data.zip", f"bytes={len(BODY)}-")])


@pytest.mark.parametrize("size", [True, False], ids=["size known", "size unknown"])
def test_a_part_that_is_too_long_starts_again(size: bool, site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY), size=size)
    part_of(archive, tmp_path).write_bytes(BODY + b"more")
    assert download(archive, tmp_path).read_bytes() == BODY


def test_a_wrong_hash_is_refused_and_removed(site, tmp_path: Path) -> None:
    other = bytes(len(BODY))
    archive = archive_of(BODY, site.give("data.zip", other))
    with pytest.raises(DataError, match=f"SHA-256 {hashlib.sha256(other).hexdigest()}, not {archive.sha256}"):
        download(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_kept_file_that_was_changed_is_fetched_again(site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY))
    done = download(archive, tmp_path)
    done.write_bytes(b"changed")
    assert download(archive, tmp_path).read_bytes() == BODY


def test_the_next_address_is_tried(site, tmp_path: Path) -> None:
    gone, wrong, good = f"{site.url}/gone.zip", site.give("wrong.zip", bytes(len(BODY))), site.give("good.zip", BODY)
    assert download(archive_of(BODY, gone, wrong, good), tmp_path).read_bytes() == BODY
    assert [path for path, _ in site.asked] == ["gone.zip", "wrong.zip", "good.zip"]


def test_a_second_address_goes_on_from_the_first(site, tmp_path: Path) -> None:
    first, second = site.give("first.zip", BODY), site.give("second.zip", BODY)
    site.breaks = [100] * ATTEMPTS
    assert download(archive_of(BODY, first, second), tmp_path).read_bytes() == BODY
    assert site.asked[-1] == ("second.zip", f"bytes={100 * ATTEMPTS}-")


def test_another_size_is_refused_before_it_is_fetched(site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", b"please log in"))
    with pytest.raises(RunError, match=f"offers 13 bytes where the catalogue has {len(BODY)}"):
        download(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_more_than_promised_is_refused_and_no_other_address_goes_on_from_it(site, tmp_path: Path) -> None:
    first = site.give("first.zip", bytes(len(BODY) + BLOCK))
    site.lengths["first.zip"] = None
    with pytest.raises(RunError, match=f"sends more than the {len(BODY)} bytes"):
        download(archive_of(BODY, first), tmp_path)
    archive = archive_of(BODY, first, site.give("second.zip", BODY))
    assert download(archive, tmp_path).read_bytes() == BODY
    assert site.asked[-1] == ("second.zip", None)


def test_a_giant_of_unknown_size_is_refused(site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY), size=False)
    site.lengths["data.zip"] = 10**13
    with pytest.raises(RunError, match="more than the 4000000000"):
        download(archive, tmp_path)


def test_not_found_is_one_sentence(site, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"^data.zip could not be fetched: http://\S+/x.zip answers 404 Not Found; [^.]+\.$"
    ):
        download(archive_of(BODY, f"{site.url}/x.zip"), tmp_path)


def test_no_server_and_no_host(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else takes the port, and connections are refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(RunError, match="refuses the connection"):
            download(archive_of(BODY, f"http://127.0.0.1:{taken.getsockname()[1]}/data.zip"), tmp_path)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: object, **named: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match=r"example.org/data.zip cannot be found \(no network, or no such host\)"):
        download(archive_of(BODY, "https://example.org/data.zip"), tmp_path)


def test_a_server_that_falls_silent_counts_as_a_break(site, tmp_path: Path) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY))
    site.breaks, site.stall = [BLOCK], 2.0
    assert download(archive, tmp_path, timeout=0.2).read_bytes() == BODY
    assert site.asked[-1] == ("data.zip", f"bytes={BLOCK}-")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_seen_before_and_while_writing(site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(BODY, site.give("data.zip", BODY))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RunError, match="0 MB free, but data.zip needs 1 MB"):
        download(archive, tmp_path)
    monkeypatch.undo()
    part_of(archive, tmp_path).symlink_to("/dev/full")  # every write fails as on a full disk
    with pytest.raises(RunError, match=f"The disk of {tmp_path} is full: free some space"):
        download(archive, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_at_the_last_bytes_is_seen(site, tmp_path: Path) -> None:
    archive = archive_of(b"few", site.give("data.zip", b"few"))  # buffered: the write fails when the file is closed
    part_of(archive, tmp_path).symlink_to("/dev/full")
    with pytest.raises(RunError, match="is full"):
        download(archive, tmp_path)


def test_progress_counts_megabytes_and_ends_once(capsys: pytest.CaptureFixture[str]) -> None:
    with megabytes("data.zip", 2_500_000) as report:
        for done in range(0, 2_500_001, 50_000):
            report(done)
        report(2_500_000)
    assert capsys.readouterr().err.count("data.zip (MB): 3/3") == 1
    with megabytes("data.zip", None) as report:
        report(5)
    assert capsys.readouterr().err == ""

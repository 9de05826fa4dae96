"""Archives: honest ones come out whole, hostile ones are refused and reach nothing outside the folder."""

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.data.fetch.archive import Limits, Unpacked, _Writer, entry_path, unpack

FILES = {
    "images/a.png": b"picture",
    "images/b.png": b"",
    "masks/deep/er/a.png": bytes(range(256)) * 40,
    "list.txt": b"a\n",
}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w", method) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return store.getvalue()


def zip_entry(info: zipfile.ZipInfo, body: bytes = b"x") -> bytes:
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as archive:
        archive.writestr("first.txt", b"first")
        archive.writestr(info, body)
    return store.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tarred(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    store = io.BytesIO()
    with tarfile.open(fileobj=store, mode="w", format=format) as archive:
        for info, body in members:
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return store.getvalue()


def plain_tar(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    return tarred(*((member(name), body) for name, body in files.items()), format=format)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "inner" / "out"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(body: bytes) -> Path:
        path = tmp_path / "archive"
        path.write_bytes(body)
        return path

    return write


@pytest.mark.parametrize(
    "body",
    [
        zipped(FILES),
        zipped(FILES, zipfile.ZIP_STORED),
        plain_tar(FILES),
        plain_tar(FILES, tarfile.GNU_FORMAT),
        plain_tar(FILES, tarfile.USTAR_FORMAT),
        gzip.compress(plain_tar(FILES)),
    ],
    ids=["zip", "zip stored", "pax", "gnu", "ustar", "tar.gz"],
)
def test_honest_archives_come_out_whole(body: bytes, put, out: Path) -> None:
    seen: list[int] = []
    archive = put(body)
    found = unpack(archive, out, report=seen.append)
    assert files_in(out) == FILES
    assert found == Unpacked(len(FILES), sum(map(len, FILES.values())))
    assert seen == sorted(seen) and 0 < seen[-1] <= archive.stat().st_size


def test_long_names_folders_and_dots(put, out: Path) -> None:
    long = "/".join(["folder" * 10] * 5) + "/" + "name" * 20 + ".png"
    folder = member("./only/", tarfile.DIRTYPE)
    body = tarred(
        (member("./", tarfile.DIRTYPE), b""), (folder, b""), (member("./" + long), b"1"), (member("a//b"), b"2")
    )
    unpack(put(body), out)
    assert files_in(out) == {long: b"1", "a/b": b"2"} and (out / "only").is_dir()


def test_what_macos_adds_is_left_out(put, out: Path) -> None:
    unpack(put(zipped({"a.png": b"a", "__MACOSX/._a.png": b"j", "x/._b.png": b"j", ".DS_Store": b"j"})), out)
    assert files_in(out) == {"a.png": b"a"}


def test_names_without_flag_are_read_as_utf8(put, out: Path) -> None:
    info = zipfile.ZipInfo("é.png")
    body = zip_entry(info)
    assert body.count("é.png".encode()) == 2  # local header and directory
    unpack(put(_clear_utf8_flag(body)), out)
    assert set(files_in(out)) == {"first.txt", "é.png"}


def test_nothing_is_executable(put, out: Path) -> None:
    info = member("run.sh")
    info.mode = 0o6777
    unpack(put(tarred((info, b"#!/bin/sh"))), out)
    assert (out / "run.sh").stat().st_mode & 0o6111 == 0


# --- hostile ---------------------------------------------------------------------------------------------------------


def _clear_utf8_flag(body: bytes) -> bytes:
    """The zip without the flag that says names are UTF-8, in all local headers and the directory."""
    data = bytearray(body)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(signature)
        while start >= 0:
            flags = struct.unpack_from("<H", data, start + at)[0] & ~0x800
            struct.pack_into("<H", data, start + at, flags)
            start = data.find(signature, start + 4)
    return bytes(data)


def _set_flags(body: bytes, bits: int) -> bytes:
    data = bytearray(body)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<H", data, data.find(signature) + at, bits)
    return bytes(data)


def _zip_mode(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


BAD_NAMES = [
    "../out.txt",
    "a/../../out.txt",
    "a/..",
    "..",
    "/etc/out.txt",
    "//out.txt",
    "..\\out.txt",
    "a\\b.txt",
    "C:/out.txt",
    "c:out.txt",
    "new\nline.txt",
    "esc\x1b[31m.txt",
    "x" * 2000,
]

HOSTILE = {
    **{f"zip name {name[:20]!r}": (zip_entry(zipfile.ZipInfo(name)), "the name") for name in BAD_NAMES},
    **{f"tar name {name[:20]!r}": (plain_tar({"first.txt": b"1", name: b"2"}), "the name") for name in BAD_NAMES},
    "zip name with NUL": (zip_entry(zipfile.ZipInfo("a@b.txt")).replace(b"a@b.txt", b"a\0b.txt"), "the name"),
    "zip name not UTF-8": (
        _clear_utf8_flag(zip_entry(zipfile.ZipInfo("é.png")).replace("é.png".encode(), b"\xff\xfe.png")),
        "the name",
    ),
    "zip name not UTF-8 with flag": (
        zip_entry(zipfile.ZipInfo("é.png")).replace("é.png".encode(), b"\xff\xfe.png"),
        "not a whole",
    ),
    "tar name not UTF-8": (
        plain_tar({"first.txt": b"1", "\udcff\udcfe.png": b"2"}, tarfile.GNU_FORMAT),
        "the name",
    ),
    "zip symbolic link": (zip_entry(_zip_mode("link", 0o120777), b"../.."), "link or device"),
    "zip device": (zip_entry(_zip_mode("dev", 0o020666)), "link or device"),
    "zip pipe": (zip_entry(_zip_mode("pipe", 0o010666)), "link or device"),
    "zip encrypted": (_set_flags(zipped({"a": b"x"}), 0x1), "encrypted"),
    "zip strongly encrypted": (_set_flags(zipped({"a": b"x"}), 0x41), "encrypted"),
    "zip lzma": (zipped({"a": b"x" * 99}, zipfile.ZIP_LZMA), "method 14"),
    "tar symbolic link": (tarred((member("link", tarfile.SYMTYPE, "../.."), b""), (member("link/x"), b"x")), "a link"),
    "tar harmless link": (tarred((member("a"), b"a"), (member("b", tarfile.SYMTYPE, "a"), b"")), "a link"),
    "tar hard link": (tarred((member("a"), b"a"), (member("b", tarfile.LNKTYPE, "a"), b"")), "a link"),
    "tar hard link out": (tarred((member("b", tarfile.LNKTYPE, "../../archive"), b"")), "a link"),
    "tar device": (tarred((member("null", tarfile.CHRTYPE), b"")), "a device"),
    "tar block device": (tarred((member("sda", tarfile.BLKTYPE), b"")), "a device"),
    "tar pipe": (tarred((member("pipe", tarfile.FIFOTYPE), b"")), "a device"),
    "tar hidden link in junk": (tarred((member("__MACOSX/l", tarfile.SYMTYPE, "/"), b"")), "a link"),
    "tar name twice": (plain_tar({"a": b"1", "./a": b"2"}), "twice"),
    "tar file then folder": (plain_tar({"a": b"1", "a/b": b"2"}), "both as a file and as a folder"),
    "tar folder then file": (plain_tar({"a/b": b"1", "a": b"2"}), "twice"),
    "zip name twice": (zipped({"a": b"1", "./a": b"2"}), "twice"),
    "empty file": (b"", "not a whole"),
    "wrong magic": (b"<!DOCTYPE html><html>please log in</html>" * 40, "not a whole"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(600), "not a whole"),
    "gzip of text": (gzip.compress(b"hello " * 300), "not a whole"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused(kind: str, put, out: Path, tmp_path: Path) -> None:
    body, reason = HOSTILE[kind]
    archive = put(body)
    with pytest.raises(DataError, match=reason) as caught:
        unpack(archive, out)
    assert str(archive) in str(caught.value) and "\n" not in str(caught.value)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - set(out.rglob("*")) == {archive}
    assert not any(path.is_symlink() for path in out.rglob("*"))


@pytest.mark.parametrize("pack", [zipped, plain_tar, lambda files: gzip.compress(plain_tar(files))])
class TestBombs:
    def test_by_ratio(self, pack, put, out: Path) -> None:
        body = pack({"zeros": bytes(5_000_000)})
        limits = Limits(ratio=100 if len(body) < 50_000 else 0.5, free=1_000_000)  # a tar alone does not shrink
        with pytest.raises(DataError, match="times its size"):
            unpack(put(body), out, limits)
        assert sum(len(data) for data in files_in(out).values()) < 5_000_000

    def test_small_files_may_shrink_much(self, pack, put, out: Path) -> None:
        unpack(put(pack({"zeros": bytes(5_000_000)})), out)
        assert (out / "zeros").stat().st_size == 5_000_000

    def test_by_count(self, pack, put, out: Path) -> None:
        archive = put(pack({f"{i}": b"" for i in range(31)}))
        with pytest.raises(DataError, match="entries"):
            unpack(archive, out, Limits(files=30))
        assert unpack(archive, out / "..", Limits(files=31)).files == 31

    def test_by_size(self, pack, put, out: Path) -> None:
        archive = put(pack({"a": bytes(600), "b": bytes(401)}))
        with pytest.raises(DataError, match="more than 1000 bytes"):
            unpack(archive, out, Limits(size=1000))


def test_a_zip_that_lies_about_its_sizes_is_counted_while_writing(put, out: Path) -> None:
    """Many directory entries that share one stored body: each claims little, all of them write it again."""
    body = bytearray(zipped({f"{i:02d}": bytes(2_000_000) for i in range(10)}))
    start = body.find(b"PK\x01\x02")
    while start >= 0:
        struct.pack_into("<I", body, start + 24, 10)  # unpacked size in the directory
        start = body.find(b"PK\x01\x02", start + 4)
    with pytest.raises(DataError):  # the checksum of the ten bytes is wrong, and no more than they are written
        unpack(put(bytes(body)), out, Limits(free=1000, ratio=100))
    assert sum(len(data) for data in files_in(out).values()) <= 100


def test_an_endless_entry_is_stopped_while_it_is_written(put, out: Path) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            assert self.given < 1 << 23
            return bytes(size)

    writer = _Writer(put(b"small"), out, Limits(size=1 << 20, free=1 << 30))
    with pytest.raises(DataError, match="more than 1048576 bytes"):
        writer.make_file(out / "x", Endless())
    assert (out / "x").stat().st_size <= 1 << 20


def test_what_is_left_out_counts_as_well(put, out: Path) -> None:
    body = gzip.compress(plain_tar({"__MACOSX/zeros": bytes(5_000_000)}))
    with pytest.raises(DataError, match="times its size"):
        unpack(put(body), out, Limits(free=1_000_000))


def test_an_offset_before_the_start_is_refused(put, out: Path) -> None:
    body = bytearray(zipped({"a": b"1"}))
    end = body.rfind(b"PK\x05\x06")
    struct.pack_into("<I", body, end + 16, struct.unpack_from("<I", body, end + 16)[0] + 60000)
    with pytest.raises(DataError, match="not a whole"):
        unpack(put(bytes(body)), out)


def test_a_giant_header_is_not_read_into_memory(put, out: Path) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 1 << 33
    with pytest.raises(DataError, match="oversized header"):
        unpack(put(head.tobuf(tarfile.GNU_FORMAT) + bytes(4096)), out)


def test_a_sparse_file_is_refused(put, out: Path) -> None:
    info = tarfile.TarInfo("holes")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": "99999",
    }
    with pytest.raises(DataError, match="no plain file"):
        unpack(put(tarred((info, b"x"))), out)


@pytest.mark.parametrize("pack", [zipped, plain_tar, lambda files: gzip.compress(plain_tar(files))])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_archives_are_refused(pack, share: float, put, out: Path) -> None:
    files = {f"{i}": bytes([i]) * 700 for i in range(20)}
    body = pack(files)
    if pack is plain_tar:
        body = body[: 20 * (512 + 1024)]  # without the zeros behind the last entry
    with pytest.raises(DataError, match="not a whole"):
        unpack(put(body[: int(len(body) * share) + 13]), out)


def test_a_flipped_bit_is_noticed(put, out: Path) -> None:
    for body in (
        zipped({"a": bytes(range(256))}, zipfile.ZIP_STORED),
        gzip.compress(plain_tar({"a": bytes(range(256))}), 0),
    ):
        broken = bytearray(body)
        broken[body.find(bytes(range(100, 140)))] ^= 1
        with pytest.raises(DataError, match="not a whole"):
            unpack(put(bytes(broken)), out)
        (out / "a").unlink(missing_ok=True)


def test_a_gzip_that_breaks_within_a_file_is_damage_not_a_full_disk(put, out: Path) -> None:
    body = plain_tar({"a": bytes(range(256)) * 4000})
    first = bytearray(gzip.compress(body[:500_000]))
    first[-6] ^= 1  # its checksum
    with pytest.raises(DataError, match="not a whole"):
        unpack(put(bytes(first) + gzip.compress(body[500_000:])), out)


# --- properties ------------------------------------------------------------------------------------------------------

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = (zipped(FILES), plain_tar(FILES), gzip.compress(plain_tar(FILES)))


@given(name=st.text(st.sampled_from("ab./\\:~ é\0\n"), max_size=12))
@settings(max_examples=300, deadline=None)
def test_a_path_is_inside_or_refused(name: str) -> None:
    parts = entry_path(name)
    if parts is None:
        return
    assert not {"", ".", ".."} & set(parts)
    assert Path("/root/x").joinpath(*parts).resolve().is_relative_to("/root/x")


@given(
    seed=st.sampled_from(SEEDS),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0, 1),
)
@QUICK
def test_mutated_archives_are_refused_or_stay_inside(seed: bytes, flips, cut: float, tmp_path_factory) -> None:
    body = bytearray(seed)
    for where, value in flips:
        body[int(where * len(body))] = value
    if cut < 0.3:
        del body[int(cut / 0.3 * len(body)) :]
    root = tmp_path_factory.mktemp("fuzz")
    (root / "archive").write_bytes(bytes(body))
    (root / "out").mkdir()
    try:
        unpack(root / "archive", root / "out", Limits(files=50, size=1_000_000))
    except DataError as error:
        assert "\n" not in str(error)
    outside = {path.name for path in root.iterdir()}
    assert outside == {"archive", "out"}
    assert not any(path.is_symlink() for path in root.rglob("*"))


@given(
    entries=st.lists(
        st.tuples(
            st.text(st.sampled_from("ab./\\é"), min_size=1, max_size=9),
            st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]),
            st.sampled_from(["..", "../out.txt", "/tmp", "a"]),
        ),
        max_size=6,
    )
)
@QUICK
def test_made_up_tars_are_refused_or_stay_inside(entries, tmp_path_factory) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    bodies = [(member(name, kind, link), b"body" if kind == tarfile.REGTYPE else b"") for name, kind, link in entries]
    (root / "archive").write_bytes(tarred(*bodies))
    (root / "out").mkdir()
    try:
        unpack(root / "archive", root / "out")
    except DataError:
        pass
    else:
        assert all(kind in (tarfile.REGTYPE, tarfile.DIRTYPE) for _, kind, _ in entries)
    assert {path.name for path in root.iterdir()} == {"archive", "out"}
    assert all(path.is_dir() or path.read_bytes() == b"body" for path in (root / "out").rglob("*"))
    assert not any(path.is_symlink() for path in root.rglob("*"))

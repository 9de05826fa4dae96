"""Unpacking archives that may be hostile: plain files and folders only, inside one folder, within limits.

Only the bytes that are written count: sizes in headers are hints. Refused are absolute paths, ``..``, backslashes,
names that are not UTF-8, links, devices, encrypted or doubled entries, and more files, bytes or compression than the
limits allow. Files are made anew and never opened through a name that exists, so no entry can reach what an earlier
one made.
"""

import errno
import gzip
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fewlabel.core.errors import DataError, first_line
from fewlabel.data.fetch.download import disk_error

BLOCK = 1 << 18  # bytes of a read
LONGEST_NAME = 1024  # characters of an entry's path
LONGEST_HEADER = 1 << 16  # bytes of an extended tar header, which tarfile reads at once
JUNK = ("__MACOSX", ".DS_Store")  # what macOS adds to archives
# What the standard library raises on bytes that are no archive; RecursionError is a RuntimeError.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
    RuntimeError,  # a compression that zipfile does not have
)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold.

    Attributes:
        files: Entries, folders among them.
        size: Bytes of all files.
        ratio: Bytes written for each byte of the archive.
        free: Bytes to which the ratio does not apply: small files that compress well are no bomb.
    """

    files: int = 200_000
    size: int = 20 * 10**9
    ratio: float = 100.0
    free: int = 1 << 24


@dataclass(frozen=True)
class Unpacked:
    """What came out: number of files and their bytes."""

    files: int
    size: int


def unpack(
    archive: Path, folder: Path, limits: Limits | None = None, report: Callable[[int], None] = lambda done: None
) -> Unpacked:
    """Unpack a .zip, .tar or .tar.gz, told apart by its first bytes, into an existing folder.

    What macOS adds (``__MACOSX``, ``._NAME``, ``.DS_Store``) is checked but left out. Times, owners and permissions are
    not taken over. When this raises, the folder may hold a part: give one that can be removed.

    Args:
        archive: The file.
        folder: Where its files go; must hold none of them.
        limits: What it may hold.
        report: Called with the number of bytes of the archive that have been read.

    Returns:
        What was written.

    Raises:
        DataError: The archive is damaged or holds something that is refused.
        RunError: The disk is full or the folder cannot be written.
    """
    writer = _Writer(archive, folder, limits or Limits())
    try:
        with archive.open("rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            if start[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=stream, mode="rb") as plain:
                    _unpack_tar(plain, writer, lambda: report(stream.tell()))
            elif start in (b"PK\x03\x04", b"PK\x05\x06"):
                _unpack_zip(stream, writer, report)
            else:
                _unpack_tar(stream, writer, lambda: report(stream.tell()))
    except DAMAGE as error:
        raise _damaged(archive, error) from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset in the archive points before its start
            raise _damaged(archive, error) from None
        raise
    return Unpacked(writer.files, writer.size)


def _damaged(archive: Path, error: Exception) -> DataError:
    """The sentence for bytes that are no archive."""
    return DataError(f"{archive} is not a whole .zip, .tar or .tar.gz ({first_line(error)}): fetch it again.")


def entry_path(name: str) -> tuple[str, ...] | None:
    """The parts of an entry's path.

    Args:
        name: As the archive has it.

    Returns:
        Its parts without ``.`` and empty ones; empty for the folder itself. None if the name is refused.
    """
    if not name or len(name) > LONGEST_NAME or name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        return None
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):  # control characters, bytes that are not UTF-8
        return None
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    return None if ".." in parts else parts


class _Writer:
    """Makes the files and counts what it writes."""

    def __init__(self, archive: Path, folder: Path, limits: Limits) -> None:
        self.archive = archive
        self.folder = folder.resolve()
        self.limits = limits
        self.packed = archive.stat().st_size
        self.entries = self.files = self.size = 0

    def refuse(self, what: str) -> DataError:
        """The sentence for something that is not unpacked."""
        return DataError(f"{self.archive} {what}: it is not unpacked; do not trust this file.")

    def target(self, name: str) -> Path | None:
        """Where an entry goes, None for what is left out; counts it."""
        self.entries += 1
        if self.entries > self.limits.files:
            raise self.refuse(f"holds more than {self.limits.files} entries")
        parts = entry_path(name)
        if parts is None:
            shown = ascii(name[:80])
            raise self.refuse(f"holds the name {shown}, which is absolute, leaves the folder or is no plain UTF-8")
        if not parts or parts[-1].startswith("._") or any(part in JUNK for part in parts):
            return None
        path = self.folder.joinpath(*parts)
        if not path.resolve().is_relative_to(self.folder):  # cannot be, as no links are made; a second belt
            raise self.refuse(f"holds {ascii(name)}, which leads out of the folder")
        return path

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise self.refuse(f"holds {path.relative_to(self.folder)} both as a file and as a folder") from None
        except OSError as error:
            raise disk_error(error, path) from None

    def make_file(self, path: Path, source: IO[bytes]) -> None:
        """Copy a file's bytes, counting them against the limits as they come."""
        self.make_folder(path.parent)
        try:
            with path.open("xb") as stream:
                while block := source.read(BLOCK):
                    self.size += len(block)
                    self.check(self.size)
                    stream.write(block)
        except gzip.BadGzipFile:  # an OSError, but of the archive
            raise
        except FileExistsError:
            raise self.refuse(f"holds {path.relative_to(self.folder)} twice") from None
        except OSError as error:
            if error.errno == errno.EINVAL:  # of the archive, see `unpack`
                raise
            raise disk_error(error, path) from None
        self.files += 1

    def check(self, size: int) -> None:
        """Refuse a number of unpacked bytes that breaks a limit."""
        if size > self.limits.size:
            raise self.refuse(f"unpacks to more than {self.limits.size} bytes")
        if size > max(self.limits.free, self.limits.ratio * self.packed):
            raise self.refuse(f"unpacks to more than {self.limits.ratio:g} times its size")


def _unpack_zip(stream: IO[bytes], writer: _Writer, report: Callable[[int], None]) -> None:
    """Unpack a zip: stored or deflated entries that are plain files or folders."""
    done = 0
    with zipfile.ZipFile(stream) as archive:
        infos = archive.infolist()
        if len(infos) > writer.limits.files:
            raise writer.refuse(f"holds {len(infos)} entries, more than {writer.limits.files}")
        writer.check(sum(info.file_size for info in infos))  # what it claims; what comes is counted again
        for info in infos:
            name = _zip_name(info)
            shown = ascii(name[:80])
            if info.flag_bits & 0x2041:
                raise writer.refuse(f"holds {shown} encrypted")
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refuse(f"holds {shown}, a link or device")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise writer.refuse(f"holds {shown} compressed by method {info.compress_type}, not stored or deflated")
            path = writer.target(name)
            done += info.compress_size
            if path is not None and name.endswith("/"):
                writer.make_folder(path)
            elif path is not None:
                with archive.open(info) as source:
                    writer.make_file(path, source)
            report(done)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """An entry's name; without the UTF-8 flag, bytes that are UTF-8 are read so, others become unusable characters."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    return info.orig_filename.encode("cp437").decode("utf-8", "surrogateescape")


class _Header(tarfile.TarInfo):
    """A tar header that says so when it is damaged, where tarfile would take it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        """Parse 512 bytes; see `tarfile.TarInfo.frombuf`."""
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if buf and any(buf):
                raise tarfile.ReadError("damaged header") from None
            raise  # the end: nothing, or a block of zeros
        if not header.isreg() and not header.isdir() and header.size > LONGEST_HEADER:
            raise tarfile.ReadError("oversized header")  # tarfile would read it into memory at once
        return header


class _Counted:
    """A stream of unpacked bytes that ends with an error where the limits do."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, writer: _Writer) -> None:
        self.stream = stream
        self.writer = writer
        self.done = 0

    def read(self, size: int) -> bytes:
        """Read bytes, counting headers and entries that are left out as well."""
        block = self.stream.read(size)
        self.done += len(block)
        self.writer.check(self.done)
        return block


def _unpack_tar(stream: IO[bytes] | gzip.GzipFile, writer: _Writer, report: Callable[[], None]) -> None:
    """Unpack a tar, given its bytes without compression, in one pass."""
    counted = _Counted(stream, writer)
    # errors="surrogateescape" is the default: names that are not UTF-8 get characters that `entry_path` refuses.
    with tarfile.open(fileobj=counted, mode="r|", tarinfo=_Header, encoding="utf-8") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members.clear()  # tarfile keeps every header otherwise
            _unpack_member(archive, member, writer)
            report()
    while counted.read(BLOCK):  # the rest, so that gzip compares its checksum
        pass


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, writer: _Writer) -> None:
    """Unpack one entry of a tar."""
    path = writer.target(member.name)
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse() and member.size >= 0
    if not plain and not member.isdir():
        raise writer.refuse(f"holds {ascii(member.name[:80])}, which is a link, a device or no plain file")
    if hasattr(tarfile, "data_filter"):  # a second belt, where this Python has it (PEP 706)
        tarfile.data_filter(member, str(writer.folder))
    if path is not None and member.isdir():
        writer.make_folder(path)
    elif path is not None:
        source = archive.extractfile(member)
        assert source is not None  # of a plain file
        with source:
            writer.make_file(path, source)

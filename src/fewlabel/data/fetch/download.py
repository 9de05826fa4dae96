"""One file from the network: resumed where it broke off, and trusted only after its SHA-256."""

import errno
import http.client
import math
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fewlabel import __version__
from fewlabel.core.errors import DataError, FewlabelError, RunError, first_line
from fewlabel.core.files import sha256_file
from fewlabel.core.progress import progress
from fewlabel.data.fetch.catalogue import Archive

TIMEOUT = 30.0  # seconds without a byte, for the connection and for each read
ATTEMPTS = 4  # connections per address: one, and three that go on after a break
PAUSE = 1.0  # seconds before going on, times the number of breaks
BLOCK = 1 << 18  # bytes of a read
LARGEST = 4 * 10**9  # bytes of a file whose exact size the catalogue does not know
FULL = (errno.ENOSPC, errno.EDQUOT)


class _Refused(Exception):
    """This address cannot give the file; another may."""


class _Broken(Exception):
    """The connection broke off; the same address may go on."""


@contextmanager
def megabytes(label: str, total: int | None, start: int = 0) -> Iterator[Callable[[int], None]]:
    """Show progress in units of 10^6 bytes on standard error.

    Args:
        label: What is being done.
        total: Bytes in all; None: not known, and nothing is shown.
        start: Bytes that were done before.

    Yields:
        `report(done)`, to be called with the bytes done so far as often as wanted.
    """
    if not total:
        yield lambda done: None
        return
    units = math.ceil(total / 1e6)
    with progress(f"{label} (MB)", units, int(start / 1e6)) as advance:
        shown = -1

        def report(done: int) -> None:
            nonlocal shown
            now = units if done >= total else min(int(done / 1e6), units - 1)
            if now != shown:
                shown = now
                advance(now, "")

        yield report


def download(archive: Archive, folder: Path, *, timeout: float = TIMEOUT) -> Path:
    """Have the archive in a folder, complete and with the right hash.

    A partial file is kept as ``.part`` when the connection breaks or the process ends, and the next call goes on from
    there if the server gives ranges. Bytes with another hash are removed.

    Args:
        archive: What to fetch; its addresses are tried in turn.
        folder: An existing folder.
        timeout: Seconds without a byte after which a connection counts as broken.

    Returns:
        Path of the verified file.

    Raises:
        DataError: What arrived has another hash than the catalogue's.
        RunError: No address could be reached or has a file of the catalogue's size, or the disk is full.
    """
    done = folder / f"{archive.sha256[:12]}-{archive.file}"  # two sets may have an `images.zip`
    part = folder / f"{done.name}.part"
    if done.exists():
        if sha256_file(done) == archive.sha256:
            return done
        done.unlink()
    troubles: list[str] = []
    kind: type[FewlabelError] = RunError
    for url in archive.urls:
        try:
            _complete(url, part, archive, timeout)
        except _Refused as error:
            troubles.append(f"{url} {error}")
            continue
        found = sha256_file(part)
        if found == archive.sha256:
            part.replace(done)
            return done
        part.unlink()
        kind = DataError
        troubles.append(f"{url} gave bytes with SHA-256 {found}, not {archive.sha256}, and they were removed")
    raise kind(f"{archive.file} could not be fetched: {'; '.join(troubles)}; check the network, or try again later.")


def _complete(url: str, part: Path, archive: Archive, timeout: float) -> None:
    """Bring the partial file to its full length, going on a few times after a break."""
    for attempt in range(ATTEMPTS):
        try:
            _continue(url, part, archive, timeout)
            return
        except _Broken as error:
            if attempt == ATTEMPTS - 1:
                kept = part.stat().st_size if part.exists() else 0
                raise _Refused(f"broke off ({error}); {kept} bytes are kept and the same command goes on") from None
            time.sleep(PAUSE * (attempt + 1))


def _continue(url: str, part: Path, archive: Archive, timeout: float) -> None:
    """One connection: append what is missing, or start again where the server gives no ranges."""
    have = part.stat().st_size if part.exists() else 0
    if archive.size is not None and have >= archive.size:
        if have == archive.size:
            return
        part.unlink()
        have = 0
    headers = {"User-Agent": f"fewlabel/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:  # the range starts at or behind the end
                if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
                    return
                part.unlink()
                raise _Broken("the server refused to go on") from None
            raise _Refused(f"answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise _unreachable(error) from None
    with response:
        start = have if response.status == 206 and _first_byte(response) == have else 0
        if response.status == 206 and start != have:
            part.unlink()
            raise _Broken("the server sent another range than asked for")
        total = _length(response, start)
        if archive.size is not None and total not in (None, archive.size):
            raise _Refused(f"offers {total} bytes where the catalogue has {archive.size}")
        if archive.size is None and (total or 0) > LARGEST:
            raise _Refused(f"offers {total} bytes, more than the {LARGEST} that any archive here has")
        _store(response, part, start, archive.size or total, archive.file)


def _store(response: http.client.HTTPResponse, part: Path, start: int, total: int | None, label: str) -> None:
    """Write the body behind the first `start` bytes of the partial file."""
    limit = LARGEST if total is None else total
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise RunError(
            f"{part.parent} has {free / 1e6:.0f} MB free, but {label} needs {(total - start) / 1e6:.0f} MB: free some."
        )
    done = start
    try:
        with part.open("r+b" if start else "wb") as stream, megabytes(label, total, start) as report:
            stream.seek(start)
            while block := _next(response):
                done += len(block)
                if done > limit:
                    part.unlink()  # not the file that was asked for: no other address shall go on from it
                    raise _Refused(f"sends more than the {limit} bytes that were expected")
                stream.write(block)
                report(done)
    except OSError as error:  # of the disk: those of the network are `_Broken` by now
        raise disk_error(error, part) from None
    if total is not None and done < total:
        raise _Broken(f"the connection ended after {done} of {total} bytes")


def _next(response: http.client.HTTPResponse) -> bytes:
    """What has arrived, without waiting for a full block, so that little is lost at a kill; empty at the end."""
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_said(error)) from None


def disk_error(error: OSError, path: Path) -> RunError:
    """The sentence for a file that cannot be written."""
    if error.errno in FULL:
        return RunError(f"The disk of {path.parent} is full: free some space and run the same command again.")
    return RunError(f"{path} cannot be written ({error.strerror or error}): check the folder and its permissions.")


def _first_byte(response: http.client.HTTPResponse) -> int | None:
    """Where a 206 answer starts, by its Content-Range."""
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _length(response: http.client.HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file by the headers; None where they do not say."""
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else None


def _unreachable(error: Exception) -> Exception:
    """Tell a break, after which the same address may go on, from an address that cannot be reached."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, socket.gaierror):
        return _Refused("cannot be found (no network, or no such host)")
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _Refused(f"has a certificate that cannot be verified ({reason.verify_message})")
    if isinstance(reason, ConnectionRefusedError):
        return _Refused("refuses the connection")
    if isinstance(reason, TimeoutError | ConnectionError | http.client.HTTPException):
        return _Broken(_said(reason))
    return _Refused(f"cannot be reached ({first_line(reason)})")


def _said(error: Exception) -> str:
    """A connection's trouble in a few words."""
    return "nothing came for too long" if isinstance(error, TimeoutError) else first_line(error)

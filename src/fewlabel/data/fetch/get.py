"""Fetch a public data set into a folder: whole or not at all."""

import datetime
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fewlabel.core.errors import RunError
from fewlabel.core.files import read_json, recover_folder, replace_folder, write_json
from fewlabel.data.fetch.archive import Limits, unpack
from fewlabel.data.fetch.catalogue import PublicSet
from fewlabel.data.fetch.download import TIMEOUT, download, megabytes

SOURCE = "SOURCE.json"  # what the folder holds and where it came from


@dataclass(frozen=True)
class Fetched:
    """A data set that was fetched: its folder, number of files and their bytes."""

    folder: Path
    files: int
    size: int


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        RunError: It does, or it is not a folder.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file: give a folder that is empty or does not exist.")
    if any(folder.iterdir()):
        what = "is not empty"
        if (folder / SOURCE).exists():
            what = f"holds {read_json(folder / SOURCE).get('name', 'a data set')} already (see {SOURCE})"
        raise RunError(f"{folder} {what}: use it as it is, or give a folder that is empty or does not exist.")


def fetch(
    public: PublicSet, folder: Path, *, accepted: bool, limits: Limits | None = None, timeout: float = TIMEOUT
) -> Fetched:
    """Download, verify and unpack a public data set.

    Downloads are kept in ``.NAME.download`` beside the folder until all is unpacked, so that a second call goes on
    where the first one stopped; the folder itself appears at the end, complete.

    Args:
        public: The data set.
        folder: Where it goes; empty or not there yet.
        accepted: The user has accepted the licence.
        limits: What each archive may hold.
        timeout: Seconds without a byte after which a connection counts as broken.

    Returns:
        What was fetched.

    Raises:
        RunError: The licence is not accepted, the folder is not empty, another process fetches into it, the network or
            the disk fails.
        DataError: An archive is not the one of the catalogue or cannot be unpacked.
    """
    if not accepted:
        raise RunError(
            f"The licence of {public.name} ({public.licence}) is not accepted: read it at {public.home} and accept it."
        )
    folder = folder.resolve()
    check_empty(folder)
    with _downloads(folder) as store:
        recover_folder(folder)  # a swap that was cut short has left it complete under another name
        if not (folder / SOURCE).exists():
            files = [download(archive, store, timeout=timeout) for archive in public.archives]
            with replace_folder(folder) as fresh:
                write_json(fresh / SOURCE, describe(public, files))
                for archive, file in zip(public.archives, files, strict=True):
                    into = fresh / archive.into
                    into.mkdir(exist_ok=True)
                    size = file.stat().st_size
                    with megabytes(f"unpack {archive.file}", size) as report:
                        unpack(file, into, limits, report)
                        report(size)
                check_empty(folder)  # what someone else put there meanwhile is not replaced
        for path in store.iterdir():
            path.unlink()
    found = [path for path in folder.rglob("*") if path.is_file()]
    return Fetched(folder, len(found), sum(path.stat().st_size for path in found))


def describe(public: PublicSet, files: Sequence[Path]) -> dict[str, object]:
    """The contents of SOURCE.json.

    Args:
        public: The data set.
        files: Its archives on disk, in the catalogue's order, verified.

    Returns:
        What was fetched, from where, with which hashes, under which licence, and when (a date, UTC).
    """
    return {
        "name": public.name,
        "title": public.title,
        "home": public.home,
        "licence": public.licence,
        "citation": public.citation,
        "fetched": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "archives": [
            {
                "file": archive.file,
                "bytes": file.stat().st_size,
                "sha256": archive.sha256,
                "urls": list(archive.urls),
            }
            for archive, file in zip(public.archives, files, strict=True)
        ],
    }


@contextmanager
def _downloads(folder: Path) -> Iterator[Path]:
    """The folder of downloads beside the target, held by this process alone; removed when nothing is left in it."""
    store = folder.with_name(f".{folder.name}.download")
    mark = folder.with_name(f".{folder.name}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with mark.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not mark.exists() or not os.path.samestat(
                mark.stat(), os.fstat(lock.fileno())
            ):  # its last holder has just removed it
                raise BlockingIOError
        except BlockingIOError:
            raise RunError(f"Another process is fetching into {folder}: wait for it, or give another folder.") from None
        store.mkdir(exist_ok=True)
        try:
            yield store
        finally:
            if not any(store.iterdir()):
                store.rmdir()
            mark.unlink(missing_ok=True)

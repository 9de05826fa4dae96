"""Which files a data folder holds and what is in them, so that a change is noticed and can be named.

Contents are hashed once. Later only files whose size or time of change differs from what is stored are read again, so a
copy of the folder, or a touched file, is no change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fewlabel.core.errors import DataError
from fewlabel.core.files import read_json, sha256_file, sha256_json, write_json
from fewlabel.core.progress import track

NAMED = 3
"""Most files of a kind that a sentence names."""

SETTLED_NS = 2_000_000_000
"""A file changed so shortly before it was hashed (2 s: the coarsest clock of a common file system) is hashed again the
next time: another change within the same tick would leave size and time as they are."""


class Entry(NamedTuple):
    """One file.

    Attributes:
        size: Bytes.
        mtime_ns: Time of the last change in nanoseconds.
        sha256: Hash of the bytes.
    """

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Inventory:
    """The files of a folder.

    Attributes:
        files: Each file by its path below the folder, with ``/``, sorted.
        taken_ns: When the inventory was begun, in nanoseconds of the same clock as times of change.
    """

    files: dict[str, Entry]
    taken_ns: int = 0

    @property
    def sha256(self) -> str:
        """Hash of names and contents: the same for equal data, wherever and whenever they were copied."""
        return sha256_json({path: entry.sha256 for path, entry in self.files.items()})

    def save(self, path: Path) -> None:
        """Write the inventory as JSON, atomically."""
        files = {name: f"{entry.size} {entry.mtime_ns} {entry.sha256}" for name, entry in self.files.items()}
        write_json(path, {"taken_ns": self.taken_ns, "files": files})

    @classmethod
    def load(cls, path: Path) -> Inventory:
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing or is no inventory.
        """
        value = read_json(path)
        try:
            files = {}
            for name, text in value["files"].items():
                size, mtime_ns, sha256 = text.split(" ")
                files[name] = Entry(int(size), int(mtime_ns), sha256)
            return cls(files, int(value["taken_ns"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is not an inventory ({error!r}): remove it to have it made again.") from None


def take(root: Path, known: Inventory | None = None) -> Inventory:
    """List and hash all files below a folder. Hidden files and folders are passed over, as the readers do.

    Args:
        root: The folder; or a single file, which is then the only entry.
        known: An earlier inventory of it, whose hashes are kept for files of the same size and time of change.

    Returns:
        The inventory.

    Raises:
        DataError: ``root`` does not exist, or a file cannot be read.
    """
    if not root.exists():
        raise DataError(f"The data folder {root} does not exist; set data.root to the folder of the images.")
    began = time.time_ns()
    files: dict[str, Entry] = {}
    stale: list[tuple[str, Path]] = []
    for name, path in _files(root):
        found = path.stat()
        before = known.files.get(name) if known else None
        unchanged = before is not None and before[:2] == (found.st_size, found.st_mtime_ns)
        settled = known is not None and found.st_mtime_ns < known.taken_ns - SETTLED_NS
        if before is not None and unchanged and settled:
            files[name] = before
        else:
            files[name] = Entry(found.st_size, found.st_mtime_ns, "")
            stale.append((name, path))
    for name, path in track(sorted(stale), f"hashing files of {root.name}") if stale else ():
        try:
            files[name] = files[name]._replace(sha256=sha256_file(path))
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{path} cannot be read ({reason}): change its rights or remove it.") from None
    return Inventory(dict(sorted(files.items())), began)


def difference(old: Inventory, new: Inventory) -> str:
    """What changed between two inventories of a folder.

    Args:
        old: The earlier one.
        new: The later one.

    Returns:
        A clause such as ``2 files were added (images/a.png, images/b.png), 1 file was changed (train.txt)``; empty
        where names and contents are the same.
    """
    before, after = old.files, new.files
    kinds = {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [name for name in after if name in before and after[name].sha256 != before[name].sha256],
    }
    return ", ".join(
        f"{len(names)} file{' was' if len(names) == 1 else 's were'} {kind} ({_first(names)})"
        for kind, names in kinds.items()
        if names
    )


def _first(names: list[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Files below a folder with their names; linked folders are entered, but never one that is entered already."""
    if root.is_file():
        yield root.name, root
        return
    above: dict[str, tuple[tuple[int, int], ...]] = {str(root): ()}
    for folder, folders, names in os.walk(root, followlinks=True):
        found = Path(folder).stat()
        trail = (*above.pop(folder), (found.st_dev, found.st_ino))
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path
        kept = []
        for name in folders:
            inside = Path(folder, name).stat()
            if not name.startswith(".") and (inside.st_dev, inside.st_ino) not in trail:
                above[str(Path(folder, name))] = trail
                kept.append(name)
        folders[:] = kept

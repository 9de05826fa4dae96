"""Tensors on disk in shards: bounded, shared by processes, and whole after a kill at any moment.

Each shard is one safetensors file that appears under its name by a rename, so a reader finds a whole shard or none and
needs no lock. An index that is only appended to says which key lies in which shard and spares opening every one, but
the shards alone decide: a lost or torn line is made again from the shard's own header, and a line whose shard is gone
means nothing. Writers take turns with a lock on a file, because the bound on the bytes could not be kept by processes
that make room and write at the same time; the system lifts that lock when its holder is killed.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewlabel.core.errors import RunError
from fewlabel.core.files import write_bytes

SUFFIX = ".safetensors"
INDEX = "index.jsonl"
LOCK = "lock"
SPARE_LINES = 1000  # lines of an index that may be out of date before it is written anew


class ShardStore:
    """Lists of tensors by key, the shards that were not used for longest making room for new ones.

    Args:
        folder: Where the shards, the index and the lock lie; made when missing.
        max_bytes: Bound on the bytes of all shards together, those of other processes included.

    Raises:
        RunError: The folder cannot be made or written to, or holds other files, which a store would take for its own.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._shards: dict[str, str] = {}  # by key
        self._index: tuple[int, int] = (0, 0)  # inode and how far it was read
        self._lines = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The lock is the first file of a store: looked for after the others, it is there if they are a store's.
            if any(folder.iterdir()) and not (folder / LOCK).exists():
                raise RunError(f"{folder} holds other files, not a cache; give a new or an empty folder.")
            with self._locked():
                self._recover()
        except OSError as error:
            raise RunError(
                f"{folder} cannot hold a cache ({error.strerror}); give a folder that can be written to."
            ) from None

    def __contains__(self, key: str) -> bool:
        """Whether the tensors of `key` are there now; another process may take them away any time."""
        return self._find(key) is not None

    def read(self, key: str) -> list[Tensor] | None:
        """Tensors of a key as they were written, on the CPU; None when they are not there (any more)."""
        path = self._find(key)
        if path is None:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                parts = range(sum(name.endswith(f".{key}") for name in file.keys()))  # noqa: SIM118 it is not a mapping
                tensors = [file.get_tensor(f"{part}.{key}") for part in parts]
        except (FileNotFoundError, RuntimeError):
            # Another process made room just now. A file is opened twice, the second time by torch, with its own error.
            tensors = []
        except SafetensorError:  # damaged, and not by a kill
            path.unlink(missing_ok=True)
            tensors = []
        if tensors:
            with suppress(FileNotFoundError):
                os.utime(path)  # the order of use, for all processes
        else:
            self._shards.pop(key, None)
        return tensors or None

    def write(self, entries: Mapping[str, Sequence[Tensor]]) -> None:
        """Write tensors as one shard, but for keys that another process has written meanwhile.

        Args:
            entries: Tensors of any shape and dtype by key (a text without dots).

        Raises:
            RunError: The shard is larger than all shards together may be, or the disk is full.
        """
        with self._locked():
            fresh = {key: tensors for key, tensors in entries.items() if key not in self}
            if not fresh:
                return
            parts = [(f"{part}.{key}", tensor) for key, tensors in fresh.items() for part, tensor in enumerate(tensors)]
            data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in parts})
            if len(data) > self.max_bytes:
                raise RunError(
                    f"The cache {self.folder} is bounded to {self.max_bytes / 1e9:.4g} GB, less than the features of "
                    f"{'one image' if len(fresh) == 1 else f'{len(fresh)} images'} ({len(data) / 1e9:.4g} GB); "
                    "give it more, or encode without a cache."
                )
            name = hashlib.sha256(" ".join(sorted(fresh)).encode()).hexdigest()[:32] + SUFFIX
            try:
                self._make_room(len(data))
                write_bytes(self.folder / name, data)
                self._append(name, tuple(fresh))
            except OSError as error:
                raise RunError(
                    f"The cache {self.folder} cannot be written ({error.strerror}); free disk space, or give a "
                    "smaller bound."
                ) from None

    @property
    def bytes(self) -> int:
        """Bytes of all shards together, as they lie on the disk."""
        return sum(size for _, _, size in self._files())

    def _find(self, key: str) -> Path | None:
        """The shard of a key if both the index and the folder know it."""
        if (path := self._known(key)) is None:
            self._refresh()  # another process may have written it since, also anew after its shard went
            path = self._known(key)
        return path

    def _known(self, key: str) -> Path | None:
        """The shard of a key as far as the index was read, if it is still there."""
        name = self._shards.get(key)
        return self.folder / name if name is not None and (self.folder / name).exists() else None

    def _files(self) -> list[tuple[int, str, int]]:
        """Time of the last use in ns, name and bytes of each shard, the longest unused first."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        found.append((status.st_mtime_ns, entry.name, status.st_size))
        return sorted(found)

    def _make_room(self, needed: int) -> None:
        """Remove shards, the longest unused first, until `needed` bytes fit; the lock is held."""
        files = self._files()
        total = sum(size for _, _, size in files)
        for _, name, size in files:
            if total + needed <= self.max_bytes:
                return
            (self.folder / name).unlink(missing_ok=True)
            total -= size

    def _append(self, name: str, keys: Sequence[str]) -> None:
        """Add a shard to the index; the lock is held."""
        line = _line(name, keys)
        with (self.folder / INDEX).open("ab+") as index:
            if index.tell() > 0:
                index.seek(-1, os.SEEK_END)
                if index.read(1) != b"\n":  # the end of a line that a killed process began
                    line = b"\n" + line
            index.write(line)
        self._refresh()
        if self._lines > 2 * len(self._files()) + SPARE_LINES:
            self._recover()

    def _refresh(self) -> None:
        """Read what was added to the index since the last time, whole lines only."""
        try:
            with (self.folder / INDEX).open("rb") as index:
                inode, done = self._index
                now = os.fstat(index.fileno()).st_ino
                if now != inode:
                    self._shards, self._lines, done = {}, 0, 0
                index.seek(done)
                added = index.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._lines += 1
            with suppress(ValueError, KeyError, TypeError):  # a torn line: its shard was found by its header
                entry = json.loads(line)
                self._shards.update(dict.fromkeys(entry["keys"], entry["shard"]))
        self._index = (now, done + len(whole))

    def _recover(self) -> None:
        """Clear up after killed processes and write the index anew; the lock is held, so nobody writes."""
        for leftover in self.folder.glob(".*"):
            if leftover.suffix in (SUFFIX, Path(INDEX).suffix):
                leftover.unlink(missing_ok=True)
        self._refresh()
        keys: dict[str, list[str]] = {}
        for key, name in self._shards.items():
            keys.setdefault(name, []).append(key)
        lines = []
        for _, name, _ in self._files():
            try:
                held = keys.get(name) or _keys(self.folder / name)
            except SafetensorError:
                (self.folder / name).unlink(missing_ok=True)
                continue
            lines.append(_line(name, held))
        write_bytes(self.folder / INDEX, b"".join(lines))
        self._refresh()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the writers' lock, which the system lifts at the latest when this process ends."""
        with (self.folder / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _keys(path: Path) -> list[str]:
    """Keys in a shard, from its header alone."""
    with safe_open(path, framework="pt") as file:
        return sorted({name.partition(".")[2] for name in file.keys()})  # noqa: SIM118 it is not a mapping


def _line(name: str, keys: Sequence[str]) -> bytes:
    """Line of the index for one shard."""
    return json.dumps({"shard": name, "keys": list(keys)}).encode() + b"\n"

"""Damage to files and folders of data sets, and what may come of it: a read, one sentence, or a listed problem."""

import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.data.readers import find_layout, open_folder

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
STRANGE = (
    b"NaN",
    b"-Infinity",
    b"1e308",
    b"1e999",
    b"9" * 30,
    b"9" * 5000,
    b"-1",
    b"0.5",
    b"null",
    b'"x"',
    b"[1]",
    b"{}",
)


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randrange(60) :]


def doubled(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[max(at - rng.randrange(80), 0) :]


def renumbered(data: bytes, rng: random.Random) -> bytes:
    """One number becomes another, or something else."""
    found = list(NUMBER.finditer(data))
    if not found:
        return data
    place = rng.choice(found)
    return data[: place.start()] + rng.choice(STRANGE) + data[place.end() :]


def wrong_start(data: bytes, rng: random.Random) -> bytes:
    starts = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"BM",
        b"II*\0",
        b"PK\3\4",
        b"{",
        b"[",
        b"\0\0\0\0",
        b"%YAML 9.9\n",
    )
    return rng.choice(starts) + data[rng.choice((0, 4, 8)) :]


def huge_picture(data: bytes, rng: random.Random) -> bytes:
    """A PNG that announces millions of rows and columns; any other file gets such numbers at its start."""
    size = (2**31 - 1).to_bytes(4, "big")
    return data[:16] + size + size + data[24:]


def deep(data: bytes, rng: random.Random) -> bytes:
    """Nesting of thousands of levels, in the place of the first value."""
    many = rng.choice((b"[", b'{"a":', b"[\n")) * rng.choice((900, 100_000))
    at = data.find(b":") + 1
    return data[:at] + many + data[at:]


def crlf(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b"\n", b"\r\n")


def marked(data: bytes, rng: random.Random) -> bytes:
    return b"\xef\xbb\xbf" + data


def utf16(data: bytes, rng: random.Random) -> bytes:
    return data.decode("latin-1").encode(rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32")))


def emptied(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\n", b"\0" * 100, b" " * 10_000, bytes(rng.randrange(256) for _ in range(300))))


def long_line(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"x", b"0 ", b"[", b"\xc3")) * 200_000


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncated,
    truncated,
    flipped,
    flipped,
    cut,
    doubled,
    renumbered,
    renumbered,
    renumbered,
    wrong_start,
    huge_picture,
    deep,
    crlf,
    marked,
    utf16,
    emptied,
    long_line,
)
"""Damage to the bytes of a file."""


def becomes_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def becomes_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def becomes_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def holds_its_folder(path: Path) -> None:
    (path.parent / "loop").symlink_to(path.parent, target_is_directory=True)


def is_removed(path: Path) -> None:
    path.unlink()


def has_a_strange_twin(path: Path) -> None:
    """A copy whose name is not UTF-8."""
    shutil.copy(path, os.fsencode(path.parent) + b"/b\xff\xfe" + os.fsencode(path.suffix))


PLACES: tuple[Callable[[Path], None], ...] = (
    becomes_folder,
    becomes_loop,
    becomes_dangling,
    holds_its_folder,
    is_removed,
    has_a_strange_twin,
)
"""Damage to the place of a file."""


def damage(root: Path, rng: random.Random) -> str:
    """Damage one file of a data set in place; what was done to which, for a message."""
    path = rng.choice(sorted(path for path in root.rglob("*") if path.is_file()))
    if rng.random() < 0.2:
        how = rng.choice(PLACES)
        how(path)
        return f"{path.relative_to(root)} {how.__name__}"
    change = rng.choice(BYTES)
    path.write_bytes(change(path.read_bytes(), rng))
    return f"{path.relative_to(root)} {change.__name__}"


class Late(BaseException):
    """The time is over; no error of input or output, which a reader may handle."""


@contextmanager
def limits(seconds: int = 5, memory: int = 2**30) -> Iterator[None]:
    """Raise Late or MemoryError in the block that takes longer or more than this."""

    def late(*_: object) -> None:
        raise Late(f"took more than {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_all(root: Path, format: str) -> list[str]:
    """Recognise and read a data set within `limits`, strictly and not; the sentences of everything that was refused.

    Whatever is read has to be sound; any exception but a DataError comes through.
    """
    sentences: list[str] = []
    for strict in (True, False):
        with limits():
            try:
                find_layout(root)
            except DataError as error:
                sentences.append(str(error))
            try:
                data = open_folder(root, format, strict=strict, max_pixels=10_000)
            except DataError as error:
                sentences.append(str(error))
                continue
            sentences += [problem.reason for problem in data.problems]
            for id in (*data.train_ids, *data.test_ids):
                try:
                    sample = data.labelled(id) if data.has_mask(id) else data.unlabelled(id)
                except DataError as error:
                    sentences.append(str(error))
                    continue
                for labels in (getattr(sample, "instances", None), getattr(sample, "ignored", None)):
                    if labels is not None and len(labels):
                        assert labels.areas().min() > 0 and np.isfinite(labels.boxes).all()
                        assert labels.classes.min() >= 0 and labels.classes.max() < len(data.classes)
    for sentence in sentences:
        assert sentence.endswith(".") and "\n" not in sentence and "\r" not in sentence, repr(sentence)
        assert len(sentence) < 1500, sentence
    return sentences

"""Text and JSON files that anyone may have written, and names of parts and images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from fewlabel.data.pixels import FileError
from fewlabel.data.readers.base import id_of

HEAD = 1 << 16
"""Bytes at the beginning and the end of a file by which its kind is told."""

_PART = re.compile(r"(?<![a-z])(train|training|val|valid|validation|test|testing)(?![a-z])")


def read_text(path: Path, kind: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: The file.
        kind: What the file is, for the message: "label file".

    Raises:
        FileError: It cannot be opened or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        if b"\0" in data[:4]:  # UTF-16 and UTF-32, which may be UTF-8 as well as far as the codec is concerned
            raise FileError(path, f"{kind} {path} is not UTF-8 text: save it as UTF-8.")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileError(path, f"{kind} {path} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileError(path, f"{kind} {path} cannot be read ({reason}): restore it or change its rights.") from None


def read_object(path: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        hook: Takes every object as it is read and gives what stands in its place; the outermost has to stay a dict.

    Raises:
        FileError: It cannot be opened, is not UTF-8, or holds no JSON object.
    """
    text = read_text(path, "JSON file")
    try:
        value = json.loads(text, object_hook=hook)
    except RecursionError:
        raise FileError(path, f"JSON file {path} is nested too deeply to be labels: export it again.") from None
    except ValueError as error:  # JSONDecodeError, and numbers of thousands of digits
        reason = str(error).split(";")[0].rstrip(".")
        raise FileError(path, f"JSON file {path} is damaged ({reason}): export it again.") from None
    if not isinstance(value, dict):
        raise FileError(path, f"JSON file {path} holds no JSON object at its top: export the labels again.")
    return value


def ends_of(path: Path) -> bytes:
    """The first and last `HEAD` bytes of a file, without zero bytes so that UTF-16 can be searched; never raises."""
    try:
        with path.open("rb") as file:
            first = file.read(HEAD)
            size = path.stat().st_size
            if size > HEAD:
                file.seek(max(HEAD, size - HEAD))
                first += file.read(HEAD)
    except OSError:
        return b""
    return first.replace(b"\0", b"")


def part_in(name: str) -> Literal["train", "val", "test"] | None:
    """The part of a data set that a name speaks of, the last one if several: "instances_val2017" gives "val"."""
    found = _PART.findall(name.lower())
    if not found:
        return None
    return "train" if found[-1].startswith("train") else "val" if found[-1].startswith("val") else "test"


def name_images(names: Iterable[tuple[Path, str]], root: Path) -> dict[Path, str]:
    """Ids of images: their names in the data set, with folders in front where two would have the same.

    Args:
        names: Image files, each once, and their names in the data set, with ending.
        root: Folder that all of them lie in.

    Returns:
        The id by file. Files of one folder that differ in their ending only have one id: a problem of the data set.
    """
    short = {path: id_of(name) for path, name in names}
    counts = Counter(short.values())
    return {path: id if counts[id] == 1 else id_of(path.relative_to(root)) for path, id in short.items()}


def image_name(path: Path, folder: Path) -> str:
    """An image's name without the folders of the layout: images/train/b/1.png is b/1.png."""
    steps = path.relative_to(folder).parts
    last = max((place for place, step in enumerate(steps[:-1]) if step == "images"), default=-1)
    steps = steps[last + 1 :]
    layout = len(steps) > 1 and (part_in(steps[0]) is not None or steps[0].startswith("unlabel"))
    return "/".join(steps[1:] if layout else steps)

"""Files that are either whole or absent: atomic writes, folder swaps and hashes."""

import csv
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewlabel.core.errors import DataError


def _sync(path: Path) -> None:
    """Force a file's (or folder's) contents to disk, so that a rename never outlives the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that replaces it when the block ends well.

    Args:
        path: The final file; its parent folders are made.

    Yields:
        A path in the same folder, with the same suffix, to be written by the block. If the block raises, it is removed
        and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    r"""Write `text` to `path` as UTF-8, atomically.

    A byte of a file name that is not UTF-8, which Python keeps as a lone surrogate, is written as its escape, such as
    ``\udce9`` for the byte E9: a name to be read, though not to be opened. In JSON it is read back as it was.
    """
    write_bytes(path, _encoded(text))


def _encoded(text: str) -> bytes:
    r"""UTF-8 with lone surrogates as ``\udce9``, which is also how JSON spells them within a string."""
    return text.encode("utf-8", errors="backslashreplace")


def write_rejected(path: Path, rows: Iterable[tuple[str, Path, str]]) -> None:
    """Write the table of images that were left out, as CSV with a heading, atomically.

    Args:
        path: The table.
        rows: Id of the image, the file at fault, and why it cannot be used; names that are not UTF-8 as `write_text`.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("id", "file", "reason"))
    table.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically; key order is kept, so equal values give equal bytes.

    JSON has no NaN or infinity: such a number (a score of nothing, say) is written as null. File names that are not
    UTF-8 are escaped, and `read_json` gives them back.
    """
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The value with null in the place of numbers that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path or run the stage that writes it.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); restore it, or delete it to have it made again."
        ) from None


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` that takes its place when the block ends well.

    The old folder is moved aside before the swap and removed after it, so a kill leaves either the old or the new
    contents under `folder` or, between the two renames, the new ones under a name that `recover_folder` puts back.

    Args:
        folder: The final folder; need not exist.

    Yields:
        The temporary folder to be filled by the block.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(folder)
    fresh, ready, old = _neighbours(folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        for path in fresh.rglob("*"):
            _sync(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    fresh.rename(ready)
    recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Finish a swap of `replace_folder` that was interrupted; does nothing when there is none."""
    _, ready, old = _neighbours(folder)
    if not ready.exists():
        return
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    ready.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _neighbours(folder: Path) -> tuple[Path, Path, Path]:
    """Names of the folder being filled, the filled one, and the one being replaced."""
    stem = f".{folder.name}"
    return folder.with_name(f"{stem}.filling"), folder.with_name(f"{stem}.ready"), folder.with_name(f"{stem}.old")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as lower-case hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value with sorted keys, as lower-case hexadecimal; file names need not be UTF-8."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(_encoded(text)).hexdigest()

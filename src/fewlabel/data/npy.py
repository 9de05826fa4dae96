"""NumPy's .npy files, opened without executing, unpickling or allocating anything.

Format: NEP 1 and ``numpy.lib.format``, versions 1.0 to 3.0. The header is a Python literal of the file's own choice, so
it is bounded, parsed as a literal, and checked against the file's size before any memory is mapped.
"""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import numpy as np

MAGIC = b"\x93NUMPY"
"""First bytes of a .npy file."""

_LONGEST_HEADER = 4096  # bytes; NumPy itself writes 118 for any plain array
_PLAIN_TYPE = re.compile(r"[<>|=](b1|[iu][1248]|f[248])")


def open_array(path: Path) -> np.ndarray:
    """Map a .npy file into memory, read-only; a page of it is read when it is looked at.

    Args:
        path: The file, known to start with `MAGIC`.

    Returns:
        The array: bool, integers of 8 to 64 bits or floats of 16 to 64 bits, of any shape without a zero.

    Raises:
        ValueError: The header is damaged, the type is another one (objects, text, records), or the file is shorter than
            its header says.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(12)
        wide = start[6:7] != b"\x01"  # from version 2 on the length has four bytes
        if len(start) < 12 or start[:6] != MAGIC or start[6] not in (1, 2, 3):
            raise ValueError("the header is no .npy header")
        length = int.from_bytes(start[8:12] if wide else start[8:10], "little")
        offset = (12 if wide else 10) + length
        if length > _LONGEST_HEADER:
            raise ValueError(f"the header announces {length} bytes of itself")
        file.seek(offset - length)
        text = file.read(length).decode("latin-1" if start[6] < 3 else "utf-8")
        size = file.seek(0, 2)
    try:
        header = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two for deep nesting
        raise ValueError("the header is no Python literal") from None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("the header lacks descr, fortran_order or shape")
    descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(descr, str) or not _PLAIN_TYPE.fullmatch(descr):
        raise ValueError(f"it holds {str(descr)[:40]!r}, no plain numbers")
    if not isinstance(shape, tuple) or any(type(side) is not int or side < 1 for side in shape):
        raise ValueError("its shape is not a tuple of positive integers")
    if type(fortran) is not bool:
        raise ValueError("fortran_order is neither True nor False")
    dtype = np.dtype(descr)
    needed = offset + math.prod(shape) * dtype.itemsize
    if needed > size or len(shape) > 32:
        raise ValueError(f"its header announces {needed} bytes, it has {size}")
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")

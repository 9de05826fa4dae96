"""Text for XML files."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

from fewlabel.core.errors import DataError

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production [2] Char


def text(value: str) -> str:
    """A value as the text of an element; DataError if XML cannot hold one of its characters."""
    return escape(_checked(value))


def attribute(value: str) -> str:
    """A value as an attribute, with quotes around it; DataError if XML cannot hold one of its characters."""
    return quoteattr(_checked(value))


def number(value: float) -> str:
    """A coordinate with up to four decimals: ``3`` or ``2.25``."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _checked(value: str) -> str:
    found = _FORBIDDEN.search(value)
    if found is not None:
        raise DataError(f"{value!r} holds {found.group()!r}, which XML cannot hold: rename the image or class.")
    return value

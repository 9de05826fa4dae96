"""Annotation files in XML, read as a stream and without document types.

A document type can declare entities that grow to gigabytes or name files of the reader's machine. Annotation files
need none, so a file that declares one is refused before anything of it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from fewlabel.data.pixels import FileError

MAX_DEPTH = 32
"""Deepest nesting of elements; annotation files have fewer than ten levels."""

_BLOCK = 1 << 16


class _Parser:
    """Builds each element at one depth of a document and hands it out when it is complete.

    Args:
        path: The file, for errors.
        depth: 0 = the outermost element, 1 = its children.
        encoding: What the text is written in; told by the document if None.
    """

    def __init__(self, path: Path, depth: int, encoding: str | None = None) -> None:
        self.path = path
        self.encoding = encoding
        self.outermost: str | None = None
        self.complete: list[tuple[Element, int]] = []
        self._depth = depth
        self._level = 0
        self._start = 0
        self._builder = TreeBuilder()
        self._expat = expat.ParserCreate(encoding)
        self._expat.buffer_text = True
        self._expat.StartElementHandler = self._open
        self._expat.EndElementHandler = self._close
        self._expat.CharacterDataHandler = self._text
        self._expat.XmlDeclHandler = self._declared
        self._expat.StartDoctypeDeclHandler = self._refuse
        self._expat.EntityDeclHandler = self._refuse

    def feed(self, block: bytes) -> None:
        """Parse the next bytes; empty ones end the document. FileError if they are no XML."""
        try:
            self._expat.Parse(block, not block)
        except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: encodings that Python lacks
            raise FileError(
                self.path, f"{self.path} cannot be read as XML ({error}): export it again or remove it."
            ) from error

    def _open(self, tag: str, attributes: dict[str, str]) -> None:
        if self.outermost is None:
            self.outermost = tag
        if self._level >= MAX_DEPTH:
            raise FileError(
                self.path,
                f"{self.path}, line {self._expat.CurrentLineNumber}: <{tag}> lies more than {MAX_DEPTH} elements deep,"
                " which no annotation needs: export the file again.",
            )
        if self._level == self._depth:
            self._start, self._builder = self._expat.CurrentByteIndex, TreeBuilder()
        if self._level >= self._depth:
            self._builder.start(tag, attributes)
        self._level += 1

    def _close(self, tag: str) -> None:
        self._level -= 1
        if self._level >= self._depth:
            self._builder.end(tag)
        if self._level == self._depth:
            self.complete.append((self._builder.close(), self._start))

    def _text(self, text: str) -> None:
        if self._level > self._depth:
            self._builder.data(text)

    def _declared(self, version: str, encoding: str | None, standalone: int) -> None:
        self.encoding = encoding

    def _refuse(self, *details: object) -> NoReturn:
        raise FileError(
            self.path,
            f"{self.path}, line {self._expat.CurrentLineNumber}, declares a document type or an entity, which"
            " annotations do not need and which can be harmful: remove the declaration.",
        )


class Document:
    """One XML file whose outermost element has many children; one child is in memory at a time.

    Args:
        path: The file.
        outermost: Name that the outermost element has to have.
    """

    def __init__(self, path: Path, outermost: str) -> None:
        self.path = path
        self._outermost = outermost
        self._encoding: str | None = None

    def children(self) -> Iterator[tuple[Element, int]]:
        """Each child of the outermost element, and the byte where it starts (see `child`).

        Raises:
            FileError: The file cannot be read, is no XML, declares a document type, is nested too deep or has another
                outermost element.
        """
        parser = _Parser(self.path, 1)
        for place, block in enumerate(_blocks(self.path)):
            if not place and b"\0" in block[:4]:  # a piece of UTF-16 does not say so, and `child` reads pieces
                raise FileError(self.path, f"{self.path} is UTF-16 text: save it as UTF-8.")
            parser.feed(block)
            if parser.outermost not in (None, self._outermost):
                raise FileError(
                    self.path,
                    f"{self.path} holds <{parser.outermost}>, expected <{self._outermost}>: it is a file of another"
                    " format.",
                )
            complete, parser.complete = parser.complete, []
            yield from complete
        self._encoding = parser.encoding

    def child(self, start: int) -> Element:
        """Read one child again.

        Args:
            start: Byte that `children` gave; `children` has to have come to its end before.

        Raises:
            FileError: The file has changed since, or cannot be read.
        """
        parser = _Parser(self.path, 0, self._encoding)
        for block in _blocks(self.path, start):
            try:
                parser.feed(block)
            except FileError:
                if not parser.complete:  # what follows the child is no document of its own
                    raise
            if parser.complete:
                return parser.complete[0][0]
        raise FileError(self.path, f"{self.path} was changed while it was read: start again.")


def outermost(path: Path) -> str | None:
    """Name of the outermost element of a file; None if it cannot be read as XML."""
    parser = _Parser(path, MAX_DEPTH)
    try:
        for block in _blocks(path):
            parser.feed(block)
            if parser.outermost is not None:
                break
    except FileError:
        pass
    return parser.outermost


def text_of(element: Element, name: str, default: str = "") -> str:
    """Text of a child without the blanks around it; `default` if there is no such child or it is empty."""
    return (element.findtext(name) or "").strip() or default


def shown(text: str | None, most: int = 60) -> str:
    """A value of a file for a message, in quotes and cut if it is long; "missing" for None."""
    if text is None:
        return "missing"
    return repr(text if len(text) <= most else f"{text[:most]}...")


def number_of(text: str | None, path: Path, what: str) -> float:
    """Read a number.

    Args:
        text: What the file says; None if it says nothing.
        path: The file, for errors.
        what: What the number is, such as ``<xmin> of object 3``.

    Raises:
        FileError: It is missing, no number, or not finite.
    """
    try:
        number = float((text or "").strip())
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise FileError(path, f"{path}: {what} is {shown(text)}, expected a number: mend it or export the file again.")
    return number


def _blocks(path: Path, start: int = 0) -> Iterator[bytes]:
    """Bytes of a file from a place on, then an empty block; FileError if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(_BLOCK):
                yield block
    except OSError as error:
        raise FileError(path, f"{path} cannot be read ({error.strerror}): check the path and its rights.") from error
    yield b""

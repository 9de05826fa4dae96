"""What every data set reader offers to the rooms above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from fewlabel.core.types import Image, Instances, Labelled, Unlabelled
from fewlabel.data.large import LargeImage


class Canvas(Protocol):
    """What labels are drawn on: an image of which the size is known, be it in memory or not.

    Attributes:
        path: Its file, or None.
        size: Rows and columns.
        height: Rows.
        width: Columns.
    """

    @property
    def path(self) -> Path | None: ...  # noqa: D102  described above
    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102


class Labels(NamedTuple):
    """What a data set says about one image.

    Attributes:
        instances: Its objects.
        ignored: Regions that are neither object nor background, or None.
    """

    instances: Instances
    ignored: Instances | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that keeps an image from being used.

    Attributes:
        id: The image.
        file: The file at fault: an image, a mask or an id list.
        reason: One sentence: what is wrong and what to do.
    """

    id: str
    file: Path
    reason: str


def first_of(name: str, problems: Sequence[Problem]) -> str:
    """One sentence for several problems of the data set ``name``: their number and the first."""
    if len(problems) == 1:
        return problems[0].reason
    return f"{name} has {len(problems)} problems, the first: {problems[0].reason}"


class Dataset(Protocol):
    """Images by id, some with labels, in a training and a test part.

    Attributes:
        name: What reports call the data set.
        classes: Names of the classes; `Instances.classes` are indexes into them.
        train_ids: Ids of the training images, in the data set's own order, each once.
        test_ids: Ids of the held-out images; no id is in both parts. May be empty.
        boxes_only: Whether the labels are boxes, whose masks are nothing but the boxes filled.
        problems: What reading the lists and folders found wrong; always empty unless the reader was asked to go on.
    """

    name: str
    classes: tuple[str, ...]
    boxes_only: bool
    train_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    problems: tuple[Problem, ...]

    def has_mask(self, id: str) -> bool:
        """Whether labels exist for this image, be they none (a file of masks is not opened)."""
        ...

    def group(self, id: str) -> str:
        """What the image belongs to and must not be torn from, such as a sequence; its own id where it is alone."""
        ...

    def image(self, id: str) -> Image:
        """The image alone; DataError if it cannot be read."""
        ...

    def labelled(self, id: str) -> Labelled:
        """The image and its targets; DataError if either cannot be read or their sizes differ."""
        ...

    def unlabelled(self, id: str) -> Unlabelled:
        """The image as one without labels, even where a mask exists."""
        ...

    def opened(self, id: str) -> Image | LargeImage:
        """The image, by windows if it has more than `fewlabel.data.large.HELD` pixels; DataError as `image`.

        A radiometry whose statistics need the whole image has it read as a whole whatever its size.
        """
        ...

    def labels(self, id: str, image: Canvas) -> Labels:
        """The labels of an image that is open; DataError if there are none or they cannot be used."""
        ...

"""A data set and further images without labels from somewhere else, seen as one."""

from __future__ import annotations

from dataclasses import replace

from fewlabel.core.types import Image, Labelled, Unlabelled
from fewlabel.data.dataset import Canvas, Dataset, Labels
from fewlabel.data.large import LargeImage

PREFIX = "unlabelled__"
"""How the ids of the further images begin, so that they meet none of the data set's own."""


class JoinedDataset:
    """A data set whose training part has further images; satisfies `fewlabel.data.dataset.Dataset`.

    Args:
        labelled: The data set. Its name, classes and test part are those of the whole.
        further: More images; their labels, if any, are not looked at, and all parts join the training images.

    Attributes:
        name: The first data set's name.
        classes: The first data set's classes.
        boxes_only: Whether the first data set's labels are boxes.
        train_ids: The first data set's training images, then the further ones as `PREFIX` + id.
        test_ids: The first data set's test images.
        problems: Those of both.
    """

    def __init__(self, labelled: Dataset, further: Dataset) -> None:
        self._labelled, self._further = labelled, further
        self.name, self.classes, self.test_ids = labelled.name, labelled.classes, labelled.test_ids
        self.boxes_only = labelled.boxes_only
        self.train_ids = (*labelled.train_ids, *(PREFIX + id for id in (*further.train_ids, *further.test_ids)))
        self.problems = (
            *labelled.problems,
            *(replace(problem, id=PREFIX + problem.id) for problem in further.problems),
        )

    def has_mask(self, id: str) -> bool:
        """Whether the data set has labels for this id; the further images have none."""
        return not id.startswith(PREFIX) and self._labelled.has_mask(id)

    def group(self, id: str) -> str:
        """The group in the data set that the image comes from."""
        return PREFIX + self._further.group(id[len(PREFIX) :]) if id.startswith(PREFIX) else self._labelled.group(id)

    def image(self, id: str) -> Image:
        """The image alone; DataError if it cannot be read."""
        if id.startswith(PREFIX):
            return replace(self._further.image(id[len(PREFIX) :]), id=id)
        return self._labelled.image(id)

    def labelled(self, id: str) -> Labelled:
        """The image and its labels; DataError if there are none or either cannot be read."""
        return self._labelled.labelled(id)

    def unlabelled(self, id: str) -> Unlabelled:
        """The image as one without labels."""
        return Unlabelled(self.image(id))

    def opened(self, id: str) -> Image | LargeImage:
        """The image, by windows if it is large; DataError if it cannot be read."""
        if id.startswith(PREFIX):
            return replace(self._further.opened(id[len(PREFIX) :]), id=id)
        return self._labelled.opened(id)

    def labels(self, id: str, image: Canvas) -> Labels:
        """The labels of an image that is open; DataError if there are none or they cannot be used."""
        return self._labelled.labels(id, image)

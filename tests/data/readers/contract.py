"""What every reader has to do; a reader's test inherits `ReaderContract` and makes a data set."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from fewlabel.core.errors import DataError
from fewlabel.core.types import Instances, Labelled, Unlabelled
from fewlabel.data.large import LargeImage
from fewlabel.data.readers import READERS, find_layout, open_folder

SIZES = {"a": (20, 31), "b": (17, 24), "c": (33, 16)}
"""Rows and columns of the images that `pictures` makes; odd and different, so that swapped axes show."""


def pictures() -> dict[str, np.ndarray]:
    """Grey images uint8 `(H, W)` by id."""
    rng = np.random.default_rng(0)
    return {id: rng.integers(1, 255, size, dtype=np.uint8) for id, size in SIZES.items()}


def save_pictures(folder: Path, ending: str = ".png") -> None:
    """Write the pictures as `folder/ID.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for id, picture in pictures().items():
        Pillow.fromarray(picture).save(folder / f"{id}{ending}")


def objects(id: str) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool `(N, H, W)` and classes `(N,)` of a labelled picture: rectangles whose edges are whole pixels.

    Picture "a" has two objects of classes 0 and 1, "b" has one of class 1; "c" is not labelled.
    """
    height, width = SIZES[id]
    boxes = {"a": [(2, 3, 8, 12), (10, 14, 19, 30)], "b": [(1, 5, 6, 20)]}[id]
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks, np.array({"a": [0, 1], "b": [1]}[id])


class ReaderContract(ABC):
    """Inherit, set the class attributes and write `make`.

    Attributes:
        format: Key of READERS.
        classes: Names of the classes that `make` writes, in order.
    """

    format: str
    classes: tuple[str, ...] = ("cat", "dog")

    @abstractmethod
    def make(self, root: Path) -> Path:
        """Write `pictures` with the labels `objects` ("a" and "b" labelled, "c" not) and return the data set's root.

        Where the format has lists, "a" and "c" train and "b" tests.
        """

    def truth(self, id: str) -> Instances:
        """What the reader has to give for a labelled picture."""
        masks, classes = objects(id)
        return Instances.from_masks(masks, classes=classes)

    @abstractmethod
    def damage(self, root: Path) -> None:
        """Make the labels of "a" unusable, in place."""

    def open(self, root: Path, **options):
        return open_folder(root, self.format, **options)

    def test_recognised(self, tmp_path):
        root = self.make(tmp_path / "set")
        layout = find_layout(root)
        assert layout.format == self.format and layout.sentence().startswith(f"format: {self.format}, because it ")
        assert READERS[self.format].recognise(tmp_path / "nowhere") is None

    def test_ids_and_classes(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"))
        assert sorted(data.train_ids + data.test_ids) == ["a", "b", "c"] and data.problems == ()
        assert data.classes == self.classes and data.name == data.root.name
        assert [data.has_mask(id) for id in "abc"] == [True, True, False]
        assert isinstance(data.group("a"), str)

    def test_images_come_as_stored(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"))
        for id, picture in pictures().items():
            image = data.image(id)
            assert image.id == id
            np.testing.assert_array_equal(image.pixels[0], picture)
        assert isinstance(data.unlabelled("a"), Unlabelled)
        with pytest.raises(DataError, match="no image 'z'"):
            data.image("z")

    def test_labels_of_large_images_need_no_pixels(self, tmp_path, monkeypatch):
        data = open_folder(self.make(tmp_path), self.format)
        usual = {id: data.labelled(id) for id in (*data.train_ids, *data.test_ids) if data.has_mask(id)}
        monkeypatch.setattr("fewlabel.data.large.HELD", 1)
        for id, sample in usual.items():
            image = data.opened(id)
            assert isinstance(image, LargeImage)
            assert (image.id, image.size, image.path) == (id, sample.image.size, sample.image.path)
            np.testing.assert_array_equal(image.reader.read(0, 0, *image.size), sample.image.pixels)
            labels = data.labels(id, image)
            assert labels.instances.to_json() == sample.instances.to_json()
            assert (labels.ignored is None) == (sample.ignored is None)

    def test_labels(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"))
        for id in ("a", "b"):
            sample, truth = data.labelled(id), self.truth(id)
            assert isinstance(sample, Labelled) and sample.instances.source == "human"
            order = np.lexsort((sample.instances.boxes[:, 1], sample.instances.boxes[:, 0]))
            wanted = np.lexsort((truth.boxes[:, 1], truth.boxes[:, 0]))
            np.testing.assert_array_equal(sample.instances.masks()[order], truth.masks()[wanted])
            np.testing.assert_array_equal(sample.instances.classes[order], truth.classes[wanted])
        with pytest.raises(DataError, match="no labels"):
            data.labelled("c")

    def test_excluded_ids_are_gone(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"), exclude=frozenset("a"))
        assert sorted(data.train_ids + data.test_ids) == ["b", "c"]

    def test_pixel_limit(self, tmp_path):
        data = self.open(self.make(tmp_path / "set"), max_pixels=17 * 24)
        assert data.image("b").size == (17, 24)
        with pytest.raises(DataError, match="20 x 31 pixels, more than the limit of 408"):
            data.image("a")

    def test_damaged_labels_are_one_sentence(self, tmp_path):
        root = self.make(tmp_path / "set")
        self.damage(root)
        with pytest.raises(DataError) as caught:
            self.open(root).labelled("a")
        assert "\n" not in str(caught.value) and str(caught.value).endswith("."), str(caught.value)
        assert str(root) in str(caught.value)

    def test_no_data_set(self, tmp_path):
        with pytest.raises(DataError, match="nowhere does not exist"):
            self.open(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError) as caught:
            self.open(tmp_path / "empty")
        assert "\n" not in str(caught.value) and str(caught.value).endswith("."), str(caught.value)

"""What every writer has to do; a writer's test inherits `WriterContract` and says what its format can hold."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image, Instances, Labelled, Unlabelled
from fewlabel.data.pixels import read_image
from fewlabel.data.readers import open_folder
from fewlabel.data.writers import WRITERS, write

CLASSES = ("cat", "dog", "traffic light")


def label_map(seed: int, height: int, width: int, objects: int) -> np.ndarray:
    """Instance numbers int `(H, W)`: blocks of random objects, so that some touch, have holes or several parts."""
    rng = np.random.default_rng(seed)
    block = int(rng.integers(1, 5))
    coarse = rng.integers(0, objects + 1, (-(-height // block), -(-width // block)))
    return np.kron(coarse, np.ones((block, block), np.int64))[:height, :width]


def instances_of(labels: np.ndarray, classes: int = len(CLASSES)) -> Instances:
    """Instances of a label map; the class of number n is (n - 1) % classes."""
    numbers = [number for number in np.unique(labels) if number]
    masks = np.array([labels == number for number in numbers]).reshape(-1, *labels.shape)
    return Instances.from_masks(masks, classes=[(number - 1) % classes for number in numbers], size=labels.shape)


def samples(folder: Path) -> list[tuple[str, Labelled | Unlabelled]]:
    """One sample of every kind: depths and colours, with labels, with none, unlabelled, from files and from memory."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(rng.integers(0, 255, (20, 31), dtype=np.uint8)).save(folder / "grey.png")
    Pillow.fromarray(rng.integers(0, 255, (16, 12, 3), dtype=np.uint8)).save(folder / "colour.jpg")
    Pillow.fromarray(rng.integers(0, 65535, (9, 14), dtype=np.uint16)).save(folder / "deep.png")
    tifffile.imwrite(folder / "float.tif", rng.normal(size=(11, 10)).astype(np.float32))
    grey, colour, deep, real = (read_image(folder / n) for n in ("grey.png", "colour.jpg", "deep.png", "float.tif"))
    memory = Image("memory", rng.integers(0, 65535, (3, 8, 9)).astype(np.float32), "uint16", 16)
    return [
        ("train", Labelled(grey, instances_of(label_map(3, 20, 31, 4)))),
        ("train", Labelled(colour, Instances((16, 12)))),
        ("test", Labelled(deep, instances_of(label_map(4, 9, 14, 2)))),
        ("train", Unlabelled(real)),
        ("test", Labelled(memory, instances_of(label_map(5, 8, 9, 1)))),
    ]


class WriterContract:
    """Inherit and set the class attributes.

    Attributes:
        format: Key of WRITERS.
        reader: Key of READERS that reads it back; the same unless said otherwise.
        boxes: Whether the format keeps boxes instead of masks.
        overlaps: Whether objects that cover each other survive.
        ignores: Whether ignored regions survive.
        tolerance: Largest difference of a box coordinate in pixels, for formats that keep boxes.
    """

    format: str
    reader: str = ""
    boxes: bool = False
    overlaps: bool = True
    ignores: bool = False
    tolerance: float = 1e-3

    def open(self, out: Path):
        """Read back what was written."""
        return open_folder(out, self.reader or self.format)

    def write(self, out: Path, items, **options):
        return write(WRITERS[self.format], out, CLASSES, items, **options)

    def same(self, wanted: Instances | None, got: Instances | None) -> None:
        """The same objects in any order; None is no object."""
        assert (wanted is None or not len(wanted)) == (got is None or not len(got))
        if wanted is None or got is None:
            return
        if self.boxes:
            rows = [
                sorted(np.column_stack([labels.classes, labels.boxes.round(4)]).tolist()) for labels in (wanted, got)
            ]
            assert len(rows[0]) == len(rows[1])
            np.testing.assert_allclose(
                np.array(rows[1]).reshape(-1, 5), np.array(rows[0]).reshape(-1, 5), atol=self.tolerance
            )
            return
        keys = [
            sorted((int(c), r["counts"]) for c, r in zip(labels.classes, labels.rles, strict=True))
            for labels in (wanted, got)
        ]
        assert keys[0] == keys[1]

    def test_read_back(self, tmp_path):
        items = samples(tmp_path / "from")
        summary = self.write(tmp_path / "out", items)
        assert (summary.images, summary.labelled) == (5, 4)
        assert summary.objects == sum(len(s.instances) for _, s in items if isinstance(s, Labelled)) > 3
        assert summary.sentence().startswith("wrote 5 images, 4 of them labelled")
        data = self.open(tmp_path / "out")
        assert data.classes == CLASSES and data.problems == ()
        for part, sample in items:
            id = sample.image.id
            assert (id in data.train_ids, id in data.test_ids) == (part == "train", part == "test"), id
            image = data.image(id)
            np.testing.assert_array_equal(image.pixels, sample.image.pixels)
            assert (image.dtype, image.bit_depth) == (sample.image.dtype, sample.image.bit_depth)
            assert data.has_mask(id) == isinstance(sample, Labelled), id
            if isinstance(sample, Labelled):
                got = data.labelled(id)
                self.same(sample.instances, got.instances)
                assert got.instances.source == "human"

    def test_nothing_is_overwritten(self, tmp_path):
        items = samples(tmp_path / "from")
        out = tmp_path / "out"
        out.mkdir()
        self.write(out, items)  # an empty folder is no loss
        with pytest.raises(DataError, match="out exists already: name a new folder"):
            self.write(out, items)
        assert self.open(out).train_ids
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="file exists already"):
            self.write(tmp_path / "file", items)

    def test_a_failure_leaves_nothing(self, tmp_path):
        items = samples(tmp_path / "from")

        def breaks():
            yield from items[:2]
            raise DataError("the third cannot be read.")

        with pytest.raises(DataError, match="the third"):
            self.write(tmp_path / "out", breaks())
        with pytest.raises(DataError, match="image 'grey' comes twice"):
            self.write(tmp_path / "out", [items[0], items[0]])
        with pytest.raises(DataError, match="lists no image"):
            self.write(tmp_path / "out", [])
        image = Image("a/b", np.zeros((1, 8, 8), np.float32))
        with pytest.raises(DataError, match="cannot name a file"):
            self.write(tmp_path / "out", [("train", Unlabelled(image))])
        lonely = Labelled(items[0][1].image, instances_of(label_map(0, 20, 31, 9), 9))
        with pytest.raises(DataError, match="of class 8, but the data set names 3 classes"):
            self.write(tmp_path / "out", [("train", lonely)])
        assert {path.name for path in tmp_path.iterdir()} == {"from"}

    def test_ignored_regions(self, tmp_path):
        image = Image("a", np.arange(80, dtype=np.float32).reshape(1, 8, 10), "uint8", 8)
        labels = label_map(0, 8, 10, 2)
        ignored = instances_of((labels == 0).astype(np.int64))
        sample = Labelled(image, instances_of(labels), ignored)
        summary = self.write(tmp_path / "out", [("train", sample)])
        got = self.open(tmp_path / "out").labelled("a")
        self.same(sample.instances, got.instances)
        if self.ignores:
            assert got.ignored is not None and not summary.lost
            np.testing.assert_array_equal(got.ignored.semantic(), ignored.semantic())
        else:
            assert got.ignored is None and summary.lost.get("ignored regions") == 1
            assert "1 x ignored regions" in summary.sentence()

    def test_objects_that_cover_each_other(self, tmp_path):
        image = Image("a", np.arange(80, dtype=np.float32).reshape(1, 8, 10), "uint8", 8)
        masks = np.zeros((2, 8, 10), bool)
        masks[0, 1:6, 2:7] = masks[1, 4:8, 5:9] = True
        sample = Labelled(image, Instances.from_masks(masks, classes=[1, 1]))
        summary = self.write(tmp_path / "out", [("train", sample)])
        got = self.open(tmp_path / "out").labelled("a")
        if self.overlaps:
            self.same(sample.instances, got.instances)
        else:
            np.testing.assert_array_equal(got.instances.semantic(), sample.instances.semantic())
            assert sum(summary.lost.values()) >= 1

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.integers(0, 10**6), st.integers(1, 21), st.integers(1, 21), st.integers(0, 5))
    def test_any_masks(self, seed, height, width, objects):
        rng = np.random.default_rng(seed)
        image = Image("x", rng.integers(0, 255, (1, height, width)).astype(np.float32), "uint8", 8)
        sample = Labelled(image, instances_of(label_map(seed, height, width, objects)))
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder) / "out", [("train", sample)])
            got = self.open(Path(folder) / "out").labelled("x")
        np.testing.assert_array_equal(got.image.pixels, image.pixels)
        self.same(sample.instances, got.instances)

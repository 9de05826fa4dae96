"""CVAT: exact masks, exact boxes, and names that XML has to escape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.writers.contract import CLASSES, WriterContract

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image, Instances, Labelled, Unlabelled
from fewlabel.data.polygons import fill_box, instances
from fewlabel.data.readers import find_layout, open_folder
from fewlabel.data.writers import WRITERS, write
from fewlabel.data.writers.cvat import row_runs


class TestContract(WriterContract):
    format = "cvat"


def picture(id: str = "x") -> Image:
    return Image(id, np.arange(620, dtype=np.float32).reshape(1, 20, 31) % 251, "uint8", 8)


corner = st.floats(0, 31, width=32)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(corner, corner, corner, corner), min_size=1, max_size=4))
def test_boxes_alone(tmp_path_factory, corners):
    boxes = [(min(a, c), min(b, d, 20), max(a, c), min(max(b, d), 20)) for a, b, c, d in corners]
    filled = [fill_box(box, (20, 31)) for box in boxes]
    truth = instances((20, 31), [rle for rle, _ in filled], [0] * len(boxes), [box for _, box in filled])
    out = tmp_path_factory.mktemp("cvat") / "out"
    write(WRITERS["cvat"], out, CLASSES, [("test", Labelled(picture(), truth))], boxes_only=True)
    data = open_folder(out)
    assert data.boxes_only and data.test_ids == ("x",) and find_layout(out).format == "cvat"
    np.testing.assert_allclose(data.labelled("x").instances.boxes, truth.boxes, atol=1e-4)


def test_names_are_escaped(tmp_path):
    names, id = ("<\"&'>", "zwei Wörter"), "a&b<\"c'"
    masks = np.zeros((3, 20, 31), bool)
    masks[0, 1, 1] = masks[1, 3:5, 3:5] = True
    sample = Labelled(picture(id), Instances.from_masks(masks, classes=[0, 1, 1]))
    summary = write(WRITERS["cvat"], tmp_path / "out", names, [("train", sample), ("test", Unlabelled(picture("t")))])
    data = open_folder(tmp_path / "out")
    assert data.classes == names and data.labelled(id).instances.classes.tolist() == [0, 1]
    assert summary.lost == {"objects without a pixel": 1, "parts of test images without labels": 1}
    for bad in ("\x01", "\ud800"):
        with pytest.raises(DataError, match="which XML cannot hold: rename"):
            write(WRITERS["cvat"], tmp_path / "bad", (bad,), [("train", sample)])


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        ([[1]], [0, 1]),
        ([[0, 1], [1, 0]], [1, 2, 1]),
        ([[1, 1, 0], [0, 1, 1]], [0, 2, 2, 2]),
        ([[0, 0], [0, 1]], [3, 1]),
    ],
)
def test_runs_go_along_rows_and_begin_with_background(rows, runs):
    assert row_runs(np.array(rows, bool)) == runs

"""Files that are no exported student are refused with a sentence."""

import re

import numpy as np
import onnx
import pytest
import torch

from fewlabel.core.errors import ModelError
from fewlabel.core.radiometry import FLAT, standardise
from fewlabel.deploy.runtime import PREPROCESSING, OnnxStudent, sigmoid

FRAME_KEY = "fewlabel.frame"


def rewritten(path, out, change):
    """A copy of an ONNX file whose metadata `change` has edited."""
    proto = onnx.load(path)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    change(properties)
    onnx.helper.set_model_props(proto, properties)
    onnx.save(proto, out)
    return out


def test_the_recorded_formula_is_the_one_that_is_applied():
    """Read as arithmetic, the text of the metadata gives what `standardise` gives, on both sides of its bound."""
    value, zeros, bound = re.fullmatch(r"(.*); (zeros) where std <= (.*)", PREPROCESSING["formula"]).groups()
    assert (value, zeros, bound) == ("(x - mean) / std", "zeros", f"{FLAT:.0e} * max|x|".replace("e-0", "e-"))
    z = np.random.default_rng(0).standard_normal((32, 32))
    for contrast in (0.5 * FLAT, 2 * FLAT, 1.0):
        x = 100 * (1 + contrast * z)
        expected = np.zeros_like(x) if x.std() <= FLAT * np.abs(x).max() else (x - x.mean()) / x.std()
        np.testing.assert_allclose(standardise(x), expected, atol=1e-4)


def test_missing_and_damaged_files(tmp_path, spot_onnx):
    with pytest.raises(ModelError, match="is not a file"):
        OnnxStudent(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(spot_onnx.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot be loaded by ONNX Runtime"):
        OnnxStudent(broken)
    with pytest.raises(ModelError, match="0 threads"):
        OnnxStudent(spot_onnx, threads=0)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("fewlabel.threshold", None, "does not hold fewlabel's metadata"),
        ("fewlabel.classes", "{not json", "does not hold fewlabel's metadata"),
        ("fewlabel.preprocessing", '{"name": "min-max"}', "wants the preprocessing 'min-max'"),
        ("fewlabel.threshold", "1.5", "expected a probability"),
    ],
)
def test_damaged_metadata(tmp_path, spot_onnx, key, value, words):
    def change(properties):
        del properties[key]
        if value is not None:
            properties[key] = value

    path = rewritten(spot_onnx, tmp_path / "m.onnx", change)
    with pytest.raises(ModelError, match=words):
        OnnxStudent(path)


@pytest.mark.parametrize(
    "images", [np.zeros((4, 4), np.float32), np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 1, 4, 4))]
)
def test_wrong_input(spot_onnx, images):
    with pytest.raises(ModelError, match="expected float32"):
        OnnxStudent(spot_onnx).logits(images)


def test_sigmoid_equals_torch():
    values = np.array([-1e4, -90.0, -3.0, 0.0, 0.5, 20.0, 1e4], np.float32)
    np.testing.assert_allclose(sigmoid(values), torch.sigmoid(torch.from_numpy(values)).numpy(), atol=1e-7)


def test_detectors_and_masks_are_told_apart(spot_onnx, boxes_onnx, tmp_path):
    with pytest.raises(ModelError, match="is a detector, expected a model that gives masks"):
        OnnxStudent(boxes_onnx).logits(np.zeros((1, 1, 48, 48), np.float32))
    with pytest.raises(ModelError, match="gives masks, expected a detector"):
        OnnxStudent(spot_onnx).candidates(np.zeros((1, 1, 48, 48), np.float32))
    for value in ("0", '"wide"', "null"):
        path = rewritten(boxes_onnx, tmp_path / "m.onnx", lambda found, value=value: found.update({FRAME_KEY: value}))
        with pytest.raises(ModelError, match="frames of 'spots' are 0|does not hold fewlabel's metadata"):
            OnnxStudent(path)


@pytest.mark.parametrize(
    "frames", [np.zeros((1, 1, 48, 32), np.float32), np.zeros((1, 48, 48), np.float32), np.zeros((1, 1, 48, 48))]
)
def test_frames_of_another_kind(boxes_onnx, frames):
    with pytest.raises(ModelError, match=r"expected float32 \(batch, 1, 48, 48\)"):
        OnnxStudent(boxes_onnx).candidates(frames)

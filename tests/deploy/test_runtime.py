"""Files that are no exported student are refused with a sentence."""

import numpy as np
import onnx
import pytest
import torch

from fewlabel.core.errors import ModelError
from fewlabel.deploy.runtime import OnnxStudent, sigmoid


def rewritten(path, out, change):
    """A copy of an ONNX file whose metadata `change` has edited."""
    proto = onnx.load(path)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    change(properties)
    onnx.helper.set_model_props(proto, properties)
    onnx.save(proto, out)
    return out


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

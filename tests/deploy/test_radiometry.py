"""An exported model sees images by the radiometry that its data had."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fewlabel.core.errors import ModelError
from fewlabel.core.radiometry import Radiometry
from fewlabel.core.types import STANDARD, Image
from fewlabel.deploy.export import export_student
from fewlabel.deploy.predict import predict_image
from fewlabel.deploy.runtime import OnnxStudent

KELVIN = Radiometry(policy="fixed", low=280.0, high=320.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Calls target what is above the middle of the range."""
    network = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        network.weight.fill_(10.0)
        network.bias.fill_(0.0)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return export_student(network, path, name="hot", metadata={"radiometry": KELVIN})


def image_of(shift: float) -> Image:
    pixels = np.linspace(285, 295, 12 * 9, dtype=np.float32).reshape(1, 12, 9) + np.float32(shift)
    return Image("a", pixels)


def test_absolute_values_decide(model):
    student = OnnxStudent(model)
    assert student.info.radiometry == KELVIN
    for shift in (0.0, 8.0, 30.0):
        mask, _ = predict_image(student, image_of(shift))
        np.testing.assert_array_equal(mask, image_of(shift).pixels[0] > 300)


def test_a_standard_model_says_nothing_else_than_before(model, tmp_path):
    path = export_student(nn.Conv2d(1, 1, 1), tmp_path / "plain.onnx", name="plain", metadata={})
    student = OnnxStudent(path)
    assert student.info.radiometry == STANDARD and student.info.preprocessing["name"] == "standardise"
    assert "radiometry" not in student.info.preprocessing


def test_an_unknown_radiometry_is_refused(model, tmp_path):
    proto = onnx.load(str(model))
    for entry in proto.metadata_props:
        if entry.key == "fewlabel.preprocessing":
            entry.value = json.dumps(json.loads(entry.value) | {"radiometry": {"policy": "magic"}})
    onnx.save(proto, str(tmp_path / "other.onnx"))
    with pytest.raises(ModelError, match="wants the preprocessing 'radiometry'"):
        OnnxStudent(tmp_path / "other.onnx")

"""Exported students run at sizes they were not exported with, and carry what prediction needs."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fewlabel.core.errors import ExportError, ModelError
from fewlabel.core.types import STANDARD
from fewlabel.deploy.export import OPSET, export_student
from fewlabel.deploy.runtime import PREPROCESSING, OnnxStudent, preparation
from fewlabel.deploy.verify import RELATIVE
from fewlabel.students import create
from fewlabel.training.checkpoint import weights_sha256

SHAPES = [(1, 1, 135, 96), (2, 1, 256, 256), (3, 1, 100, 333), (1, 1, 1, 1), (1, 1, 17, 16)]


@pytest.mark.parametrize("name", ["acm", "unet"])
def test_students_run_at_any_size(name, tmp_path):
    torch.manual_seed(0)
    model = create(name).train()
    path = export_student(model, tmp_path / f"{name}.onnx", name=name, metadata={})
    assert model.training, "the caller's network was changed"
    student, network = OnnxStudent(path), copy.deepcopy(model).eval()
    for shape in SHAPES:
        batch = torch.randn(shape)
        with torch.no_grad():
            expected = network(batch).numpy()
        got = student.logits(batch.numpy())
        assert got.shape == shape
        # Logits of random weights reach tens, and rounding follows the largest values that are added up.
        bound = 1e-4 + RELATIVE * float(np.abs(expected).max())
        np.testing.assert_allclose(got, expected, atol=bound, rtol=0)


def test_metadata_and_axes(spot_onnx, spot_net):
    proto = onnx.load(spot_onnx)
    for value, name in ((proto.graph.input[0], "image"), (proto.graph.output[0], "logits")):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert (value.name, axes) == (name, ["batch", 1, "height", "width"])
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)]
    info = OnnxStudent(spot_onnx).info
    assert (info.name, info.student, info.threshold, info.classes) == ("spot", "spot", 0.6, ("target",))
    assert info.cut == pytest.approx(np.log(0.6 / 0.4))
    assert info.weights_sha256 == weights_sha256(spot_net)
    assert info.preprocessing == PREPROCESSING
    assert info.extra == {"run": "test"}


def test_file_holds_no_path_of_this_machine(spot_onnx):
    content = spot_onnx.read_bytes()
    for trace in (b".py", b"stack_trace", str(spot_onnx.parent).encode()):
        assert trace not in content


def test_equal_weights_give_equal_bytes(spot_onnx, spot_net, tmp_path):
    again = export_student(spot_net, tmp_path / "b.onnx", name="spot", metadata={"threshold": 0.6, "run": "test"})
    assert again.read_bytes() == spot_onnx.read_bytes()


class SizeBound(nn.Module):
    """Its code depends on the height, as no student's may."""

    def forward(self, images):
        return images * 2 if images.shape[2] == 72 else images


def test_a_network_bound_to_one_size_is_refused(tmp_path):
    with pytest.raises(ExportError, match="'bound' cannot be exported .* must not branch on the size"):
        export_student(SizeBound(), tmp_path / "m.onnx", name="bound", metadata={})
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("metadata", "words"), [({"threshold": 1.0}, "expected a probability"), ({"classes": ["a", "b"]}, "expected one")]
)
def test_metadata_without_sense_is_refused(spot_net, tmp_path, metadata, words):
    with pytest.raises(ModelError, match=words):
        export_student(spot_net, tmp_path / "m.onnx", name="spot", metadata=metadata)


def test_a_detector_says_what_it_is(boxes_onnx, spot_detector):
    proto = onnx.load(boxes_onnx)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert axes == {"image": ["batch", 1, 48, 48], "boxes": ["batch", 6, 4], "logits": ["batch", 6]}
    properties = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert (properties["fewlabel.task"], properties["fewlabel.frame"]) == ("detection", 48)
    assert "within 4.5 pixels" in properties["fewlabel.postprocessing"]["inner borders"]
    info = OnnxStudent(boxes_onnx).info
    assert (info.name, info.student, info.threshold, info.frame) == ("spots", "dfine", 0.6, 48)
    assert info.preprocessing == preparation(STANDARD, 48) and info.extra == {"run": "test"}
    assert info.weights_sha256 == weights_sha256(spot_detector)


def test_masks_have_no_entries_of_detectors(spot_onnx):
    keys = {entry.key for entry in onnx.load(spot_onnx).metadata_props}
    assert {f"fewlabel.{key}" for key in ("task", "frame", "postprocessing")}.isdisjoint(keys)
    assert OnnxStudent(spot_onnx).info.frame is None


def test_detectors_of_equal_weights_give_equal_bytes_without_paths(boxes_onnx, spot_detector, tmp_path):
    metadata = {"student": "dfine", "threshold": 0.6, "run": "test"}
    again = export_student(copy.deepcopy(spot_detector).train(), tmp_path / "b.onnx", name="spots", metadata=metadata)
    content = again.read_bytes()
    assert content == boxes_onnx.read_bytes()
    for trace in (b".py", b"stack_trace", str(boxes_onnx.parent).encode()):
        assert trace not in content


def test_a_detector_takes_any_number_of_frames(boxes_onnx, spot_detector):
    student = OnnxStudent(boxes_onnx)
    for batch in (1, 2, 5):
        frames = torch.randn(batch, 1, 48, 48, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            boxes, logits = spot_detector(frames)
        got_boxes, got_scores = student.candidates(frames.numpy())
        np.testing.assert_allclose(got_boxes, boxes.numpy(), atol=1e-4)
        np.testing.assert_allclose(got_scores, torch.sigmoid(logits).numpy(), atol=1e-5)

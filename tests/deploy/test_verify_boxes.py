"""The parity proof of boxes passes for the detector itself and fails for any other."""

import copy
import json

import numpy as np
import pytest
import torch

from fewlabel.core.errors import ExportError, ModelError
from fewlabel.core.radiometry import standardise
from fewlabel.deploy.verify_boxes import PIXELS, verify_boxes
from fewlabel.students.detector.predict import detect


@pytest.fixture(scope="module")
def images(make_scene):
    """Smaller than a frame, of several frames, and without a target."""
    scenes = [((40, 44), [(12, 20)]), ((70, 93), [(20, 30), (50, 60)]), ((64, 50), [])]
    return [standardise(make_scene(*size, spots, seed).astype(np.float32)) for seed, (size, spots) in enumerate(scenes)]


def test_the_export_passes(boxes_onnx, spot_detector, images):
    report = verify_boxes(boxes_onnx, spot_detector, images)
    assert report.passed and (report.images, report.threshold) == (3, 0.6)
    assert report.boxes == 3, "the comparison must have seen targets"
    assert report.compared == 2 * (1 + 2 + 1), "of the empty image the surest box"
    assert report.max_pixels < 1e-4 and report.max_score < 1e-5 and report.differing_boxes == 0
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


def test_a_changed_score_fails(boxes_onnx, spot_detector, images):
    changed = copy.deepcopy(spot_detector)
    with torch.no_grad():
        changed.head.bias += 0.01
    with pytest.raises(ExportError, match="does not reproduce its network"):
        verify_boxes(boxes_onnx, changed, images)
    report = verify_boxes(boxes_onnx, changed, images, report_only=True)
    assert not report.passed and report.max_score > 1e-4 and report.max_pixels < PIXELS
    with torch.no_grad():
        changed.head.bias -= 100
    report = verify_boxes(boxes_onnx, changed, images, report_only=True)
    assert report.differing_boxes == 3 and not report.passed


def test_a_moved_box_fails(boxes_onnx, spot_detector, images):
    changed = copy.deepcopy(spot_detector)
    forward = changed.forward
    changed.forward = lambda frames: (forward(frames)[0] + 0.1, forward(frames)[1])
    report = verify_boxes(boxes_onnx, changed, images, report_only=True)
    assert report.max_pixels == pytest.approx(0.1, rel=1e-3) and report.max_score < 1e-5 and not report.passed


def test_one_box_less_fails(boxes_onnx, spot_detector, images):
    """The other side's boxes are compared as well."""
    changed = copy.deepcopy(spot_detector)
    forward = changed.forward
    changed.forward = lambda frames: tuple(part[:, :1] for part in forward(frames))
    image = images[1][10:58, 25:73]  # one frame with both targets
    assert (detect(spot_detector, image).scores > 0.6).sum() == 2
    assert not verify_boxes(boxes_onnx, changed, [image], report_only=True).passed


def test_nan_fails(boxes_onnx, spot_detector, images):
    changed = copy.deepcopy(spot_detector)
    with torch.no_grad():
        changed.head.bias.fill_(float("nan"))
    report = verify_boxes(boxes_onnx, changed, images, report_only=True)
    assert not report.passed
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["max_score"] is None


def test_nothing_and_the_wrong_kind_prove_nothing(boxes_onnx, spot_onnx, spot_detector, images):
    with pytest.raises(ExportError, match="No image was given"):
        verify_boxes(boxes_onnx, spot_detector, [])
    with pytest.raises(ModelError, match="gives masks, expected a detector"):
        verify_boxes(spot_onnx, spot_detector, images)


def test_the_network_is_left_as_it_was(boxes_onnx, spot_detector, images):
    network = copy.deepcopy(spot_detector).train()
    verify_boxes(boxes_onnx, network, images)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())

"""The parity proof passes for the network itself and fails for any other."""

import copy
import json

import numpy as np
import pytest
import torch

from fewlabel.core.errors import ExportError
from fewlabel.core.radiometry import standardise
from fewlabel.deploy.verify import verify


@pytest.fixture(scope="module")
def images(make_scene):
    sizes = [(64, 64), (45, 83), (31, 32)]
    return [standardise(make_scene(*size, [(12, 20)], seed).astype(np.float32)) for seed, size in enumerate(sizes)]


def test_the_export_passes(spot_onnx, spot_net, images):
    report = verify(spot_onnx, spot_net, images)
    assert report.passed
    assert report.images == 3 and report.pixels == sum(image.size for image in images)
    assert report.max_difference < 1e-5
    assert report.differing_pixels == 0
    assert report.mask_pixels >= 3 * 4, "the comparison of masks must have seen targets"
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


@pytest.mark.parametrize("where", ["near", "far", "head"])
def test_a_changed_weight_fails(spot_onnx, spot_net, images, where):
    changed = copy.deepcopy(spot_net)
    with torch.no_grad():
        getattr(changed, where).weight.view(-1)[0] += 1e-3
    with pytest.raises(ExportError, match="does not reproduce its network"):
        verify(spot_onnx, changed, images)
    report = verify(spot_onnx, changed, images, report_only=True)
    assert not report.passed and report.max_difference > 1e-4


def test_other_masks_fail_within_a_wide_tolerance(spot_onnx, spot_net, images):
    changed = copy.deepcopy(spot_net)
    with torch.no_grad():
        changed.head.bias += 2.0
    report = verify(spot_onnx, changed, images, tolerance=10.0, report_only=True)
    assert report.differing_pixels > 0 and not report.passed


def test_nan_fails(spot_onnx, spot_net, images):
    changed = copy.deepcopy(spot_net)
    with torch.no_grad():
        changed.head.bias.fill_(float("nan"))
    report = verify(spot_onnx, changed, images, report_only=True)
    assert not report.passed
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["max_difference"] is None


def test_no_images_prove_nothing(spot_onnx, spot_net):
    with pytest.raises(ExportError, match="No image was given"):
        verify(spot_onnx, spot_net, [])


def test_the_network_is_left_as_it_was(spot_onnx, spot_net, images):
    network = copy.deepcopy(spot_net).train()
    verify(spot_onnx, network, images)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())

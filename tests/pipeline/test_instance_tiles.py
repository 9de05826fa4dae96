"""Objects of large images: tile by tile with a real, random network."""

import numpy as np
import pytest
import torch

from fewlabel.core.types import Instances
from fewlabel.data.stitch import stitch
from fewlabel.data.tiles import crops
from fewlabel.pipeline import instance_tiles
from fewlabel.pipeline.instance_tiles import objects_of_any_size
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig
from fewlabel.s4m.predict import find_objects


@pytest.fixture(scope="module")
def network() -> InstanceSegmenter:
    torch.manual_seed(0)
    return InstanceSegmenter(NetworkConfig(name="nano"), 2).eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand((3, 150, 130), generator=torch.Generator().manual_seed(0))


def sure(found: Instances, threshold: float) -> Instances:
    return found.select(found.scores >= threshold)


def test_a_large_image_is_seen_by_tiles(network, image, monkeypatch):
    monkeypatch.setattr(instance_tiles, "LARGE", 150 * 130 - 1)
    monkeypatch.setattr(instance_tiles, "TILE", 96)
    monkeypatch.setattr(instance_tiles, "OVERLAP", 32)
    seen: list[tuple[int, ...]] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    threshold = float(np.median(find_objects(network, image).scores))
    seen.clear()
    found = objects_of_any_size(network, image, threshold, None)
    hook.remove()
    assert seen == [(1, 3, 96, 96)] * 4
    assert found.size == (150, 130) and len(found) and found.source == "student"
    assert (np.diff(found.scores) <= 0).all() and (found.scores >= threshold).all()
    places = crops(150, 130, 96, 32)
    parts = [
        sure(find_objects(network, image[:, p.top : p.top + p.height, p.left : p.left + p.width]), threshold)
        for p in places
    ]
    expected = stitch((150, 130), places, parts)
    assert sorted(code["counts"] for code in found.rles) == sorted(code["counts"] for code in expected.rles)


@pytest.mark.parametrize("side", [None, 64])
def test_a_small_image_and_one_of_a_set_size_are_seen_whole(network, image, monkeypatch, side):
    if side is not None:
        monkeypatch.setattr(instance_tiles, "LARGE", 1)
    found = objects_of_any_size(network, image, 0.2, side)
    assert found.to_json() == sure(find_objects(network, image, side=side), 0.2).to_json()

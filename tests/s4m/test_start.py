from pathlib import Path

import pytest
import torch

from fewlabel.core.errors import ModelError
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig
from fewlabel.training.checkpoint import save_weights
from fewlabel.training.loop import WEIGHTS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InstanceSegmenter]:
    torch.manual_seed(3)
    network = InstanceSegmenter(NetworkConfig(name="nano", queries=12), 2)
    folder = tmp_path_factory.mktemp("start")
    save_weights(folder / WEIGHTS, network, {})
    return folder, network


def started(folder: Path, classes: int, **config) -> InstanceSegmenter:
    torch.manual_seed(9)
    return InstanceSegmenter(NetworkConfig(name="nano", start=str(folder), **config), classes)


def test_a_network_of_the_same_classes_is_the_started_one(trained):
    folder, source = trained
    ours = started(folder, 2, queries=12).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in source.state_dict().items())


def test_other_classes_begin_anew_and_fewer_queries_are_the_first(trained):
    folder, source = trained
    ours, theirs = started(folder, 5, queries=7).state_dict(), source.state_dict()
    different = {name for name in theirs if ours[name].shape != theirs[name].shape}
    heads = {name for name in different if ".class_predictor." in name or name.endswith("empty_weight")}
    assert len(heads) == 3
    assert all(torch.equal(ours[name], theirs[name][:7]) for name in different - heads)
    assert len(different - heads) == 2
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name not in different)
    torch.manual_seed(9)
    fresh = InstanceSegmenter(NetworkConfig(name="nano", queries=7), 5).state_dict()
    assert all(torch.equal(ours[name], fresh[name]) for name in heads)


def test_what_cannot_be_started_from_is_named(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ModelError, match="there is no"):
        started(tmp_path, 2)
    with pytest.raises(ModelError, match="as many queries or more"):
        started(folder, 2, queries=13)
    with pytest.raises(ModelError, match="another architecture"):
        InstanceSegmenter(NetworkConfig(name="tiny", start=str(folder)), 2)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="of size tiny"):
        NetworkConfig(name="nano", start="rendered")
    with pytest.raises(ValueError, match="leave one out"):
        NetworkConfig(name="tiny", start="rendered", backbone_weights="a/b")

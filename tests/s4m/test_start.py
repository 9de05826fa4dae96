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


def test_frozen_norms_are_those_of_the_start(tmp_path):
    source = InstanceSegmenter(NetworkConfig(name="nano", backbone_weights="a/b"), 2, pretrained=False)
    for name, value in source.named_buffers():
        if name.endswith("running_mean"):
            value.uniform_()
    save_weights(tmp_path / WEIGHTS, source, {})
    ours = started(tmp_path, 2, norm="frozen").state_dict()
    assert sum(name.endswith("running_mean") for name in ours) > 0
    assert all(torch.equal(ours[name], value) for name, value in source.state_dict().items())
    with pytest.raises(ModelError, match="same network.name and network.norm"):
        started(tmp_path, 2)


def test_what_cannot_be_started_from_is_named(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ModelError, match="there is no weights.safetensors of a trained network"):
        started(tmp_path, 2)
    with pytest.raises(ModelError, match="with 12 queries, but 13 are wanted: set network.queries to 12 or less"):
        started(folder, 2, queries=13)
    with pytest.raises(ModelError, match="another architecture"):
        InstanceSegmenter(NetworkConfig(name="tiny", start=str(folder)), 2)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="leave one out"):
        NetworkConfig(name="tiny", start="a", backbone_weights="a/b")


def test_a_run_folder_stands_for_the_network_that_it_ships(trained, tmp_path):
    folder, source = trained
    (tmp_path / "train" / "fewlabel").mkdir(parents=True)
    (tmp_path / "train" / "fewlabel" / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    ours = started(tmp_path, 2, queries=12).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in source.state_dict().items())

"""Prediction from a network's folder alone: no training data, no run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from fewlabel.core.errors import DataError, ModelError
from fewlabel.core.files import read_json, write_json
from fewlabel.core.masks import decode
from fewlabel.core.radiometry import Radiometry
from fewlabel.core.types import Instances
from fewlabel.pipeline.instance_predict import edges, label_map, model_folder, predict_instances
from fewlabel.s4m.checkpoint import CARD, ModelCard, load_model, save_card
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig
from fewlabel.training.checkpoint import save_weights
from fewlabel.training.loop import WEIGHTS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = InstanceSegmenter(NetworkConfig(name="nano"), 2)
    save_weights(folder / WEIGHTS, network, {"fingerprint": "x"})
    card = ModelCard(
        network=network.config, classes=("cell", "rod"), side=None, threshold=0.0, radiometry=Radiometry(), name="test"
    )
    save_card(folder, card)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    Picture.fromarray(rng.integers(0, 255, (40, 56, 3), np.uint8)).save(tmp_path / "images" / "colour.png")
    Picture.fromarray(rng.integers(0, 60000, (33, 47), np.uint16)).save(tmp_path / "images" / "deep.png")
    return tmp_path / "images"


def test_masks_and_annotations_say_the_same(trained: Path, images: Path, tmp_path: Path) -> None:
    summary = predict_instances(trained, images, tmp_path / "out")
    content = read_json(tmp_path / "out" / "predictions.json")
    assert (summary.images, summary.targets) == (2, len(content["annotations"]))
    assert summary.targets > 0
    assert [category["name"] for category in content["categories"]] == ["cell", "rod"]
    for image in content["images"]:
        found = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        labels = np.asarray(Picture.open(tmp_path / "out" / "masks" / f"{image['name']}.png"))
        assert labels.shape == (image["height"], image["width"])
        scores = [item["score"] for item in found]
        assert scores == sorted(scores, reverse=True)
        first = decode(
            {"size": found[0]["segmentation"]["size"], "counts": found[0]["segmentation"]["counts"].encode()}
        )
        assert ((labels == 1) == first).all()
        assert {item["category_id"] for item in found} <= {1, 2}
        assert Picture.open(tmp_path / "out" / "overlays" / f"{image['name']}.png").size == labels.shape[::-1]


def test_the_threshold_of_the_card_counts(trained: Path, images: Path, tmp_path: Path) -> None:
    every = predict_instances(trained, images, tmp_path / "all").targets
    strict = tmp_path / "strict"
    shutil.copytree(trained, strict)
    scores = sorted(item["score"] for item in read_json(tmp_path / "all" / "predictions.json")["annotations"])
    middle = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    write_json(strict / CARD, read_json(strict / CARD) | {"threshold": middle})
    fewer = predict_instances(strict, images, tmp_path / "some").targets
    assert fewer == sum(score >= middle for score in scores) < every


def test_a_run_ships_its_smaller_network_if_there_is_one(trained: Path, tmp_path: Path) -> None:
    assert model_folder(trained) == trained / "."
    shutil.copytree(trained, tmp_path / "train" / "fewlabel")
    assert model_folder(tmp_path) == tmp_path / "train" / "fewlabel"
    shutil.copytree(trained, tmp_path / "smaller" / "smaller")
    assert model_folder(tmp_path) == tmp_path / "smaller" / "smaller"


def test_what_is_no_network_is_named(trained: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no trained network of instance segmentation"):
        predict_instances(images, images, tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    (broken / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="holds no trained network"):
        load_model(broken)
    shutil.copy(trained / WEIGHTS, broken / WEIGHTS)
    write_json(broken / CARD, {key: value for key, value in read_json(trained / CARD).items() if key != "classes"})
    with pytest.raises(ModelError, match=r"model\.json: classes"):
        load_model(broken)


def test_a_damaged_image_is_listed_or_stops(trained: Path, images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="broken"):
        predict_instances(trained, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    summary = predict_instances(trained, images, tmp_path / "out", keep_going=True)
    assert summary.images == 2
    assert len(summary.rejected) == 1


def test_label_maps_show_the_surer_object_above_and_edges_part_neighbours() -> None:
    masks = np.zeros((2, 6, 8), bool)
    masks[0, 1:5, 1:5] = True
    masks[1, 1:5, 3:7] = True
    labels = label_map(Instances.from_masks(masks, scores=[0.9, 0.5]))
    assert (labels == 1).sum() == 16
    assert (labels == 2).sum() == 8
    assert labels.dtype == np.uint16
    inner = np.zeros((6, 8), bool)
    inner[2:4, 2:4] = True  # the second object is two columns wide: all edge
    assert (edges(labels) == ((labels > 0) & ~inner)).all()

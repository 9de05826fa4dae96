"""Train the network `tiny` on rendered scenes: a start for recipes on a CPU, `network.start=runs/s4m-start`.

    python benchmarks/s4m/pretrain.py runs/s4m-start [--steps 12000] [--device cpu]

Every object of a scene is of one class, whatever it is. The scenes are those that nano-SAM learns from: half generic,
half like microscopy, none real. A killed training goes on with the same command. At the end the network is scored on
held-out scenes and on every fourth of DSB2018's training images (never its test list); start.json has the figures.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from fewlabel.core.files import write_json
from fewlabel.core.provenance import commit, processor
from fewlabel.core.types import Instances
from fewlabel.data.instance_crops import CropConfig, Record
from fewlabel.data.readers import open_folder
from fewlabel.data.synth.objects import ObjectScene, ObjectsConfig, render
from fewlabel.data.views import colours
from fewlabel.metrics.instances import InstanceMetric
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig
from fewlabel.s4m.predict import find_objects
from fewlabel.s4m.teacher import TeachConfig, teach

HERE = Path(__file__).parent
SIDE, QUERIES, BATCH, HELD_OUT = 256, 100, 4, 100
SEED, HELD_OUT_SEED = 0, 1


def objects_of(scene: ObjectScene) -> Instances:
    """A scene's objects as one class; parts are no objects of their own."""
    return Instances.from_components(scene.labels, np.arange(1, int(scene.labels.max()) + 1), source="synthetic")


def draw(count: int, rng: np.random.Generator) -> list[Record]:
    """Freshly rendered scenes."""
    scenes = [render(rng, SIDE, ObjectsConfig()) for _ in range(count)]
    return [Record(scene.pixels, objects_of(scene), "a rendered scene") for scene in scenes]


def scored(network: InstanceSegmenter, pairs: Iterable[tuple[torch.Tensor, Instances]]) -> dict[str, float]:
    """AP and AP50 of all objects as one class."""
    metric = InstanceMetric(1)
    for image, truth in pairs:
        metric.update(find_objects(network, image), truth)
    found = metric.compute()
    return {"AP": round(found["AP"], 2), "AP50": round(found["AP50"], 2), "images": found["images"]}


def rendered_pairs() -> Iterable[tuple[torch.Tensor, Instances]]:
    """Scenes that no training sees."""
    for number in range(HELD_OUT):
        scene = render(np.random.default_rng([HELD_OUT_SEED, number]), SIDE, ObjectsConfig())
        yield torch.from_numpy(scene.pixels.astype(np.float32) / 255), objects_of(scene)


def real_pairs(root: Path) -> Iterable[tuple[torch.Tensor, Instances]]:
    """Every fourth training image of DSB2018."""
    dataset = open_folder(root, "masks", frozenset())
    for id in dataset.train_ids[::4]:
        sample = dataset.labelled(id)
        yield colours(sample.image), sample.instances.select(sample.instances.areas() > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the training")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of DSB2018's folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network = InstanceSegmenter(NetworkConfig(name="tiny", queries=QUERIES), 1)
    config = TeachConfig(
        steps=options.steps, batch=BATCH, lr=1e-3, clip=1.0, ema=0.999, similarity_weight=0.0, weight_decay=0.01
    )
    crops = CropConfig(crop=SIDE, scale_low=0.75, scale_high=1.33, turns=True)
    teach(network, draw, config, crops, options.run, seed=SEED, label="rendered start", device=options.device)
    network.to("cpu")
    card = {
        "steps": options.steps,
        "config": config.model_dump(mode="json"),
        "crops": crops.model_dump(mode="json"),
        "rendered": scored(network, rendered_pairs()),
        "DSB2018-train": scored(network, real_pairs(options.data / "DSB2018")),
        "machine": processor(),
        "commit": commit(HERE),
    }
    write_json(HERE / "start.json", card)
    print(card["rendered"], card["DSB2018-train"])


if __name__ == "__main__":
    main()

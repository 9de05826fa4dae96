"""What the recipes for four GPUs cost: parameters, FLOPs, memory and hours, counted and not run.

    nice python benchmarks/s4m/cost.py                                        # count, minutes of one core
    python benchmarks/s4m/cost.py --write docs/methods/s4m-at-scale.md        # put the tables into the page

FLOPs are two for each multiplication with addition in convolutions, matrix products and attention, as
`torch.utils.flop_counter` sees them in one real step of the network on random images; element-wise work, norms and the
sampling of deformable attention are left out. What a step costs is affine in the number of pixels, so it is counted on
crops of 256 and 512 pixels and continued to the recipe's; `continued` compares that with a forward pass of the real
size. SAM 2.1 large is counted on the meta device from its published sizes.

Memory is the most that tensors hold at once: a network's forward and backward pass in bfloat16 autocast, affine in
pixels and images; SAM's encoder in float32, which autocast about halves. What libraries set aside for themselves and
what fragmentation loses come on top.

Hours are FLOPs by an assumed effective rate of a GPU, `RATES`; nothing of them is measured. `draw_seconds` are: those
of one core to read an image of the data set's usual size and to cut one training crop of it, which each process does
between its steps.

Writes benchmarks/s4m/cost.json.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402  the thread limit has to be set before its pools start
import torch  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from fewlabel.core.files import read_json, write_json  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.data.instance_crops import CropConfig, crop_view, record_loaders  # noqa: E402
from fewlabel.data.readers import open_folder  # noqa: E402
from fewlabel.data.synth.objects import ObjectsConfig  # noqa: E402
from fewlabel.data.synth.objects_coco import write_coco_dataset  # noqa: E402
from fewlabel.data.views import View  # noqa: E402
from fewlabel.recipe import InstanceRecipe, load_recipe, of_method  # noqa: E402
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig  # noqa: E402
from fewlabel.sam.catalogue import find  # noqa: E402
from fewlabel.sam.promptable import Embedding, PromptableSegmenter  # noqa: E402
from fewlabel.sam.tokens import prompted_tokens  # noqa: E402

HERE = Path(__file__).parent
RECORD = HERE / "cost.json"
RECIPES = {"s4m-cityscapes": (8, (1024, 2048)), "s4m-coco": (80, (480, 640))}
"""Classes of each recipe's data set, and rows and columns of its usual image."""

RATES = (15, 60)  # effective TFLOP/s of one GPU: a consumer's card of 2020, and a data centre's of 2020 in bfloat16
OBJECTS = 10  # in a crop, true ones and pseudo-labels alike: an assumption
PROCESSES = 4
SMALL, LARGE = 256, 512  # sides of the crops that are counted
GIB = 2**30


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made within the block held at once, as `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        if sum(size for _, size in self.live.values()) > self.peak:  # only then is it worth asking who has gone
            self.live = {key: item for key, item in self.live.items() if not item[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def counted(work: Callable[[], Any]) -> tuple[float, float]:
    """FLOPs, and the most bytes held at once, of some work."""
    with FlopCounterMode(display=False) as flops, PeakMemory() as memory:
        work()
    return float(flops.get_total_flops()), float(memory.peak)


def random_views(batch: int, side: int) -> list[View]:
    """Noise with `OBJECTS` square objects."""
    rng = torch.Generator().manual_seed(0)
    masks = torch.zeros(OBJECTS, side, side, dtype=torch.bool)
    for index in range(OBJECTS):
        start = index * side // (2 * OBJECTS)
        masks[index, start : start + side // 4, start : start + side // 4] = True
    classes = torch.arange(OBJECTS) % 8
    return [View(torch.rand(3, side, side, generator=rng), masks, classes, (side, side)) for _ in range(batch)]


def network_costs(config: NetworkConfig, classes: int, crop: int) -> dict[str, Any]:
    """What a step of a network costs, for one image of the crop's size, and how memory grows with the batch."""
    torch.manual_seed(0)
    network = InstanceSegmenter(config.model_copy(update={"backbone_weights": None, "norm": "batch"}), classes)

    def forward(batch: int, side: int) -> tuple[float, float]:
        images = torch.stack([view.image for view in random_views(batch, side)])
        with torch.no_grad():
            return counted(lambda: network.eval()(images))

    def training(batch: int, side: int) -> tuple[float, float]:
        views = random_views(batch, side)
        images = torch.stack([view.image for view in views])

        def step() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = network.loss_terms(network.train()(images), views)["loss"]
            loss.backward()

        found = counted(step)
        network.zero_grad(set_to_none=True)
        return found

    def continued(small: float, large: float) -> float:
        return small + (large - small) * (crop**2 - SMALL**2) / (LARGE**2 - SMALL**2)

    seen, seen_large = forward(1, SMALL)[0], forward(1, LARGE)[0]
    real = forward(1, crop)[0]
    one, one_large, two = training(1, SMALL), training(1, LARGE), training(2, SMALL)
    each = two[1] - one[1] + (one_large[1] - one[1]) * (crop**2 - SMALL**2) / (LARGE**2 - SMALL**2)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "forward_gflops": round(real / 1e9, 1),
        "continued": round(continued(seen, seen_large) / real, 4),
        "training_gflops": round(continued(one[0], one_large[0]) / 1e9, 1),
        "image_gib": round(each / GIB, 2),
        "step_gib": round((2 * one[1] - two[1]) / GIB, 2),
    }


def sam_large() -> Any:
    """Transformers' configuration of SAM 2.1 large, by the sizes that its checkpoint publishes."""
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=144,
        blocks_per_stage=[2, 6, 36, 4],
        embed_dim_per_stage=[144, 288, 576, 1152],
        num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=[8, 4, 16, 8],
        global_attention_blocks=[23, 33, 43],
        window_positional_embedding_background_size=[7, 7],
        num_attention_heads=2,
    )
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=[1152, 576, 288, 144])
    return Sam2Config(vision_config=vision)


def sam_costs() -> dict[str, Any]:
    """What SAM 2.1 large costs: once per image, per point of structural distillation, per refined mask."""
    from transformers import Sam2Config, Sam2Model

    with torch.device("meta"):
        large = Sam2Model(sam_large()).eval()
    parameters = sum(parameter.numel() for parameter in large.parameters())
    entry = find("sam2.1-large")
    assert entry is not None and parameters == entry.parameters, (parameters, entry)
    pixels = torch.zeros(1, 3, entry.side, entry.side, device="meta")
    with torch.no_grad():
        flops, peak = counted(lambda: large.get_image_embeddings(pixels))
    torch.manual_seed(0)
    # Prompts and masks are the same in all sizes of SAM 2; the checks of points want numbers, which meta tensors lack.
    small = PromptableSegmenter(Sam2Model(Sam2Config()), "sam2", "SAM 2's decoder").eval().requires_grad_(False)
    shapes = [(32, 256), (64, 128), (256, 64)]
    embedding = Embedding([torch.randn(1, channels, side, side) for channels, side in shapes], (entry.side, entry.side))

    def rows(prompts: int) -> float:
        return counted(lambda: prompted_tokens(small, embedding, torch.full((1, prompts, 1, 2), 100.0)))[0]

    def masks(prompts: int) -> float:
        return counted(lambda: small.decode_low(embedding, torch.full((1, prompts, 3, 2), 100.0)))[0]

    with torch.no_grad():
        return {
            "parameters": parameters,
            "encoder_gflops": round(flops / 1e9, 1),
            "encoder_gib": round(peak / GIB, 2),
            "point_gflops": round((rows(2) - rows(1)) / 1e9, 2),
            "mask_gflops": round((masks(2) - masks(1)) / 1e9, 2),
        }


def draw_seconds(size: tuple[int, int], crops: CropConfig, images: int = 4) -> float:
    """Processor seconds to read a labelled image and cut one crop, the mean over rendered scenes as PNG."""
    config = ObjectsConfig(styles=(1.0, 0.0, 0.0, 0.0), objects=(20, 20), radius=(10.0, 60.0), parts=0.0)
    with tempfile.TemporaryDirectory() as folder:
        data = write_coco_dataset(Path(folder) / "data", images, 0, classes=8, size=size, config=config)
        dataset = open_folder(data, "coco")
        rng, seconds = np.random.default_rng(0), 0.0
        for load in record_loaders(dataset, dataset.train_ids):
            began = time.process_time()
            crop_view(load(), crops, rng)
            seconds += time.process_time() - began
    return seconds / images


def stages(recipe: InstanceRecipe, network: dict[str, Any], sam: dict[str, Any]) -> dict[str, Any]:
    """FLOPs, hours and memory of both stages, for each of `PROCESSES` GPUs."""
    teach, student = recipe.teach, recipe.student
    shown = sam["encoder_gflops"] + teach.points * sam["point_gflops"]
    asked = sam["encoder_gflops"] + OBJECTS * sam["mask_gflops"]
    costs = {
        "teach": (teach, network["training_gflops"], shown),
        "student": (student, 2 * network["training_gflops"] + network["forward_gflops"], asked),
    }
    # Weights, two moments and the average of what is trained; the guiding network; SAM. Gradients are in `step_gib`.
    weights, held = 4 * network["parameters"] / GIB, 4 * sam["parameters"] / GIB
    found = {}
    for name, (config, own, of_sam) in costs.items():
        graphs = config.batch * (2 if name == "student" else 1)
        standing = (5 if name == "student" else 4) * weights + held
        moving = network["step_gib"] + graphs * network["image_gib"]
        encoded = sam["encoder_gib"] * (config.batch if name == "teach" else 1)
        step = config.batch * (own + of_sam) / 1e3
        found[name] = {
            "steps": config.steps,
            "batch": config.batch,
            "step_tflops": round(step, 2),
            "sam_share": round(of_sam / (own + of_sam), 2),
            "hours": [round(config.steps * step / rate / 3600, 1) for rate in reversed(RATES)],
            "memory_gib": round(standing + moving + encoded, 1),
            "memory_parts_gib": {
                "weights, moments, average, SAM": round(standing, 1),
                "training step": round(moving, 1),
                "SAM's encoder": round(encoded, 1),
            },
        }
    return found


def measure() -> dict[str, Any]:
    """The whole record."""
    torch.set_num_threads(1)
    sam = sam_costs()
    record: dict[str, Any] = {
        "benchmark": "s4m-cost",
        "sam": sam,
        "rates_tflops": list(RATES),
        "objects": OBJECTS,
        "processes": PROCESSES,
        "recipes": {},
        "machine": processor(),
        "torch": torch.__version__,
        "commit": commit(HERE),
        "date": date.today().isoformat(),
    }
    for name, (classes, size) in RECIPES.items():
        recipe = of_method(load_recipe(HERE.parents[1] / "recipes" / f"{name}.yaml"), InstanceRecipe, "The cost")
        network = network_costs(recipe.network, classes, recipe.crops.crop)
        record["recipes"][name] = {
            "crop": recipe.crops.crop,
            "network": network,
            "draw_seconds": round(draw_seconds(size, recipe.crops), 3),
            **stages(recipe, network, sam),
        }
        print(name, record["recipes"][name], flush=True)
    return record


def tables(record: dict[str, Any]) -> str:
    """The record as the page's tables."""
    sam = record["sam"]
    lines = [
        "| for one image | parameters | forward, GFLOP | forward and backward, GFLOP | training step, GiB |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for name, found in record["recipes"].items():
        network = found["network"]
        lines.append(
            f"| Mask2Former, ResNet-50, {found['crop']}² (`{name}`) | {network['parameters'] / 1e6:.1f} M |"
            f" {network['forward_gflops']:,.0f} | {network['training_gflops']:,.0f} | {network['image_gib']:.1f} |"
        )
    lines += [
        f"| SAM 2.1 large, image encoder, 1024² | {sam['parameters'] / 1e6:.1f} M |"
        f" {sam['encoder_gflops']:,.0f} | – | – |",
        f"| its decoder, for one point of stage 1 | | {sam['point_gflops']:.2f} | – | – |",
        f"| its decoder, for one refined mask | | {sam['mask_gflops']:.2f} | – | – |",
        "",
        "| stage | steps | crops of a process | TFLOP of a step | of it SAM | hours of the GPU, at"
        f" {RATES[1]} to {RATES[0]} TFLOP/s | hours of drawing crops | GiB on each GPU |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, found in record["recipes"].items():
        for stage in ("teach", "student"):
            row = found[stage]
            images = f"{row['batch']} + {row['batch']}" if stage == "student" else str(row["batch"])
            crops = row["batch"] * (2 if stage == "student" else 1)
            drawing = row["steps"] * crops * found["draw_seconds"] / 3600
            lines.append(
                f"| `{name}`, {stage} | {row['steps']:,} | {images} | {row['step_tflops']:.1f} |"
                f" {100 * row['sam_share']:.0f} % | {row['hours'][0]:,.0f} to {row['hours'][1]:,.0f} |"
                f" {drawing:,.0f} | {row['memory_gib']:.0f} |"
            )
    source = f"*Counted by `benchmarks/s4m/cost.py` (`cost.json`); torch {record['torch']}; {record['date']}.*"
    return "\n".join([*lines, "", source])


def put_into(page: Path, record: dict[str, Any]) -> None:
    """Replace what is between the page's marks."""
    text, begin, end = page.read_text(encoding="utf-8"), "<!-- cost -->", "<!-- /cost -->"
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no {begin} ... {end}")
    page.write_text(f"{head}{begin}\n\n{tables(record)}\n\n{end}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="put the tables of the record into this page, and count nothing")
    wanted = parser.parse_args()
    if wanted.write is None:
        write_json(RECORD, measure())
    else:
        put_into(wanted.write, read_json(RECORD))


if __name__ == "__main__":
    main()

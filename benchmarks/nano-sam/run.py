"""What one click, three clicks or a box get from nano-SAM, zero-shot, beside simple rules given the same prompt.

    python benchmarks/nano-sam/run.py [--model nano] [--images 80] [--force] [--card]

Sets: rendered scenes from seeds that pre-training never uses, and real images that it never saw: the training lists of
NUAA-SIRST, NUDT-SIRST and DSB2018 (folder FEWLABEL_DATA, default ../shared/data; a missing set is skipped and named).
Each target is shown in a window of 256 x 256 pixels around it at native resolution, reflected where the image is
smaller; targets beyond `--targets` per image are left out, drawn with a fixed seed.

Prompts: `click` is the pixel of the target nearest its centroid and takes the mask with the best predicted IoU of
three; `three clicks` goes on with the central pixel of the largest wrong region and the previous logits; `box` is the
tight box. Rules: for a click a disc, and the connected region above half way between the clicked level and the median
of its surroundings; for a box the whole box, and Otsu's threshold within it. The disc's radius and the surroundings'
size are chosen per set to give the rule its best mean IoU, which favours the rules.

Writes one JSON per set under benchmarks/nano-sam/results/ (mean IoU in percent over targets); a set that has one of the
same weights is not measured again without --force. --card also writes the card beside the embedded weights.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402  the thread limits have to be set before numpy starts its pools
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from fewlabel.core.files import read_json, sha256_file, write_json, write_text  # noqa: E402
from fewlabel.core.masks import components  # noqa: E402
from fewlabel.core.provenance import commit, processor  # noqa: E402
from fewlabel.core.radiometry import standardise, to_unit  # noqa: E402
from fewlabel.data.synth import infrared, objects  # noqa: E402
from fewlabel.sam.families import load  # noqa: E402
from fewlabel.sam.nano import FRAME, NANO_FOLDER  # noqa: E402
from fewlabel.sam.pretrain_config import PRESETS  # noqa: E402
from fewlabel.sam.promptable import PromptableSegmenter  # noqa: E402
from fewlabel.sam.prompts import central_point, tight_box  # noqa: E402

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("FEWLABEL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
HOLD_OUT = 7_000_000  # first seed of the hold-out scenes; pre-training seeds are pairs (seed, step)
RADII = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0)
SURROUNDINGS = (7, 15, 31, 63, 127)


@dataclass(frozen=True)
class Case:
    """One target: picture float32 (C, 256, 256) in [0, 1] and mask bool (256, 256)."""

    picture: np.ndarray
    mask: np.ndarray


def windows(picture: np.ndarray, labels: np.ndarray, most: int, rng: np.random.Generator) -> Iterator[Case]:
    """Windows of 256 x 256 around up to `most` targets of one image."""
    numbers = np.unique(labels[labels > 0])
    pad = [(0, max(0, FRAME - side)) for side in labels.shape]
    # A side shorter than half the window is reflected more than once.
    picture = np.pad(picture, [(0, 0), *pad], mode="symmetric")
    labels = np.pad(labels, pad)
    for number in np.sort(rng.permutation(numbers)[:most]):
        rows, columns = np.nonzero(labels == number)
        top, left = (
            int(np.clip(round(axis.mean()) - FRAME // 2, 0, side - FRAME))
            for axis, side in zip((rows, columns), labels.shape, strict=True)
        )
        window = (slice(top, top + FRAME), slice(left, left + FRAME))
        yield Case(picture[(slice(None), *window)].astype(np.float32), labels[window] == number)


def rendered(kind: str, images: int, most: int) -> Iterator[Case]:
    """Hold-out scenes."""
    for index in range(images):
        rng = np.random.default_rng(HOLD_OUT + index)
        if kind == "infrared":
            scene = infrared.render(rng, FRAME)
            yield from windows(unit(scene.radiance), scene.labels, most, rng)
        else:
            drawn = objects.render(rng, FRAME)
            yield from windows(drawn.pixels / 255.0, drawn.labels, most, rng)


def real(name: str, images: int, most: int) -> Iterator[Case]:
    """Images of a published training list, drawn with a fixed seed."""
    root = DATA / name
    sirst = name.endswith("SIRST")
    lists = root / "img_idx" / f"train_{name}.txt" if sirst else root / "train.txt"
    ids = lists.read_text(encoding="utf-8").split()
    rng = np.random.default_rng(0)
    for id_ in sorted(rng.permutation(ids)[:images]):
        pixels = np.asarray(Image.open(root / "images" / f"{id_}.png"))
        if sirst:
            grey = pixels if pixels.ndim == 2 else pixels[..., :3].mean(-1)
            mask = np.asarray(Image.open(root / "masks" / f"{id_}.png").convert("L")) > 127
            yield from windows(unit(grey), components(mask)[0], most, rng)
        else:
            labels = np.asarray(Image.open(root / "instances" / f"{id_}.png")).astype(np.int32)
            colour = pixels[..., :3] if pixels.ndim == 3 else pixels[..., None]
            yield from windows(colour.transpose(2, 0, 1) / 255.0, labels, most, rng)


def unit(raw: np.ndarray) -> np.ndarray:
    """A raw infrared image (H, W) as SAM is given it: float32 (1, H, W) in (0, 1)."""
    return to_unit(standardise(raw.astype(np.float32)))[None]


SETS: dict[str, Callable[[int, int], Iterator[Case]]] = {
    "synthetic-infrared": lambda images, most: rendered("infrared", images, most),
    "synthetic-objects": lambda images, most: rendered("objects", images, most),
    "NUAA-SIRST": lambda images, most: real("NUAA-SIRST", images, most),
    "NUDT-SIRST": lambda images, most: real("NUDT-SIRST", images, most),
    "DSB2018": lambda images, most: real("DSB2018", images, most),
}


def iou(mask: np.ndarray, target: np.ndarray) -> float:
    """IoU of two masks of which the second is not empty."""
    return float((mask & target).sum() / (mask | target).sum())


@torch.no_grad()
def ask_nano(segmenter: PromptableSegmenter, case: Case) -> dict[str, float]:
    """IoU of nano-SAM's masks for each kind of prompt."""
    picture = torch.from_numpy(np.ascontiguousarray(case.picture))[None]
    embedding = segmenter.encode(picture)
    click = torch.from_numpy(central_point(case.mask))[None, None, None]
    low, quality = segmenter.decode_low(embedding, click)
    logits = segmenter.to_image(low, embedding.size)[0, 0]
    masks = (logits > 0).numpy()
    each = [iou(mask, case.mask) for mask in masks]
    chosen = int(quality[0, 0].argmax())
    found = {"click": each[chosen], "click, best of three": max(each)}
    previous, mask = low[:, :, chosen], masks[chosen]
    points, labels = click, [1]
    for _ in range(2):
        wrong, count = components(mask != case.mask)
        if count:
            largest = wrong == 1 + int(np.argmax(np.bincount(wrong.ravel())[1:]))
            point = central_point(largest)
            points = torch.cat([points, torch.from_numpy(point)[None, None, None]], 2)
            labels = [*labels, int(case.mask[int(point[1]), int(point[0])])]
        low, _ = segmenter.decode_low(
            embedding, points, torch.tensor(labels)[None, None], masks=previous.clamp(-32, 32), multimask=False
        )
        previous = low[:, :, 0]
        mask = (segmenter.to_image(previous, embedding.size)[0, 0] > 0).numpy()
    found["three clicks"] = iou(mask, case.mask)
    box = torch.from_numpy(tight_box(case.mask))[None, None]
    logits, _ = segmenter.decode(embedding, boxes=box, multimask=False)
    found["box"] = iou((logits[0, 0, 0] > 0).numpy(), case.mask)
    return found


def disc(click: np.ndarray, radius: float) -> np.ndarray:
    """Pixels whose centres lie within `radius` of a click (x, y)."""
    centres = np.arange(FRAME) + 0.5
    return (centres[:, None] - click[1]) ** 2 + (centres - click[0]) ** 2 <= radius**2


def grown(grey: np.ndarray, click: np.ndarray, half: int) -> np.ndarray:
    """Region around a click that lies beyond half way from its surroundings' median to its own level."""
    row, column = int(click[1]), int(click[0])
    around = grey[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
    level, base = grey[row, column], np.median(around)
    sign = 1.0 if level >= base else -1.0
    labels, _ = components(sign * grey >= sign * (level + base) / 2)
    return labels == labels[row, column]


def otsu_in_box(grey: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Pixels of a box on the far side of Otsu's threshold from the ring around it."""
    x0, y0, x1, y1 = (int(v) for v in box)
    inside = grey[y0:y1, x0:x1]
    values = np.sort(inside.ravel())
    result = np.zeros(grey.shape, bool)
    if values[0] == values[-1]:
        result[y0:y1, x0:x1] = True
        return result
    count = np.arange(1, len(values))
    low = np.cumsum(values)[:-1] / count
    high = (values.sum() - np.cumsum(values)[:-1]) / (len(values) - count)
    cut = int(np.argmax(count * (len(values) - count) * (high - low) ** 2))
    threshold = (values[cut] + values[cut + 1]) / 2
    ring = grey[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2]
    ring_mean = (ring.sum() - inside.sum()) / max(1, ring.size - inside.size)
    bright = abs(high[cut] - ring_mean) >= abs(low[cut] - ring_mean)
    result[y0:y1, x0:x1] = inside > threshold if bright else inside <= threshold
    return result


def ask_rules(case: Case) -> dict[str, dict[str, float]]:
    """IoU of the rules, by rule and by the option that is chosen later."""
    grey = case.picture.mean(0)
    click, box = central_point(case.mask), tight_box(case.mask)
    filled = np.zeros(case.mask.shape, bool)
    filled[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return {
        "click: disc": {str(r): iou(disc(click, r), case.mask) for r in RADII},
        "click: region growing": {str(h): iou(grown(grey, click, h), case.mask) for h in SURROUNDINGS},
        "box: filled": {"": iou(filled, case.mask)},
        "box: Otsu": {"": iou(otsu_in_box(grey, box), case.mask)},
    }


def measure(name: str, segmenter: PromptableSegmenter, images: int, most: int) -> dict[str, Any]:
    """Mean IoU in percent of nano-SAM and of the rules on one set."""
    nano: dict[str, list[float]] = {}
    rules: dict[str, dict[str, list[float]]] = {}
    areas, seconds = [], 0.0
    for case in SETS[name](images, most):
        began = time.process_time()
        for prompt, value in ask_nano(segmenter, case).items():
            nano.setdefault(prompt, []).append(value)
        seconds += time.process_time() - began
        for rule, options in ask_rules(case).items():
            for option, value in options.items():
                rules.setdefault(rule, {}).setdefault(option, []).append(value)
        areas.append(int(case.mask.sum()))
    best = {rule: max(options, key=lambda o: float(np.mean(options[o]))) for rule, options in rules.items()}
    return {
        "targets": len(areas),
        "median_area": float(np.median(areas)),
        "nano-sam": {prompt: percent(values) for prompt, values in nano.items()},
        "rules": {rule: percent(options[best[rule]]) for rule, options in rules.items()},
        "rule_options": {rule: option for rule, option in best.items() if option},
        "cpu_seconds_per_target": round(seconds / len(areas), 3),
    }


def percent(values: list[float]) -> float:
    """Mean of shares, in percent with one decimal."""
    return round(100.0 * float(np.mean(values)), 1)


# What the training was to reach: mean IoU in percent, on rendered hold-outs and on recorded images.
AIMS = (
    ("synthetic-infrared", "click", 80),
    ("synthetic-objects", "click", 75),
    ("DSB2018", "click", 60),
    ("NUAA-SIRST", "click", 55),
    ("DSB2018", "box", 70),
)


def write_card(records: list[dict[str, Any]], training: dict[str, Any]) -> None:
    """Write the model card beside the embedded weights: facts as JSON, and the same as a page."""
    keys = ("part", "targets", "median_area", "nano-sam", "rules")
    card = {
        "name": "nano-SAM",
        "what": "A SAM 2 architecture with 2.5 million parameters, trained from random weights. Not one of Meta's "
        "models: its figures say nothing about theirs.",
        "data": "Rendered only: infrared scenes with small targets and scenes of objects, about half each; no real "
        "image.",
        "training": training,
        "weights_sha256": sha256_file(NANO_FOLDER / "model.safetensors"),
        "measured_by": "benchmarks/nano-sam/run.py",
        "figures": {record["dataset"]: {key: record[key] for key in keys} for record in records},
    }
    write_json(NANO_FOLDER / "card.json", card)
    write_text(NANO_FOLDER / "README.md", page(card))


def page(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    prompts = ("click", "click, best of three", "three clicks", "box")
    rules = ("click: disc", "click: region growing", "box: filled", "box: Otsu")
    lines = [
        "# nano-SAM",
        "",
        card["what"],
        "",
        f"* Data: {card['data'][0].lower()}{card['data'][1:]}",
        *[f"* {line}" for line in training_lines(card["training"])],
        f"* Weights: half precision, SHA-256 `{card['weights_sha256']}`.",
        "",
        "Mean IoU in percent over targets, zero-shot, measured by `python benchmarks/nano-sam/run.py --card`. The last",
        "four columns are simple rules given the same click or box; the size of the disc and of the surroundings that",
        "region growing looks at are chosen per set in the rule's favour.",
        "",
        f"| set | targets | median area | {' | '.join(prompts)} | {' | '.join(rules)} |",
        f"|:--|{'--:|' * (2 + len(prompts) + len(rules))}",
    ]
    for name, row in card["figures"].items():
        values = [row["nano-sam"][prompt] for prompt in prompts] + [row["rules"][rule] for rule in rules]
        lines.append(
            f"| {name} | {row['targets']} | {row['median_area']:g} | {' | '.join(f'{v:.1f}' for v in values)} |"
        )
    for prompt in ("click", "box"):
        better = [name for name, row in card["figures"].items() if beaten(row, prompt)]
        lines += ["", f"With one {prompt}, the better of the rules beats nano-SAM on: {', '.join(better) or 'no set'}."]
    reached = [
        f"{name} {prompt} {value:.1f} of {aim} ({'met' if value >= aim else 'missed'})"
        for name, prompt, aim in AIMS
        for value in [card["figures"][name]["nano-sam"][prompt]]
    ]
    lines += ["", f"Aims: {', '.join(reached)}."]
    return "\n".join(lines) + "\n"


def training_lines(training: dict[str, Any]) -> list[str]:
    """One line for each stage of a training, oldest first, and the command that makes it again."""
    stages, stage = [], training
    while stage:
        stages.insert(0, stage)
        stage = stage.get("from", {}).get("training")
    lines = []
    for number, stage in enumerate(stages):
        options, minutes = stage.get("config", {}), stage["seconds"] / 60
        lines.append(
            f"{'Training' if number == 0 else 'Then from there'}: {stage['steps']} steps of {options.get('batch')} "
            f"images, seed {stage.get('seed')}, {minutes:.0f} minutes on {stage.get('device')} "
            f"({stage.get('machine')}), {stage.get('date')}: {command_of(stage)}."
        )
    if len(stages) > 1:
        total = training["total"]
        lines.append(
            f"In all {total['steps']} steps, {total['images']} images, {total['seconds'] / 60:.0f} minutes. Each stage "
            "saw the scenes that the renderers of its day drew."
        )
    return lines


def command_of(stage: dict[str, Any]) -> str:
    """The command that makes a stage again: with the preset that has its options, or else where these are written."""
    config = stage.get("config", {})
    for name, preset in PRESETS.items():
        chosen = {key: config[key] for key in ("steps", "pool") if key in config}
        if preset.model_dump(mode="json") | chosen == config:
            start = " --start FOLDER" if "from" in stage else ""
            frozen = f" --frozen-encoder --pool {config['pool']}" if "pool" in config else ""
            return (
                f"`fewlabel pretrain --preset {name} --steps {config['steps']} --seed {stage['seed']}{start}{frozen}`"
            )
    return "its options, which no preset has today, are in `card.json`"


def beaten(row: dict[str, Any], prompt: str) -> bool:
    """Whether a rule that is given the same prompt has the higher mean IoU."""
    return max(v for rule, v in row["rules"].items() if rule.startswith(prompt)) > row["nano-sam"][prompt]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--images", type=int, default=80, help="images of each set")
    parser.add_argument("--targets", type=int, default=3, help="targets of each image")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    parser.add_argument("--card", action="store_true", help="write the card beside the embedded weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = load(options.model)
    weights = NANO_FOLDER if options.model == "nano" else Path(options.model)
    digest = sha256_file(weights / "model.safetensors")
    records = []
    for name in options.sets:
        path = options.results / f"{name}.json"
        if path.exists() and not options.force and read_json(path)["weights_sha256"] == digest:
            records.append(read_json(path))
            continue
        if not name.startswith("synthetic") and not (DATA / name).is_dir():
            print(f"{name} is not in {DATA}; set FEWLABEL_DATA to its folder")
            continue
        record = {
            "benchmark": "nano-sam",
            "dataset": name,
            "part": "hold-out seeds" if name.startswith("synthetic") else "training list (never trained on)",
            "images": options.images,
            "targets_per_image": options.targets,
            **measure(name, segmenter, options.images, options.targets),
            "weights_sha256": digest,
            "device": "cpu-1",
            "machine": processor(),
            "torch": torch.__version__.split("+")[0],
            "commit": commit(Path(__file__).parent),
            "date": date.today().isoformat(),
        }
        write_json(path, record)
        records.append(record)
        print(name, record["nano-sam"], record["rules"], flush=True)
    if options.card:
        write_card(records, read_json(NANO_FOLDER / "training.json"))


if __name__ == "__main__":
    main()

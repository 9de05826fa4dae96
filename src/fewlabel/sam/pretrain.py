"""Pre-train nano-SAM on rendered scenes, after SAM's recipe (Kirillov et al., ICCV 2023, section 3 and appendix A).

Each step draws images with a few targets each, gives every target a click or a box, and trains the best of three masks
for an ambiguous click, or one mask otherwise; up to half of the steps go on with correction clicks and the previous
logits as a mask prompt. Half of the images are infrared scenes, half are scenes of objects and their parts; none is
real. Batches come from `pretrain_batches`, losses from `pretrain_loss`.

With a pool of scenes the encoder stays as it was and only what prompts and masks need goes on training
(`pretrain_frozen`): the features of a scene are computed once and kept.
"""

import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewlabel.core.errors import ModelError, RunError
from fewlabel.core.files import read_json, write_json
from fewlabel.sam.families import load
from fewlabel.sam.nano import NANO_FOLDER, build_nano, save_nano
from fewlabel.sam.pretrain_batches import Batches
from fewlabel.sam.pretrain_config import PRESETS, Course, PretrainConfig, configure
from fewlabel.sam.pretrain_frozen import FrozenFeatures, check_phase, freeze_encoder
from fewlabel.sam.pretrain_loss import step_loss
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.training.checkpoint import load_state, read_tensors, weights_sha256
from fewlabel.training.log import LOG, read_log
from fewlabel.training.loop import CHECKPOINT, UNESSENTIAL, WEIGHTS, FitResult, fit

__all__ = ["PRESETS", "PretrainConfig", "configure", "pretrain", "publish"]

SETTINGS = "settings.json"
TRAINING = "training.json"
START = "start"  # folder of the weights that a training with a frozen encoder began with


def pretrain(
    config: PretrainConfig,
    folder: Path,
    seed: int,
    device: str = "cpu",
    *,
    workers: int = 0,
    start: str | None = None,
    cache: Path | None = None,
    cache_gb: float = 10.0,
) -> FitResult:
    """Pre-train nano-SAM; a stopped run goes on from its checkpoint, bit for bit on the CPU.

    Args:
        config: Options.
        folder: Run folder: settings, log, checkpoint, and at the end `config.json`, `model.safetensors` (averaged
            weights in half precision, transformers' layout, so that `families.load(folder)` opens it) and
            `training.json`; with a pool of scenes also the weights that it began with.
        seed: Seed of the initial weights and of all batches.
        device: Where to train.
        workers: Processes that render scenes; the result does not depend on it.
        start: "nano" or a folder of nano-SAM's weights to go on from, with a schedule of its own; random weights when
            None.
        cache: Folder of an embedding cache for a pool of scenes, or None; the result does not depend on it.
        cache_gb: Bound on the cache, in 10^9 bytes.

    Returns:
        Steps, seconds and folder.

    Raises:
        RunError: The options contradict each other, the folder belongs to another training, the cache cannot be
            used, a renderer was ended, or the loss is no longer finite.
        ModelError: `start` is not a nano-SAM.
    """
    check_phase(config, start, cache)
    segmenter = build_nano(seed)
    earlier: dict[str, Any] = {} if start is None else warm_start(segmenter, start)
    digest = earlier.get("weights_sha256", "")
    bare_encoder(segmenter)
    features = FrozenFeatures(segmenter, digest, device, cache, cache_gb) if config.pool else None
    wanted = settings(config, seed, device) | ({"from": earlier} if earlier else {})
    if any((folder / name).exists() for name in (CHECKPOINT, WEIGHTS)):
        refuse_other_settings(folder, wanted)
    else:
        if config.pool:
            save_nano(segmenter, folder / START)
        write_json(folder / SETTINGS, wanted)
    if config.pool:
        freeze_encoder(segmenter)
    exact_positions(segmenter, torch.device(device).type)
    warm = start is not None
    with Batches(config, seed, warm, workers, pin=device.startswith("cuda")) as batches:

        def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
            course, batch = Course.at(step, config, warm), batches(step)
            embedding, hit_rate = (None, None) if features is None else features(batch.images)
            terms = step_loss(segmenter, batch.to(device), course.late, config.quality, embedding)
            return terms if hit_rate is None else terms | {"hit_rate": torch.tensor(hit_rate, device=device)}

        result = fit(
            segmenter,
            loss,
            config,
            folder,
            seed=seed,
            label="pretrain nano-SAM",
            device=device,
            fingerprint=digest,
        )
    save_nano(segmenter, folder)
    write_json(folder / TRAINING, read_run(folder)[0])
    return result


def refuse_other_settings(folder: Path, wanted: dict[str, Any]) -> None:
    """Say which option differs from those of the training that a folder holds, where it says so itself.

    How often a training is saved and logged does not count.

    Args:
        folder: Run folder with a checkpoint or weights.
        wanted: What `settings` says of the training that is asked for, with `from` where it has a start.

    Raises:
        RunError: Options, seed or start differ.
    """
    if not (folder / SETTINGS).exists():
        return  # the loop compares hashes, which differ without a name
    had = read_json(folder / SETTINGS)
    options = {name: value for name, value in wanted["config"].items() if name not in UNESSENTIAL}
    pairs = {f"option {name}": (had["config"].get(name), value) for name, value in options.items()}
    pairs["seed"] = had["seed"], wanted["seed"]
    pairs["start"] = tuple(facts.get("from", {}).get("weights_sha256", "none") for facts in (had, wanted))
    for name, (before, now) in pairs.items():
        if before != now:
            raise RunError(
                f"{folder} holds a pre-training whose {name} is {before}, not {now}; give another folder with --out, or"
                " the same options to go on with that one."
            )


def warm_start(segmenter: PromptableSegmenter, source: str) -> dict[str, Any]:
    """Load trained weights of nano-SAM into a fresh one.

    Args:
        segmenter: What `build_nano` made; changed in place.
        source: "nano" or a folder with `config.json` and `model.safetensors`.

    Returns:
        Hash of the weights, and the `training` that made them where the folder says so.

    Raises:
        ModelError: The weights are not there or not nano-SAM's.
    """
    trained = load(source)
    names = {name: value.shape for name, value in segmenter.state_dict().items()}
    if {name: value.shape for name, value in trained.state_dict().items()} != names:
        raise ModelError(
            f"{source}: is a {trained.name} whose tensors are not nano-SAM's; start from nano-SAM's weights."
        )
    segmenter.load_state_dict(trained.state_dict())
    facts: dict[str, Any] = {"weights_sha256": weights_sha256(trained)}
    path = (NANO_FOLDER if source == "nano" else Path(source)) / TRAINING
    return facts | ({"training": read_json(path)} if path.exists() else {})


def bare_encoder(segmenter: PromptableSegmenter) -> None:
    """Leave out the encoder's sine code of positions, which nothing reads: 7 % of its time on a CPU."""

    class Nothing(nn.Module):
        def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
            return torch.empty(0, device=device, dtype=dtype)

    segmenter.model.vision_encoder.neck.position_encoding = Nothing()


def exact_positions(segmenter: PromptableSegmenter, device: str) -> None:
    """Compute the code of positions in single precision under autocast too.

    Eight bits of a bfloat16 tell positions in the frame no closer than one pixel apart.
    """
    for module in (segmenter.model.shared_image_embedding, segmenter.model.prompt_encoder.shared_embedding):
        module.forward = torch.autocast(device, enabled=False)(module.forward)


def settings(config: PretrainConfig, seed: int, device: str) -> dict[str, object]:
    """What a model card says about a training: options, seed, machine, library and day."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else f"cpu-{torch.get_num_threads()}",
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__.split("+")[0],
        "date": date.today().isoformat(),
    }


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is known of the training in a run folder, finished or not, and its averaged weights.

    Returns:
        Facts: `steps` done, whether that was all (`finished`), `seconds`, the run's `settings`, the embedding cache's
        `hit_rate` where there was one, and `total` steps, images and seconds with those of the trainings that it
        started from. Weights by name, without those of a frozen encoder.

    Raises:
        RunError: The folder holds neither weights nor a checkpoint.
    """
    facts: dict[str, Any]
    if (folder / WEIGHTS).exists():
        file = read_tensors(folder / WEIGHTS)
        steps = json.loads(file.metadata["config"])["steps"]
        facts = {"steps": steps, "finished": True, "seconds": float(file.metadata["seconds"])}
        tensors = file.tensors
    elif (folder / CHECKPOINT).exists():
        state, parts = load_state(folder / CHECKPOINT)
        facts = {"steps": state["step"], "finished": False, "seconds": round(float(state["seconds"]), 1)}
        tensors = {
            name.removeprefix(prefix): value
            for prefix in ("model.", "ema.")  # averages replace the parameters of the same name
            for name, value in parts.items()
            if name.startswith(prefix)
        }
    else:
        raise RunError(f"{folder} holds neither {WEIGHTS} nor {CHECKPOINT}; give the folder of a pre-training run.")
    if (folder / SETTINGS).exists():
        facts |= read_json(folder / SETTINGS)
    facts |= _hits(folder / LOG)
    return facts | {"total": _total(facts)}, tensors


def _hits(log: Path) -> dict[str, float]:
    """Share of the images whose features were in the cache, over all steps in the log that had one."""
    hits = steps = before = 0
    for line in read_log(log):
        count, before = line["step"] - before, line["step"]
        if "hit_rate" in line:
            hits, steps = hits + count * line["hit_rate"], steps + count
    return {"hit_rate": round(hits / steps, 4)} if steps else {}


def _total(facts: dict[str, Any]) -> dict[str, float]:
    """Steps, images and seconds of a training and of all that it started from."""
    before = facts.get("from", {}).get("training", {})
    earlier = before.get("total") or (_total(before) if before else {"steps": 0, "images": 0, "seconds": 0.0})
    images = facts["steps"] * facts.get("config", {}).get("batch", 0)
    return {
        "steps": earlier["steps"] + facts["steps"],
        "images": earlier["images"] + images,
        "seconds": round(earlier["seconds"] + facts["seconds"], 1),
    }


def publish(folder: Path, target: Path = NANO_FOLDER) -> dict[str, Any]:
    """Make a run's averaged weights the embedded ones; works from a checkpoint of a run that still goes on.

    Args:
        folder: A folder that `pretrain` wrote to.
        target: Folder that receives `config.json`, `model.safetensors` and `training.json`.

    Returns:
        What `training.json` says: see `read_run`.

    Raises:
        RunError: The folder holds neither weights nor a checkpoint.
    """
    facts, tensors = read_run(folder)
    segmenter = build_nano(0)
    kept = load(str(folder / START)).state_dict() if facts.get("config", {}).get("pool") else {}
    segmenter.load_state_dict(kept | tensors)
    save_nano(segmenter, target)
    write_json(target / TRAINING, facts)
    return facts


def main() -> None:
    """Command line of this module: publish a run."""
    import argparse

    parser = argparse.ArgumentParser(description="Embed a pre-training run's averaged weights in the package.")
    parser.add_argument("folder", type=Path, help="run folder")
    parser.add_argument("--target", type=Path, default=NANO_FOLDER, help="folder that receives them")
    options = parser.parse_args()
    print(publish(options.folder, options.target))


if __name__ == "__main__":
    main()

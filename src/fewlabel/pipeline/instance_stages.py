"""The work of the stages of instance segmentation: from files to files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewlabel.core.files import sha256_json
from fewlabel.core.types import Instances
from fewlabel.data.dataset import Dataset
from fewlabel.data.instance_crops import RecordPool, bare_loaders, record_loaders, repeat_factors
from fewlabel.data.readers.base import TARGET
from fewlabel.data.split import Split
from fewlabel.data.views import colours
from fewlabel.metrics.instances import InstanceMetric, quality_update
from fewlabel.pipeline.instance_tiles import objects_of_any_size
from fewlabel.pipeline.labelling import CURVE_POINTS
from fewlabel.recipe import InstanceMethod, InstanceRecipe
from fewlabel.s4m.checkpoint import ModelCard, save_card
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig
from fewlabel.s4m.similarity_targets import SimilarityCache
from fewlabel.s4m.student import Unlabelled, train_student
from fewlabel.s4m.teacher import teach
from fewlabel.sam.families import load
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.training import ranks
from fewlabel.training.checkpoint import load_weights
from fewlabel.training.loop import WEIGHTS

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Scores that are tried as the one from which objects count."""

UNKNOWN = 0.5  # the threshold where none can be chosen

PLAIN_TEACHER = "plain-teacher"  # folder of the baselines: a teacher without structural distillation


def class_count(dataset: Dataset) -> int:
    """K, the number of classes of a data set; 1 where it names none."""
    return max(1, len(dataset.classes))


def fresh_network(
    recipe: InstanceRecipe, config: NetworkConfig, classes: int, *, pretrained: bool
) -> InstanceSegmenter:
    """An untrained network; its weights depend on the recipe's seed alone, so every method starts from the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return InstanceSegmenter(config, classes, pretrained=pretrained)


def trained_network(recipe: InstanceRecipe, config: NetworkConfig, classes: int, folder: Path) -> InstanceSegmenter:
    """A network as a training left it, in eval mode."""
    network = fresh_network(recipe, config, classes, pretrained=False)
    load_weights(folder / WEIGHTS, network)
    return network.eval()


def frozen_sam(recipe: InstanceRecipe) -> PromptableSegmenter | None:
    """The recipe's SAM; None where no part of the recipe asks it."""
    if not recipe.asks_sam:
        return None
    return load(recipe.sam, allow_sam3=recipe.allow_sam3).eval().requires_grad_(False)


def labelled_pool(dataset: Dataset, ids: Iterable[str], threshold: float) -> RecordPool:
    """Labelled images, those with rare classes drawn more often; see `repeat_factors` for the threshold."""
    known = list(ids)
    shown = [dataset.labelled(id).instances.classes.tolist() for id in known] if threshold else [[] for _ in known]
    return RecordPool(record_loaders(dataset, known), repeat_factors(shown, threshold))


def validated(recipe: InstanceRecipe, dataset: Dataset, split: Split, steps: int) -> dict[str, Any]:
    """Keywords of a training that is scored on the validation part as it goes on; without one it is not."""
    if not split.validation:
        return {}

    def validate(network: nn.Module) -> dict[str, float]:
        assert isinstance(network, InstanceSegmenter)  # no other network is trained with this
        scores = score(network, dataset, split.validation, recipe.eval.side).compute()
        return {name: scores[name] for name in ("AP", "AP50")}  # type: ignore[literal-required]

    return {"validate": validate, "validate_every": max(steps // CURVE_POINTS, 1)}


def score(network: InstanceSegmenter, dataset: Dataset, ids: Iterable[str], side: int | None) -> InstanceMetric:
    """The metric of a network on some images, read one at a time."""
    metric = InstanceMetric(class_count(dataset))
    for id in ids:
        sample = dataset.labelled(id)
        kept = sample.instances.select(sample.instances.areas() > 0)
        metric.update(objects_of_any_size(network, colours(sample.image), 0.0, side), kept, sample.ignored)
    return metric


def teach_teacher(
    recipe: InstanceRecipe, dataset: Dataset, split: Split, out: Path, *, inputs: str, device: str, plain: bool = False
) -> None:
    """Train the teacher on the labelled images; writes its weights and log.

    Args:
        recipe: The run's recipe.
        dataset: The data set.
        split: The run's split.
        out: Where to write.
        inputs: Fingerprint of the data.
        device: Where to train.
        plain: Leave out structural distillation, whatever the recipe says.
    """
    config = recipe.teach.model_copy(update={"similarity_weight": 0.0}) if plain else recipe.teach
    kept = recipe.cache if config.similarity_weight else None
    teach(
        fresh_network(recipe, recipe.network, class_count(dataset), pretrained=True),
        RecordPool(record_loaders(dataset, split.train)).draw,
        config,
        recipe.crops,
        out,
        seed=recipe.seed,
        device=device,
        fingerprint=inputs,
        sam=frozen_sam(recipe) if config.similarity_weight else None,
        cache=None if kept is None else SimilarityCache(kept.folder, kept.gb),
        label="plain teacher" if plain else "teach",
        **validated(recipe, dataset, split, config.steps),
    )


def train_method(
    method: InstanceMethod,
    recipe: InstanceRecipe,
    dataset: Dataset,
    split: Split,
    guiding: Path | None,
    out: Path,
    *,
    inputs: str,
    device: str,
) -> None:
    """Train a network by one method; writes its folder with weights and log.

    Args:
        method: `fewlabel` is the recipe; `smaller` a lighter network that the trained student guides to the end;
            `guided-distillation` has no SAM; the other two have no unlabelled images.
        recipe: The run's recipe.
        dataset: The data set.
        split: The run's split.
        guiding: Folder of the guiding network's weights; None of methods that have none.
        out: Parent of the method's folder.
        inputs: Fingerprint of the data.
        device: Where to train.
    """
    config, classes = recipe.student, class_count(dataset)
    known = (*split.train, *split.unlabelled) if method == "all-labels" else split.train
    if method == "guided-distillation":
        config = config.model_copy(update={"refine": None, "paste": None})
    if method == "smaller":
        config = config.model_copy(update={"burn_in": config.steps})
    unlabelled = None
    if guiding is not None and config.unlabelled_weight:
        # All training images, as published: labelled ones are unlabelled ones too, with their labels shut.
        everything = sorted({*split.train, *split.unlabelled})
        unlabelled = Unlabelled(
            RecordPool(bare_loaders(dataset, everything)).draw,
            len(everything),
            trained_network(recipe, recipe.network, classes, guiding),
            frozen_sam(recipe) if config.refine is not None else None,
        )
    chosen = recipe.smaller if method == "smaller" and recipe.smaller is not None else recipe.network
    network = fresh_network(recipe, chosen, classes, pretrained=True)
    train_student(
        network,
        labelled_pool(dataset, known, config.repeat_threshold).draw,
        config,
        recipe.crops,
        out / method,
        seed=recipe.seed,
        label=f"student {method}",
        unlabelled=unlabelled,
        device=device,
        fingerprint=sha256_json([method, inputs]),
        **validated(recipe, dataset, split, config.steps),
    )
    threshold = choose_threshold(network, dataset, split.validation, recipe.eval.side)
    card = ModelCard(
        network=chosen,
        classes=dataset.classes or TARGET,
        side=recipe.eval.side,
        threshold=threshold,
        radiometry=recipe.data.radiometry,
        name=f"{recipe.name} ({method})",
    )
    ranks.first_only(lambda: save_card(out / method, card))


def choose_threshold(network: InstanceSegmenter, dataset: Dataset, ids: Sequence[str], side: int | None) -> float:
    """The score from which a network's objects count, chosen on some images; see `best_threshold`."""
    return best_threshold(
        [(objects, dataset.labelled(id).instances) for id, objects in found_objects(network, dataset, ids, side)]
    )


def best_threshold(pairs: Sequence[tuple[Instances, Instances]]) -> float:
    """The score of the best F1 over images.

    An object is right if it finds a true one at an IoU of 0.5, whatever the classes.

    Args:
        pairs: What was found in each image, and the truth.

    Returns:
        One of `THRESHOLDS`, of equally good ones the highest; `UNKNOWN` where no threshold leaves an object that is
        right.
    """

    def f1(threshold: float) -> float:
        counts = [quality_update(objects.select(objects.scores >= threshold), true) for objects, true in pairs]
        right = sum(image.found for image in counts)
        return 2 * right / max(sum(len(image.best) + image.true for image in counts), 1)

    best, threshold = max((f1(threshold), threshold) for threshold in THRESHOLDS)
    return threshold if best else UNKNOWN


def found_objects(
    network: InstanceSegmenter, dataset: Dataset, ids: Iterable[str], side: int | None
) -> Iterator[tuple[str, Instances]]:
    """What a network finds in images, one at a time."""
    for id in ids:
        yield id, objects_of_any_size(network, colours(dataset.image(id)), 0.0, side)

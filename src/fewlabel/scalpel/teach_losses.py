"""The loss of stage 1: what labels teach, what the frozen SAM guides, and the balance of the experts."""

from collections.abc import Container, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fewlabel.data.augment import Batch
from fewlabel.sam.promptable import Embedding
from fewlabel.scalpel.guidance import distillation, preservation, trust
from fewlabel.scalpel.reference import Answer, FrozenSam, support
from fewlabel.scalpel.teach_config import TeachConfig
from fewlabel.scalpel.teacher import ScalpelTeacher, TeacherOutput
from fewlabel.training.losses import bce, sls, soft_iou


def coarse_batch(targets: Tensor, weights: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Targets and weights at the size of SAM's masks.

    Args:
        targets: float (B, 1, S, S) in {0, 1}.
        weights: float (B, 1, S, S) >= 0.
        size: Rows and columns (h, w).

    Returns:
        (B, 1, h, w) each: a cell is target if any of its pixels is, so that no small target is lost, and counts as
        much as the least of its pixels.
    """
    return F.adaptive_max_pool2d(targets, size), -F.adaptive_max_pool2d(-weights, size)


def shares(teacher: ScalpelTeacher, config: TeachConfig) -> dict[str, float]:
    """Weights of the loss terms, by name; those without a weight, or without anything to act on, are left out."""
    weights = {
        "bce": config.bce_weight,
        "soft_iou": config.iou_weight,
        "sls": config.sls_weight,
        "coarse": config.coarse_weight,
        "distil": config.distil_weight,
        # Without an adapter the embedding is the frozen one, and there are no gates.
        "preserve": config.preserve_weight if teacher.adapter is not None else 0.0,
        "balance": 1.0 if teacher.adapter is not None else 0.0,  # the adapter weighs it itself
    }
    return {name: weight for name, weight in weights.items() if weight > 0}


def supervised(logits: Tensor, targets: Tensor, weights: Tensor, wanted: Container[str]) -> dict[str, Tensor]:
    """The wanted ones of the losses `bce`, `soft_iou` and `sls`; arguments as in `training.losses`."""
    return {loss.__name__: loss(logits, targets, weights) for loss in (bce, soft_iou, sls) if loss.__name__ in wanted}


def guided(
    reference: FrozenSam, seen: TeacherOutput, images: Tensor, batch: Batch, wanted: Container[str]
) -> dict[str, Tensor]:
    """The wanted ones of the terms `distil` and `preserve`, see `scalpel.guidance`.

    Args:
        reference: The frozen SAM.
        seen: What the teacher made of the images.
        images: float (B + U, 1, S, S): those of the batch, then unlabelled ones.
        batch: The B labelled crops.
        wanted: Names of terms.

    Returns:
        Scalars.
    """
    count = len(batch.images)
    frozen, prior = reference.embed(images), reference.prior(images[count:])
    terms = {}
    if "distil" in wanted:
        size = (int(seen.coarse.shape[-2]), int(seen.coarse.shape[-1]))
        targets, weights = coarse_batch(batch.targets, batch.weights, size)
        answer = reference.from_truth(_rows(frozen, slice(count)), batch.targets)
        trusted = trust(answer, support(reference.prior(batch.images), size), targets) * weights
        if len(images) > count:
            other = reference.from_peaks(_rows(frozen, slice(count, None)), images[count:], prior)
            trusted = torch.cat([trusted, trust(other, support(prior, size))])
            answer = Answer(*(torch.cat(pair) for pair in zip(answer, other, strict=True)))
        terms["distil"] = distillation(seen.coarse, answer, trusted)
    if "preserve" in wanted:
        cells = (int(seen.embedding.shape[-2]), int(seen.embedding.shape[-1]))
        occupied = torch.cat([F.adaptive_max_pool2d(batch.targets, cells), support(prior, cells)])
        terms["preserve"] = preservation(seen.embedding, frozen.features[-1], 1 - occupied)
    return terms


def _rows(embedding: Embedding, rows: slice) -> Embedding:
    """Some images of an embedding."""
    return Embedding([feature[rows] for feature in embedding.features], embedding.size)


def losses(
    teacher: ScalpelTeacher,
    batch: Batch,
    config: TeachConfig,
    reference: FrozenSam | None = None,
    unlabelled: Tensor | None = None,
) -> dict[str, Tensor]:
    """Loss terms of a batch; a term without a weight is not computed.

    Args:
        teacher: The teacher, on the device of the batch.
        batch: Labelled crops.
        config: Weights of the terms.
        reference: The frozen SAM, where a term that it guides has a weight.
        unlabelled: float (U, 1, S, S), further images that only those terms and the balance look at.

    Returns:
        Scalars: `loss` (the sum that is minimised, each term times its weight), `bce`, `soft_iou`, `sls`, `coarse`,
        `distil`, `preserve`; with an adapter also `balance` (as it enters the sum), and with a router `gate_entropy`
        (mean over the levels, 1 = all experts used alike; not in the sum).
    """
    weights = shares(teacher, config)
    count = len(batch.images)
    images = batch.images if unlabelled is None else torch.cat([batch.images, unlabelled])
    seen = teacher.outputs(images, logits_of=count)
    terms = supervised(seen.logits, batch.targets, batch.weights, weights)
    if "coarse" in weights:
        size = (int(seen.coarse.shape[-2]), int(seen.coarse.shape[-1]))
        pooled = coarse_batch(batch.targets, batch.weights, size)
        terms["coarse"] = _weighted(supervised(seen.coarse[:count], *pooled, weights), weights)
    if reference is not None:
        terms |= guided(reference, seen, images, batch, weights)
    logged = {}
    if teacher.adapter is not None:
        terms["balance"] = teacher.adapter.balance_loss()
        if entropies := list(teacher.adapter.entropy().values()):
            logged["gate_entropy"] = torch.tensor(sum(entropies) / len(entropies), device=images.device)
    return {"loss": _weighted(terms, weights), **terms, **logged}


def _weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of scalars, each times its weight."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

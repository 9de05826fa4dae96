"""What a teacher proposed in one image, as a map of numbers: its overlap with the truth, and the gate's reasons."""

import numpy as np

from fewlabel.core.masks import components, decode
from fewlabel.labels.gate import GateConfig
from fewlabel.labels.store import PseudoLabel
from fewlabel.metrics.hierarchical import overlaps


def painted(label: PseudoLabel) -> np.ndarray:
    """Number of the proposal at each pixel, int32 `(H, W)`: from 1 the accepted, ignored, rejected ones; 0 = none."""
    labels = np.zeros(label.size, dtype=np.int32)
    for number, rle in enumerate((*label.accepted.rles, *label.ignored[:-1], *label.rejected.rles), start=1):
        labels[decode(rle)] = number
    return labels


def true_overlaps(labels: np.ndarray, count: int, truth: np.ndarray | None) -> list[float | None]:
    """IoU of each proposal 1..count of `labels` `(H, W)` with the true target it overlaps best; None without truth."""
    if truth is None:
        return [None] * count
    best = [0.0] * count
    for (_, proposal), overlap in overlaps(*components(truth), labels, count).items():
        best[proposal] = max(best[proposal], overlap)
    return list(best)


def missed(labels: np.ndarray, truth: np.ndarray | None) -> int | None:
    """How many true targets of `truth` `(H, W)` share no pixel with a proposal of `labels`; None without truth."""
    if truth is None:
        return None
    targets, count = components(truth)
    return count - len(np.unique(targets[(labels > 0) & truth]))


def because(reason: str, figures: dict[str, float], pixels: int, gate: GateConfig) -> str:
    """The gate's reason as a clause with the figure and the limit.

    Args:
        reason: The gate's word.
        figures: What it looked at.
        pixels: Pixels of the image.
        gate: Its limits.

    Returns:
        The clause; nothing for a word that it does not know.
    """
    area, contrast, spread = f"{figures['area']:.0f} px", f"{figures['contrast']:.2f}", f"{figures['spread']:.2f}"
    most = f"{gate.max_area_share * pixels:.0f} px, {100 * gate.max_area_share:g} % of the image"
    return {
        "small": f"{area} is less than {gate.min_area} px",
        "large": f"{area} is more than {most}",
        "dark": f"a contrast of {contrast} is not above {gate.min_contrast:g}: no brighter than its surroundings",
        "unsure": f"a quality of {figures['quality']:.2f} is below {gate.min_quality:g}",
        "disputed": f"a spread over the views of {spread} is above {gate.max_spread:g}",
        "unsupported": f"a support by the operators of {figures['support']:.2f} is below {gate.min_support:g}",
        "confident": "within every limit of the gate",
    }.get(reason, "")

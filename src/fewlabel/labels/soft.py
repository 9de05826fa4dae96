"""A teacher's belief beside its pseudo-labels: one 8-bit picture per image, and what a student learns from it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fewlabel.core.errors import DataError
from fewlabel.core.files import write_bytes
from fewlabel.core.masks import decode
from fewlabel.labels.store import PseudoLabel

LEVELS = 255  # of an 8-bit picture; the error of a stored probability is at most 1 / 510


def write_soft(path: Path, probability: np.ndarray) -> None:
    """Store a map of probabilities as a grey PNG, atomically; equal maps give equal bytes.

    Args:
        path: The file.
        probability: float `(H, W)` in 0..1; kept to the nearest of 256 levels.
    """
    levels = np.rint(np.clip(probability, 0, 1) * LEVELS).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(levels).save(data, format="PNG")
    write_bytes(path, data.getvalue())


def read_soft(path: Path) -> np.ndarray:
    """Read what `write_soft` stored.

    Returns:
        float32 `(H, W)` in 0..1.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L"), np.float32) / LEVELS
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise DataError(
            f"{path} is no readable map of probabilities; delete its label stage's folder to label again."
        ) from error


def soft_target(label: PseudoLabel, probability: np.ndarray) -> np.ndarray:
    """What of a teacher's belief a student is to learn, where the gate has spoken too.

    The band of unsure pixels, which the hard target leaves out, is kept: to learn a probability of 0.4 is not to be
    told that there is no target.

    Args:
        label: The pseudo-label of the image.
        probability: float32 `(H, W)` in 0..1, the teacher's.

    Returns:
        float32 `(H, W)`: the probability; 0 on rejected proposals, which cannot be targets; NaN, for "not to be
        learned", on ignored ones.

    Raises:
        DataError: The map is not of the image's size.
    """
    if probability.shape != label.size:
        raise DataError(
            f"The map of probabilities of image {label.id!r} is {probability.shape[0]} × {probability.shape[1]} pixels,"
            f" its pseudo-label {label.size[0]} × {label.size[1]}; delete the label stage's folder to label again."
        )
    target = np.where(label.rejected.semantic(), np.float32(0), probability).astype(np.float32)
    for rle in label.ignored[:-1]:
        target[decode(rle)] = np.nan
    return target

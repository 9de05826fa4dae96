"""What a detector says about an image of any size: overlapping frames, and one box for each target."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from fewlabel.core.errors import DataError
from fewlabel.core.suppress import suppress_boxes
from fewlabel.data.tiles import Tile, pad, tiles
from fewlabel.students.detector.network import Detector

OVERLAP = 4  # neighbouring frames share at least a quarter of their side
MARGIN = 3 / 8  # of the overlap; a box whose centre is nearer to a frame's inner border is left to the neighbour
SAME = 0.5  # IoU above which two boxes are one target
MOST = 100  # boxes of one image


Look = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""What looks at frames: float32 (B, 1, F, F) to boxes float32 (B, Q, 4), xyxy in pixel edges of the frame, and scores
float32 (B, Q) in [0, 1]."""


class Detections(NamedTuple):
    """Boxes of one image by falling score: float32 (N, 4) xyxy in pixel edges, and float32 (N,) in [0, 1]."""

    boxes: np.ndarray
    scores: np.ndarray


def detect(model: Detector, image: np.ndarray, least: float = 0.0, batch: int = 8) -> Detections:
    """Boxes of the targets of a whole image; see `detect_by` for the rule.

    Args:
        model: a detector; its mode (training or not) is left as it was.
        image: float32 (H, W), standardised over the whole image.
        least: smallest score of a box that is returned.
        batch: most frames that are computed at once.

    Returns:
        At most `MOST` boxes, cut to the image.

    Raises:
        DataError: the image is not a non-empty plane.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return detect_by(partial(_look, model), model.frame, image, least, batch)
    finally:
        model.train(training)


def detect_by(look: Look, frame: int, image: np.ndarray, least: float = 0.0, batch: int = 8) -> Detections:
    """Boxes of the targets of a whole image, by whatever looks at frames: a network, or its exported file.

    The image is cut into frames that overlap, continued by reflection where it is smaller than one. A target that a
    frame's inner border cuts in two would have a wrong box on either side. So a frame speaks only for boxes whose
    centre keeps a distance of `MARGIN` from its inner borders. With frames of 128 pixels (overlap 32, distance 12) a
    target of up to 24 pixels has no other box than its own. Of boxes that overlap by more than `SAME` the one with the
    highest score stays.

    Args:
        look: looks at frames.
        frame: their side F in pixels.
        image: float32 (H, W), standardised over the whole image.
        least: smallest score of a box that is returned.
        batch: most frames that are looked at together.

    Returns:
        At most `MOST` boxes, cut to the image.

    Raises:
        DataError: the image is not a non-empty plane.
    """
    if image.ndim != 2 or image.size == 0:
        raise DataError(f"a detector takes one plane (H, W) of at least 1x1 pixels, got shape {image.shape}; pass grey")
    plane = pad(np.ascontiguousarray(image, np.float32), frame)
    overlap = frame // OVERLAP
    places = tiles(plane.shape[0], plane.shape[1], frame, overlap)
    boxes, scores = _candidates(look, plane, frame, places, batch)
    corners = np.array([(left, top) for top, left in places], np.float32)[:, None]
    inner = corners + frame < plane.shape[::-1]  # right and lower; left and upper are where corners > 0
    low = np.where(corners > 0, corners + MARGIN * overlap, 0)
    high = np.where(inner, corners + frame - MARGIN * overlap, image.shape[::-1])
    boxes = boxes + np.tile(corners, 2)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    kept = ((centres >= low) & (centres <= high)).all(-1) & (scores >= least)
    found, sure = boxes[kept].clip(0, np.tile(image.shape[::-1], 2)).astype(np.float32), scores[kept]
    best = suppress_boxes(found, sure, SAME)[:MOST]
    return Detections(found[best], sure[best])


def _candidates(
    look: Look, plane: np.ndarray, side: int, places: list[Tile], batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of every frame: boxes (T, Q, 4) in pixels of the frame, scores (T, Q)."""
    boxes, scores = [], []
    for first in range(0, len(places), batch):
        frames = [plane[top : top + side, left : left + side] for top, left in places[first : first + batch]]
        found, sure = look(np.stack(frames)[:, None])
        boxes.append(found)
        scores.append(sure)
    return np.concatenate(boxes), np.concatenate(scores)


def _look(model: Detector, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A network as a `Look`."""
    boxes, logits = model(torch.from_numpy(frames).to(next(model.parameters()).device))
    return boxes.cpu().numpy(), torch.sigmoid(logits).cpu().numpy()

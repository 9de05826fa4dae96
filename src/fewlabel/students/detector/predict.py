"""What a detector says about an image of any size: overlapping frames, and one box for each target."""

from typing import NamedTuple

import numpy as np
import torch

from fewlabel.core.errors import DataError
from fewlabel.data.tiles import Tile, pad, tiles
from fewlabel.sam.suppress import suppress_boxes
from fewlabel.students.detector.network import Detector

OVERLAP = 4  # neighbouring frames share at least a quarter of their side
MARGIN = 3 / 8  # of the overlap; a box whose centre is nearer to a frame's inner border is left to the neighbour
SAME = 0.5  # IoU above which two boxes are one target
MOST = 100  # boxes of one image


class Detections(NamedTuple):
    """Boxes of one image by falling score: float32 (N, 4) xyxy in pixel edges, and float32 (N,) in [0, 1]."""

    boxes: np.ndarray
    scores: np.ndarray


def detect(model: Detector, image: np.ndarray, least: float = 0.0, batch: int = 8) -> Detections:
    """Boxes of the targets of a whole image.

    The image is cut into frames that overlap, continued by reflection where it is smaller than one. A target that a
    frame's inner border cuts in two would have a wrong box on either side. So a frame speaks only for boxes whose
    centre keeps a distance of `MARGIN` from its inner borders. With frames of 128 pixels (overlap 32, distance 12) a
    target of up to 24 pixels has no other box than its own. Of boxes that overlap by more than `SAME` the one with the
    highest score stays.

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
    if image.ndim != 2 or image.size == 0:
        raise DataError(f"a detector takes one plane (H, W) of at least 1x1 pixels, got shape {image.shape}; pass grey")
    plane = pad(np.ascontiguousarray(image, np.float32), model.frame)
    overlap = model.frame // OVERLAP
    places = tiles(plane.shape[0], plane.shape[1], model.frame, overlap)
    boxes, scores = _candidates(model, plane, places, batch)
    corners = np.array([(left, top) for top, left in places], np.float32)[:, None]
    inner = corners + model.frame < plane.shape[::-1]  # right and lower; left and upper are where corners > 0
    low = np.where(corners > 0, corners + MARGIN * overlap, 0)
    high = np.where(inner, corners + model.frame - MARGIN * overlap, image.shape[::-1])
    boxes += np.tile(corners, 2)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    kept = ((centres >= low) & (centres <= high)).all(-1) & (scores >= least)
    found, sure = boxes[kept].clip(0, np.tile(image.shape[::-1], 2)).astype(np.float32), scores[kept]
    best = suppress_boxes(found, sure, SAME)[:MOST]
    return Detections(found[best], sure[best])


def _candidates(model: Detector, plane: np.ndarray, places: list[Tile], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of every frame: boxes (T, Q, 4) in pixels of the frame, scores (T, Q)."""
    side, training = model.frame, model.training
    device = next(model.parameters()).device
    model.eval()
    boxes, scores = [], []
    try:
        with torch.inference_mode():
            for first in range(0, len(places), batch):
                frames = [plane[top : top + side, left : left + side] for top, left in places[first : first + batch]]
                found, logits = model(torch.from_numpy(np.stack(frames))[:, None].to(device))
                boxes.append(found.cpu().numpy())
                scores.append(torch.sigmoid(logits).cpu().numpy())
    finally:
        model.train(training)
    return np.concatenate(boxes), np.concatenate(scores)

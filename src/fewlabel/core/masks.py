"""Masks: run-length codes, boxes and connected components.

A mask is a bool array `(H, W)`; a stack is `(N, H, W)`. Run-length codes are COCO's compressed RLE: column-major runs,
`{"size": [H, W], "counts": bytes}`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from faster_coco_eval.core import mask as coco
from scipy import ndimage

from fewlabel.core.errors import DataError
from fewlabel.core.rle import Rle as Rle
from fewlabel.core.rle import Spans, from_many_spans, label_spans

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def encode(mask: np.ndarray) -> Rle:
    """Encode a mask.

    Args:
        mask: bool `(H, W)`.

    Returns:
        Its COCO run-length code.

    Raises:
        DataError: `mask` is not two-dimensional.
    """
    if mask.ndim != 2:
        raise DataError(f"A mask to encode has shape {mask.shape}, expected (H, W); pass one mask at a time.")
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": code["counts"]}


def decode(rle: Rle) -> np.ndarray:
    """Decode a COCO run-length code to a bool mask `(H, W)`."""
    return np.ascontiguousarray(coco.decode(rle)).astype(bool)


def encode_many(masks: np.ndarray) -> list[Rle]:
    """Encode a stack of masks, bool `(N, H, W)`, one code each."""
    return [encode(mask) for mask in masks]


def areas(rles: Sequence[Rle]) -> np.ndarray:
    """Areas in pixels, int64 `(N,)`, of run-length codes."""
    return np.array([int(coco.area(rle)) for rle in rles], dtype=np.int64)


def boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes of a stack of masks.

    Args:
        masks: bool `(N, H, W)`.

    Returns:
        float32 `(N, 4)`, xyxy in pixel edges: `x1` is one past the last column, `y1` one past the last row; zeros for
        an empty mask.
    """
    result = np.zeros((len(masks), 4), dtype=np.float32)
    for row, mask in zip(result, masks, strict=True):
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(ys):
            row[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return result


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the 8-connected components of a mask.

    Args:
        mask: bool `(H, W)`.

    Returns:
        Labels int32 `(H, W)` with 0 = background and 1..N in raster order of their first pixel, and N.
    """
    labels, count = ndimage.label(mask, structure=EIGHT_CONNECTED)
    return labels.astype(np.int32), int(count)


def encode_components(labels: np.ndarray, numbers: Iterable[int]) -> list[Rle]:
    """Encode chosen components, one code each.

    One pass over the labels finds the runs of all components: encoding them one by one would copy the whole image for
    each, and a stack of all masks of a noisy megapixel image would take gigabytes.

    Args:
        labels: int32 `(H, W)`, 0 = background and 1..N, as `components` gives them.
        numbers: Labels of the wanted components, in any order.

    Returns:
        Their COCO run-length codes, in the order of `numbers`.
    """
    wanted = np.fromiter(numbers, dtype=np.int64)
    height, width = labels.shape
    owner, runs = label_spans(labels, height)
    first, stop = np.searchsorted(owner, wanted, side="left"), np.searchsorted(owner, wanted, side="right")
    edges = np.concatenate([[0], np.cumsum(stop - first)])
    chosen = np.arange(edges[-1]) + np.repeat(first - edges[:-1], stop - first)
    return from_many_spans(Spans(runs.starts[chosen], runs.stops[chosen]), edges, (height, width))


def component_boxes(labels: np.ndarray, count: int) -> np.ndarray:
    """Tight boxes of labelled components.

    Args:
        labels: int32 `(H, W)`, 0 = background and 1..count, as `components` gives them.
        count: Number of components.

    Returns:
        float32 `(count, 4)`, xyxy in pixel edges, as `boxes` gives them.
    """
    slices = ndimage.find_objects(labels, max_label=count)
    corners = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in slices]
    return np.array(corners, dtype=np.float32).reshape(count, 4)

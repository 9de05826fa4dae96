"""What prompts must look like before they reach a decoder, which would take nonsense without a word."""

from torch import Tensor

from fewlabel.core.errors import ModelError
from fewlabel.sam.frames import Frame

PAD_LABEL = -10  # a point that fills up a row and is to be ignored


def check_prompts(
    batch: int,
    frame: Frame,
    points: Tensor | None = None,
    labels: Tensor | None = None,
    boxes: Tensor | None = None,
    masks: Tensor | None = None,
    mask_size: int | None = None,
) -> int:
    """Check that prompts agree with each other and lie in the image.

    Args:
        batch: Number B of embedded images.
        frame: Where an image lies in the model's input, which also says its size (H, W).
        points: `(B, P, K, 2)` xy in image pixels.
        labels: `(B, P, K)` of the points; coordinates of those that are `PAD_LABEL` do not count.
        boxes: `(B, P, 4)` xyxy pixel edges.
        masks: `(B, P, H, W)`, or `(B, P, mask_size, mask_size)`.
        mask_size: Side of the decoder's own logits.

    Returns:
        The number P of prompts per image, which may be 0; 1 where there is no prompt at all.

    Raises:
        ModelError: Shapes disagree, K is 0, a label has no meaning, a coordinate is not finite or lies outside
            [0, W] x [0, H], a box is empty, or masks are not finite logits.
    """
    if labels is not None and (points is None or labels.shape != points.shape[:3]):
        got = None if points is None else tuple(points.shape)
        raise ModelError(
            f"point_labels {tuple(labels.shape)} do not belong to points {got}; give one label (B, P, K) per point."
        )
    counts = set()
    for kind, prompt, axes, last in (("points", points, 4, (2,)), ("boxes", boxes, 3, (4,)), ("masks", masks, 4, ())):
        if prompt is None:
            continue
        if prompt.ndim != axes or prompt.shape[0] != batch or tuple(prompt.shape[axes - len(last) :]) != last:
            ending = f" and ending in {last[0]}" if last else ""
            raise ModelError(
                f"{kind} have shape {tuple(prompt.shape)}; expected {axes} axes starting with (B, P){ending}, where "
                f"B = {batch} as in the embedding."
            )
        counts.add(int(prompt.shape[1]))
    if len(counts) > 1:
        raise ModelError(f"points, boxes and masks name {sorted(counts)} prompts per image; give the same P to each.")
    count = counts.pop() if counts else 1
    if count == 0:
        return 0
    size = frame.size
    if masks is not None and tuple(masks.shape[-2:]) not in (size, (mask_size, mask_size)):
        raise ModelError(
            f"masks are {masks.shape[-2]}x{masks.shape[-1]} (rows x columns), but the image has {size[0]}x{size[1]} "
            f"pixels and the decoder {mask_size}x{mask_size} cells; give logits of one of these sizes."
        )
    if masks is not None and not (masks.is_floating_point() and bool(masks.isfinite().all())):
        raise ModelError(
            f"masks of dtype {masks.dtype} are no finite logits; turn a bool mask into, say, 20.0 inside and -20.0"
            " outside."
        )
    if labels is not None:
        unknown = (labels != 1) & (labels != 0) & (labels != PAD_LABEL)
        if unknown.any():
            raise ModelError(
                f"point_labels hold {labels[unknown][0].item():g}; give 1 for object, 0 for background, {PAD_LABEL} for"
                " padding."
            )
    if points is not None:
        if points.shape[2] == 0:
            raise ModelError(
                f"points {tuple(points.shape)} hold none for a prompt (K = 0); give at least one or leave points out."
            )
        used = None if labels is None else labels != PAD_LABEL
        _check_inside("point", points, used, frame)
    if boxes is not None:
        _check_inside("box corner", boxes.unflatten(-1, (2, 2)), None, frame)
        empty = (boxes[..., 2:] <= boxes[..., :2]).any(-1)
        if empty.any():
            b, p = empty.nonzero()[0].tolist()
            raise ModelError(
                f"The box {tuple(boxes[b, p].tolist())} of prompt {p} in image {b} is empty or its corners are swapped;"
                " give x0, y0, x1, y1 with x0 < x1 and y0 < y1."
            )
    return count


def _check_inside(kind: str, xy: Tensor, used: Tensor | None, frame: Frame) -> None:
    """Refuse coordinates `(B, P, K, 2)` outside an image; `used` `(B, P, K)` says which count, all by default."""
    wrong = ~frame.contains(xy)  # which is false for what is not a number
    if used is not None:
        wrong &= used
    if not wrong.any():
        return
    b, p, k = wrong.nonzero()[0].tolist()
    x, y = xy[b, p, k].tolist()
    what = "lies outside the image" if bool(xy[b, p, k].isfinite().all()) else "is not finite"
    raise ModelError(
        f"The {kind} ({x:g}, {y:g}) of prompt {p} {what}: image {b} has {frame.size[1]} columns and {frame.size[0]} "
        "rows; give x and y in its pixels."
    )

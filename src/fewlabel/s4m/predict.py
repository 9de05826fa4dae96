"""From a checkpoint and an image to its objects; no training data is needed."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewlabel.core.types import Instances, Source
from fewlabel.s4m.instances import TOP, image_instances
from fewlabel.s4m.network import InstanceSegmenter


def seen_size(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    """Rows and columns at which a network sees an image whose shorter side becomes `side`; as it is with None."""
    if side is None:
        return size
    scale = side / min(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


@torch.no_grad()
def find_objects(
    network: InstanceSegmenter,
    image: Tensor,
    *,
    side: int | None = None,
    top: int = TOP,
    source: Source = "student",
) -> Instances:
    """The objects of one image.

    Args:
        network: Trained, in eval mode.
        image: float32 `(3, H, W)` in [0, 1].
        side: The shorter side at which the network sees it; None leaves the image as it is.
        top: Most objects.
        source: Who the network is.

    Returns:
        Objects by falling score, of size `(H, W)`.
    """
    device = next(network.parameters()).device
    size = (int(image.shape[1]), int(image.shape[2]))
    seen = seen_size(size, side)
    pixels = image[None].to(device)
    if seen != size:
        pixels = F.interpolate(pixels, seen, mode="bilinear", antialias=True).clamp(0, 1)
    found = network(pixels)
    return image_instances(found.class_logits[0], found.mask_logits[0], seen, size=size, top=top, source=source)

"""Paste augmentation: unlabelled images of a batch exchange their refined instances (ARP of S⁴M, arXiv 2504.05301).

Images are paired; what is large enough in one is cut out before anything is pasted and laid over the other. Beyond the
published code: batches of any size from two on, images of different sizes with padding, an area limit relative to the
image, a choice balanced over classes, and a generator as the only randomness.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from fewlabel.data.views import View


class PasteConfig(BaseModel):
    """How instances are exchanged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of a batch's images that exchange instances, rounded down to pairs but one pair at least.",
    )
    min_area: float = Field(
        default=0.003,
        ge=0,
        le=1,
        description="Least area of an instance to paste, as a share of the image it comes from without padding; the"
        " published 3000 pixels are 0.0029 of 1024 x 1024.",
    )
    balanced: bool = Field(
        default=False,
        description="Take each instance with a probability inverse to the number of its class in the batch, 1 for the"
        " rarest class; otherwise take all (published).",
    )
    placement: Literal["static", "dynamic"] = Field(
        default="static",
        description="`static` keeps size and relative place (published for Cityscapes), `dynamic` scales an instance"
        " and lays it anywhere (published for COCO).",
    )
    min_scale: float = Field(default=0.8, gt=0, description="Least scale of dynamic placement.")
    max_scale: float = Field(default=1.2, gt=0, description="Largest scale of dynamic placement.")

    @model_validator(mode="after")
    def _ordered(self) -> "PasteConfig":
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} lies above max_scale {self.max_scale}: exchange them")
        return self


@dataclass(frozen=True)
class Cut:
    """One instance, cut out of its image along its box.

    Attributes:
        image: float32 `(3, h, w)`, all pixels of the box.
        mask: bool `(h, w)`, which of them belong to the instance; not empty.
        label: Its class id.
        place: Row and column of the box's upper left corner in its image.
        content: Rows and columns of that image without padding.
    """

    image: Tensor
    mask: Tensor
    label: int
    place: tuple[int, int]
    content: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the box."""
        return int(self.mask.shape[0]), int(self.mask.shape[1])


def exchange(views: Sequence[View], generator: torch.Generator, config: PasteConfig) -> list[View]:
    """Exchange instances between random pairs of images.

    Args:
        views: The batch: images without colour jitter, with the masks that may be pasted. Sizes and paddings may
            differ; all lie on one device.
        generator: The only randomness; it may be on another device.
        config: The options.

    Returns:
        The batch in the same order. An image that received instances is a new view: pasted instances are appended,
        masks are disjoint, a later one lies over an earlier one, and those that are wholly covered are gone with their
        classes. All others, also those whose partner has nothing to give, are the views that came in; so is a single
        one. Nothing is pasted into padding, and no tensor that came in is changed.
    """
    result = list(views)
    if len(views) < 2:
        return result
    order = torch.randperm(len(views), generator=generator, device=generator.device).tolist()
    pairs = max(int(config.share * len(views) / 2), 1)
    chances = _chances(views, config.min_area) if config.balanced else {}
    for first, second in zip(order[:pairs], order[pairs : 2 * pairs], strict=True):
        for source, target in ((first, second), (second, first)):
            cuts = cut_out(views[source], config.min_area)
            if config.balanced:
                cuts = [cut for cut in cuts if _uniform(generator) < chances[cut.label]]
            result[target] = paste(views[target], cuts, generator, config)
    return result


def cut_out(view: View, min_area: float) -> list[Cut]:
    """Cut out the instances of an image that are large enough.

    Args:
        view: The image with its masks.
        min_area: Least area, as a share of the image without padding; an instance of just that area is taken.

    Returns:
        The instances in the order of their masks. Their tensors are parts of the view's.
    """
    found = []
    for index in _large(view, min_area).nonzero()[:, 0].tolist():
        mask = view.masks[index]
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        y, x = int(rows[0]), int(columns[0])
        box = (slice(y, int(rows[-1]) + 1), slice(x, int(columns[-1]) + 1))
        found.append(Cut(view.image[:, *box], mask[box], int(view.classes[index]), (y, x), view.content))
    return found


def paste(view: View, cuts: Sequence[Cut], generator: torch.Generator, config: PasteConfig) -> View:
    """Lay instances over an image, one after the other.

    Args:
        view: The image with its masks.
        cuts: What to paste; see `cut_out`.
        generator: Draws scales and places of dynamic placement.
        config: The placement.

    Returns:
        A new view, or the given one if there is nothing to paste.
    """
    if not cuts:
        return view
    image = view.image.clone()
    masks = [*view.masks]
    for cut in cuts:
        scaled = cut if config.placement == "static" else _scaled(cut, _uniform(generator), config)
        laid, (y, x) = _placed(scaled, view.content, generator, config.placement)
        rows, columns = laid.size
        region = image[:, y : y + rows, x : x + columns]
        region.copy_(torch.where(laid.mask, laid.image, region))
        masks.append(torch.zeros(view.size, dtype=torch.bool, device=image.device))
        masks[-1][y : y + rows, x : x + columns] = laid.mask
    visible = disjoint(torch.stack(masks))
    kept = visible.flatten(1).any(1)
    labels = torch.tensor([cut.label for cut in cuts], dtype=view.classes.dtype, device=view.classes.device)
    return replace(view, image=image, masks=visible[kept], classes=torch.cat([view.classes, labels])[kept])


def disjoint(masks: Tensor) -> Tensor:
    """Take from every mask the pixels that a later one covers.

    Args:
        masks: bool `(N, H, W)`.

    Returns:
        bool `(N, H, W)`, no pixel in two of them; some may be empty.
    """
    visible = torch.empty_like(masks)
    covered = torch.zeros_like(masks[:1]).any(0)
    for index in reversed(range(len(masks))):
        visible[index] = masks[index] & ~covered
        covered |= masks[index]
    return visible


def _large(view: View, min_area: float) -> Tensor:
    """Which of a view's masks have at least a share of the image without padding: bool `(N,)`."""
    return view.masks.sum((1, 2)) >= min_area * view.content[0] * view.content[1]


def _chances(views: Sequence[View], min_area: float) -> dict[int, float]:
    """Probability to take an instance of each class: the rarest class's number in the batch over its own."""
    numbers = Counter(label for view in views for label in view.classes[_large(view, min_area)].tolist())
    return {label: min(numbers.values()) / number for label, number in numbers.items()}


def _uniform(generator: torch.Generator) -> float:
    """One number in [0, 1)."""
    return float(torch.rand((), generator=generator, device=generator.device))


def _scaled(cut: Cut, share: float, config: PasteConfig) -> Cut:
    """Resize an instance by the scale that lies `share` of the way between the limits."""
    scale = config.min_scale + share * (config.max_scale - config.min_scale)
    size = (max(round(cut.size[0] * scale), 1), max(round(cut.size[1] * scale), 1))
    image = F.interpolate(cut.image[None], size, mode="bilinear", align_corners=False)[0]
    mask = F.interpolate(cut.mask[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0] >= 0.5
    return replace(cut, image=image, mask=mask)


def _placed(
    cut: Cut, content: tuple[int, int], generator: torch.Generator, placement: Literal["static", "dynamic"]
) -> tuple[Cut, tuple[int, int]]:
    """Cut an instance to what fits into the content, and say where its upper left corner comes to lie."""
    window, corner = [], []
    for length, start, source, limit in zip(cut.size, cut.place, cut.content, content, strict=True):
        fits = min(length, limit)
        if placement == "static":
            # The centre keeps its share of the image; half pixels cancel where both images have one size.
            first, spare = (length - fits) // 2, limit - fits
            wanted = (start + length / 2) * limit / source - fits / 2
            corner.append(min(max(round(wanted), 0), spare))
        else:
            first = int(_uniform(generator) * (length - fits + 1))
            corner.append(int(_uniform(generator) * (limit - fits + 1)))
        window.append(slice(first, first + fits))
    rows, columns = window
    return replace(cut, image=cut.image[:, rows, columns], mask=cut.mask[rows, columns]), (corner[0], corner[1])

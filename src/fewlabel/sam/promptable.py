"""The one interface to SAM: encode an image, decode prompts into masks.

`PromptableSegmenter` wraps transformers' `SamModel` (SAM, Kirillov et al., ICCV 2023) and `Sam2Model` (SAM 2, Ravi et
al., 2024) behind the same two calls. Coordinates are continuous image pixels: column c covers [c, c + 1) and its centre
is c + 0.5, so scaling to the model's frame is a plain multiplication in both families.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.core.errors import ModelError
from fewlabel.sam.frames import Frame, bilinear_matrix

MEAN = (0.485, 0.456, 0.406)  # ImageNet statistics, as both families were trained with
STD = (0.229, 0.224, 0.225)
PAD_LABEL = -10  # a point that fills up a row and is to be ignored
STROKE = 10.0  # mask-prompt logit at a drawn click; half of it inside a drawn box
SPREAD = 3.0  # standard deviation of a drawn click in frame pixels
OUTSIDE = -10.0  # mask-prompt logit of the padding beyond the image: certainly background


@dataclass(frozen=True)
class Embedding:
    """Encoded images, to be decoded any number of times.

    Attributes:
        features: Maps `(B, C, h, w)`, highest resolution first; the last is the image embedding that prompts attend to.
        size: `(H, W)` of the images that were encoded.
    """

    features: list[Tensor]
    size: tuple[int, int]


class PromptableSegmenter(nn.Module):
    """SAM or SAM 2 with its own pixel preparation, exact coordinates and logits at image resolution.

    Args:
        model: A transformers `SamModel` or `Sam2Model`.
        family: "sam" or "sam2".
        name: What the model is called in cards and error messages.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module, family: str, name: str) -> None:
        super().__init__()
        self.model = cast(Any, model)  # its parts are named differently in each family
        self.family = family
        self.name = name
        config = cast(Any, model).config
        side = (config.prompt_encoder_config if family == "sam2" else config.vision_config).image_size
        self.frame = int(side if isinstance(side, int) else side[0])
        # nano-SAM also sees clicks and boxes as strokes on its mask prompt, which a short training can learn from.
        self.draws_prompts = bool(getattr(config, "draws_prompts", False))
        self.register_buffer("pixel_mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    @property
    def encoder_blocks(self) -> list[nn.Module]:
        """Encoder blocks in order; each returns tokens `(B, h, w, C)`, so a forward hook can adapt them."""
        encoder = self.model.vision_encoder
        return list(encoder.layers if self.family == "sam" else encoder.backbone.blocks)

    @property
    def block_channels(self) -> list[int]:
        """Channels C of each encoder block's output, in the order of `encoder_blocks`."""
        if self.family == "sam":
            return [self.model.config.vision_config.hidden_size] * len(self.encoder_blocks)
        return [int(block.dim_out) for block in self.model.vision_encoder.backbone.blocks]

    @property
    def mask_size(self) -> int:
        """Side of the decoder's logits and of its mask prompt: four cells to each cell of the image embedding."""
        size = self.model.prompt_encoder.image_embedding_size
        return 4 * int(size[0])

    def frame_of(self, size: tuple[int, int]) -> Frame:
        """Where an image of `size` (H, W) lies in this model's input."""
        return Frame.of(size, self.frame, keep_aspect=self.family == "sam")

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize, normalise and pad images to the network's frame; differentiable.

        Args:
            images: float `(B, C, H, W)` in [0, 1], C 1 (repeated) or 3 (RGB).

        Returns:
            float `(B, 3, S, S)`, S = `frame`; ImageNet-normalised, zeros in the padding.

        Raises:
            ModelError: `images` has another number of axes or channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ModelError(
                f"{self.name} takes images (B, C, H, W) with C 1 or 3, got shape {tuple(images.shape)}; "
                "add the batch axis or choose the channels."
            )
        frame = self.frame_of((int(images.shape[-2]), int(images.shape[-1])))
        pixels = images.expand(-1, 3, -1, -1)
        if frame.content != frame.size:
            pixels = F.interpolate(pixels, size=frame.content, mode="bilinear", antialias=True)
        pixels = (pixels - self.pixel_mean) / self.pixel_std
        rows, columns = frame.content
        return F.pad(pixels, (0, self.frame - columns, 0, self.frame - rows))

    def encode(self, images: Tensor) -> Embedding:
        """Encode images once for any number of prompts; gradients flow to the images and the encoder.

        Args:
            images: float `(B, C, H, W)` in [0, 1], C 1 or 3.

        Returns:
            The embedding, which also remembers the image size.

        Raises:
            ModelError: `images` has another number of axes or channels.
        """
        pixels = self.preprocess(images)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        output = self.model.vision_encoder(pixels)
        if self.family == "sam":
            return Embedding([output.last_hidden_state], size)
        features = list(output.fpn_hidden_states)
        decoder = self.model.mask_decoder
        features[0] = decoder.conv_s0(features[0])
        features[1] = decoder.conv_s1(features[1])
        features[-1] = features[-1] + self.model.no_memory_embedding.view(1, -1, 1, 1)
        return Embedding(features, size)

    def decode(
        self,
        embedding: Embedding,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Masks for P prompts per image, at image resolution.

        Args:
            embedding: What `encode` returned for B images of size (H, W).
            points: `(B, P, K, 2)` xy in image pixels, the centre of column c at c + 0.5.
            point_labels: `(B, P, K)` 1 object, 0 background, -10 padding; all 1 when left out.
            boxes: `(B, P, 4)` xyxy pixel edges.
            masks: `(B, P, H, W)` mask logits, or `(B, P, h, w)` logits as `decode_low` returned them.
            multimask: Three masks for an ambiguous prompt, or one.

        Returns:
            Logits `(B, P, M, H, W)` with M 3 or 1, and predicted IoU `(B, P, M)`. Without any prompt P is 1: the
            decoder runs on its own tokens alone.

        Raises:
            ModelError: The prompts' shapes disagree with each other or with the embedding.
        """
        low, quality = self.decode_low(embedding, points, point_labels, boxes, masks, multimask)
        return self.to_image(low, embedding.size), quality

    def decode_low(
        self,
        embedding: Embedding,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The same as `decode` with logits `(B, P, M, h, w)` as the decoder makes them, in the model's frame."""
        batch = int(embedding.features[-1].shape[0])
        prompts = self._prompt_count(batch, points, point_labels, boxes, masks)
        if prompts == 0:
            count = self.model.mask_decoder.num_multimask_outputs if multimask else 1
            empty = embedding.features[-1].new_zeros
            return empty((batch, 0, count, self.mask_size, self.mask_size)), empty((batch, 0, count))
        frame = self.frame_of(embedding.size)
        features = embedding.features
        if points is not None:
            # The prompt encoders of transformers take pixel indices and add the half pixel themselves.
            points = frame.points(points) - 0.5
            if point_labels is None:
                point_labels = torch.ones(points.shape[:3], dtype=torch.long, device=points.device)
            point_labels = point_labels.long()
        if boxes is not None:
            boxes = frame.points(boxes.reshape(batch, prompts, 2, 2)).reshape(batch, prompts, 4) - 0.5
        if masks is not None:
            masks = self._mask_prompt(masks, frame)
        if self.draws_prompts and (points is not None or boxes is not None):
            masks = self._draw(masks, points, point_labels, boxes)
        if masks is not None and prompts > 1:  # one dense embedding per row of the batch: prompts move to that axis
            features = [feature.repeat_interleave(prompts, 0) for feature in features]
            points, point_labels, boxes = (
                None if prompt is None else prompt.flatten(0, 1).unsqueeze(1)
                for prompt in (points, point_labels, boxes)
            )
        sparse, dense = self.model.prompt_encoder(points, point_labels, boxes, masks)
        rows = int(features[-1].shape[0])
        if sparse is None:
            sparse = features[-1].new_zeros((rows, 1, 0, dense.shape[1]))
        position = self.model.get_image_wide_positional_embeddings().expand(rows, -1, -1, -1)
        extra = {"high_resolution_features": features[:-1]} if self.family == "sam2" else {}
        output = self.model.mask_decoder(
            image_embeddings=features[-1],
            image_positional_embeddings=position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **extra,
        )
        low, quality = output[0], output[1]
        return low.reshape(batch, prompts, *low.shape[2:]), quality.reshape(batch, prompts, -1)

    def to_image(self, low: Tensor, size: tuple[int, int]) -> Tensor:
        """Resample decoder logits to an image: bilinear, the frame's padding left out.

        Args:
            low: `(..., h, w)` logits over the whole frame.
            size: (H, W) of the image.

        Returns:
            `(..., H, W)`; each pixel's centre is looked up where it lies in the frame.
        """
        frame = self.frame_of(size)
        if frame.content == (frame.side, frame.side):
            flat = low.reshape(-1, 1, *low.shape[-2:])
            return F.interpolate(flat, size=size, mode="bilinear").reshape(*low.shape[:-2], *size)
        rows, columns = (
            bilinear_matrix(size[axis], frame.content[axis] / size[axis] * low.shape[axis - 2] / frame.side, low, axis)
            for axis in (0, 1)
        )
        return rows @ low @ columns.T

    def _mask_prompt(self, masks: Tensor, frame: Frame) -> Tensor:
        """Mask logits `(B, P, H, W)` as dense prompts `(B * P, 1, h, w)` in the frame."""
        flat = masks.reshape(-1, 1, *masks.shape[-2:])
        if flat.shape[-2:] == (self.mask_size, self.mask_size):
            return flat
        side = (self.mask_size, self.mask_size)
        if frame.content == (frame.side, frame.side):
            return F.interpolate(flat, size=side, mode="bilinear", antialias=True)
        rows, columns = frame.content
        placed = F.interpolate(flat, size=frame.content, mode="bilinear", antialias=True)
        placed = F.pad(placed, (0, frame.side - columns, 0, frame.side - rows), value=OUTSIDE)
        return F.adaptive_avg_pool2d(placed, side)

    def _draw(self, masks: Tensor | None, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None) -> Tensor:
        """Draw clicks as bumps and boxes as areas onto mask prompts.

        Args:
            masks: Mask prompts `(B * P, 1, h, w)` to draw on, blank when None.
            points: `(B, P, K, 2)` pixel indices in the frame; bumps of `STROKE`, negative for background.
            labels: `(B, P, K)`, given with points; padding is not drawn.
            boxes: `(B, P, 4)` pixel indices in the frame; half a `STROKE` inside, minus that outside.

        Returns:
            `(B * P, 1, h, w)`.
        """
        some = points if points is not None else boxes
        assert some is not None  # the caller draws only what there is
        side = self.mask_size
        step = self.frame / side
        centre = (torch.arange(side, device=some.device, dtype=some.dtype) + 0.5) * step - 0.5
        canvas = some.new_zeros((some.shape[0] * some.shape[1], side, side)) if masks is None else masks[:, 0]
        if boxes is not None:
            corners = boxes.flatten(0, 1)
            across, down = (
                ((centre - corners[:, i, None]) / step + 0.5).clamp(0, 1)
                * ((corners[:, i + 2, None] - centre) / step + 0.5).clamp(0, 1)
                for i in (0, 1)
            )  # each the share of the cell between the box's two edges
            canvas = canvas + STROKE * (down[:, :, None] * across[:, None, :] - 0.5)
        if points is not None and labels is not None:
            sign = ((labels == 1).to(some.dtype) - (labels == 0).to(some.dtype)).flatten(0, 1)
            across, down = (
                torch.exp(-0.5 * ((centre - points[..., i].flatten(0, 1)[..., None]) / SPREAD) ** 2) for i in (0, 1)
            )
            canvas = canvas + STROKE * torch.einsum("nk,nkh,nkw->nhw", sign, down, across)
        return canvas[:, None]

    def _prompt_count(
        self, batch: int, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> int:
        """Number P of prompts per image, after checking that all prompts agree on B and P."""
        if labels is not None and (points is None or labels.shape != points.shape[:3]):
            got = None if points is None else tuple(points.shape)
            raise ModelError(
                f"point_labels {tuple(labels.shape)} do not belong to points {got}; give one label (B, P, K) per point."
            )
        counts = set()
        for kind, prompt, axes in (("points", points, 4), ("boxes", boxes, 3), ("masks", masks, 4)):
            if prompt is None:
                continue
            if prompt.ndim != axes or prompt.shape[0] != batch:
                raise ModelError(
                    f"{kind} have shape {tuple(prompt.shape)}; expected {axes} axes starting with (B, P), where "
                    f"B = {batch} as in the embedding."
                )
            counts.add(int(prompt.shape[1]))
        if len(counts) > 1:
            raise ModelError(
                f"points, boxes and masks name {sorted(counts)} prompts per image; give the same P to each."
            )
        return counts.pop() if counts else 1

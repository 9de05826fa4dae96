"""The one interface to SAM: encode an image, decode prompts into masks.

`PromptableSegmenter` puts every family of SAM behind the same two calls; what differs between them is in `family.py`.
Coordinates are continuous image pixels: column c covers [c, c + 1) and its centre is c + 0.5, so scaling to the model's
frame is a plain multiplication in all families.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.core.errors import ModelError
from fewlabel.sam.checks import PAD_LABEL, check_prompts
from fewlabel.sam.family import FAMILIES
from fewlabel.sam.frames import Frame, to_grid, to_image

__all__ = ["PAD_LABEL", "Embedding", "PromptableSegmenter"]

STROKE = 10.0  # mask-prompt logit at a drawn click; half of it inside a drawn box
SPREAD = 3.0  # standard deviation of a drawn click in frame pixels


@dataclass(frozen=True)
class Embedding:
    """Encoded images, to be decoded any number of times.

    Attributes:
        features: Maps `(B, C, h, w)`, finest first; the last is the image embedding that prompts attend to.
        size: `(H, W)` of the images that were encoded.
    """

    features: list[Tensor]
    size: tuple[int, int]


class PromptableSegmenter(nn.Module):
    """A SAM of any family with its own pixel preparation, exact coordinates and logits at image resolution.

    Args:
        model: The family's network, such as transformers' `SamModel`.
        family: A key of `fewlabel.sam.family.FAMILIES`.
        name: What the model is called in cards and error messages.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module, family: str, name: str) -> None:
        super().__init__()
        self.model = cast(Any, model)  # its parts are named differently in each family
        self.family = family
        self.name = name
        self._family = FAMILIES[family]
        self.frame = int(cast(Any, model).prompt_encoder.input_image_size)
        # nano-SAM also sees clicks and boxes as strokes on its mask prompt, which a short training can learn from.
        self.draws_prompts = bool(getattr(cast(Any, model).config, "draws_prompts", False))
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in self._family.statistics)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", deviation, persistent=False)

    @property
    def encoder_blocks(self) -> list[nn.Module]:
        """Encoder blocks in order; each returns tokens `(B, h, w, C)`, so a forward hook can adapt them."""
        return self._family.blocks(self.model)

    @property
    def block_channels(self) -> list[int]:
        """Channels C of each encoder block's output, in the order of `encoder_blocks`."""
        return self._family.channels(self.model)

    @property
    def mask_size(self) -> int:
        """Side of the decoder's logits and of its mask prompt: four cells to each cell of the image embedding."""
        size = self.model.prompt_encoder.image_embedding_size
        return 4 * int(size[0])

    def frame_of(self, size: tuple[int, int]) -> Frame:
        """Where an image of `size` (H, W) lies in this model's input."""
        return Frame.of(size, self.frame, keep_aspect=self._family.keep_aspect)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize, normalise and pad images to the network's frame; differentiable.

        Args:
            images: float `(B, C, H, W)` in [0, 1], C 1 (repeated) or 3 (RGB).

        Returns:
            float `(B, 3, S, S)`, S = `frame`; normalised as the family was trained, zeros in the padding.

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
        return Embedding(self._family.encode(self.model, pixels), size)

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
            ModelError: The prompts' shapes disagree with each other or with the embedding, a prompt has no points
                (K = 0), or a point or box lies outside the image or is not finite.
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
        frame = self.frame_of(embedding.size)
        prompts = check_prompts(batch, frame, points, point_labels, boxes, masks, self.mask_size)
        if prompts == 0:
            count = self.model.mask_decoder.num_multimask_outputs if multimask else 1
            empty = embedding.features[-1].new_zeros
            return empty((batch, 0, count, self.mask_size, self.mask_size)), empty((batch, 0, count))
        features, sparse, dense = self.embed_prompts(embedding, prompts, points, point_labels, boxes, masks)
        rows = int(features[-1].shape[0])
        position = self.model.get_image_wide_positional_embeddings().expand(rows, -1, -1, -1)
        output = self.model.mask_decoder(
            image_embeddings=features[-1],
            image_positional_embeddings=position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **self._family.decoder_inputs(features),
        )
        low, quality = output[0], output[1]
        return low.reshape(batch, prompts, *low.shape[2:]), quality.reshape(batch, prompts, -1)

    def embed_prompts(
        self,
        embedding: Embedding,
        prompts: int,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """What the prompt encoder makes of prompts that `check_prompts` has found right.

        Args:
            embedding: What `encode` returned for B images.
            prompts: Number P >= 1 of prompts per image, as `check_prompts` counted it.
            points: As for `decode`, and so are the others.
            point_labels: See there.
            boxes: See there.
            masks: See there.

        Returns:
            The embedding's features `(R, C, h, w)`, the prompts' tokens `(R, Q, T, C)`, T 0 where there is neither
            point nor box, and what is added to the image embedding, `(R, C, h, w)` or `(1, C, h, w)`. R is B and Q is
            P, unless each prompt has a mask of its own: then R is B * P and Q is 1.
        """
        features, frame = embedding.features, self.frame_of(embedding.size)
        if points is not None:
            # The prompt encoders of transformers take pixel indices and add the half pixel themselves.
            points = frame.points(points) - 0.5
            if point_labels is None:
                point_labels = torch.ones(points.shape[:3], dtype=torch.long, device=points.device)
            point_labels = point_labels.long()
        if boxes is not None:
            boxes = frame.boxes(boxes) - 0.5
        if masks is not None:
            low = masks.shape[-2:] == (self.mask_size, self.mask_size)
            masks = (masks if low else to_grid(masks, frame, self.mask_size)).flatten(0, 1)[:, None]
        if self.draws_prompts and (points is not None or boxes is not None):
            masks = self._draw(masks, points, point_labels, boxes)
        if masks is not None and prompts > 1:  # one dense embedding per row of the batch: prompts move to that axis
            features = [feature.repeat_interleave(prompts, 0) for feature in features]
            points, point_labels, boxes = (
                None if prompt is None else prompt.flatten(0, 1).unsqueeze(1)
                for prompt in (points, point_labels, boxes)
            )
        sparse, dense = self.model.prompt_encoder(points, point_labels, boxes, masks)
        if sparse is None:
            sparse = features[-1].new_zeros((int(features[-1].shape[0]), 1, 0, dense.shape[1]))
        return features, sparse, dense

    def to_image(self, low: Tensor, size: tuple[int, int]) -> Tensor:
        """Resample decoder logits to an image: bilinear, the frame's padding left out.

        Args:
            low: `(..., h, w)` logits over the whole frame.
            size: (H, W) of the image.

        Returns:
            `(..., H, W)`; each pixel's centre is looked up where it lies in the frame.
        """
        return to_image(low, self.frame_of(size))

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

"""SAM's side of structural distillation: points, rows, and what is kept of them on disk.

A view that was not augmented is the same in every epoch, and so is what SAM says about it. Its rows are kept where the
points are the same too; where only the points change, its embedding, which is most of the work, can be kept instead.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewlabel.core.errors import ModelError, RunError
from fewlabel.data.views import View
from fewlabel.s4m.similarity import SimilarityTarget, query_points
from fewlabel.sam.cache import GB, EmbeddingCache, image_hash
from fewlabel.sam.frames import Frame
from fewlabel.sam.promptable import Embedding, PromptableSegmenter
from fewlabel.sam.shards import ShardStore
from fewlabel.sam.tokens import similarity_rows

VERSION = 1  # goes up when the same weights no longer give the same rows for the same image and points


class RowCache:
    """Rows of similarity on disk in half precision, off by at most 2^-11; 128 rows of SAM's 64 x 64 cells need 1 MB.

    Args:
        folder: Where the shards lie (see `fewlabel.sam.shards`); not that of embeddings.
        checkpoint_sha256: Hash of SAM's weights, as `fewlabel.training.checkpoint.weights_sha256` gives it.
        max_gb: Bound on all shards together, in 10^9 bytes; the longest unused make room.

    Attributes:
        hits: Images whose rows were found.
        misses: Images whose rows were not.

    Raises:
        RunError: The bound is not a positive number, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, checkpoint_sha256: str, max_gb: float) -> None:
        if not (math.isfinite(max_gb) and max_gb > 0):
            raise RunError(f"The rows' bound is {max_gb} GB, expected a number above 0; give it a larger one.")
        self.checkpoint_sha256 = checkpoint_sha256
        self.hits = self.misses = 0
        self._store = ShardStore(folder, int(max_gb * GB))

    def key(self, image: Tensor, points: Tensor, frame: Frame) -> str:
        """Hash of all that the rows of an image `(3, H, W)` in SAM's frame and points `(P, 2)` follow from."""
        text = f"rows {VERSION} {self.checkpoint_sha256} {frame} {image_hash(image)} {image_hash(points)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, key: str) -> Tensor | None:
        """Rows float32 `(P, n)` on the CPU, or None where there are none."""
        found = self._store.read(key)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return None if found is None else found[0].float()

    def write(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep rows `(P, n)` by key; returns them as `read` will.

        Raises:
            RunError: The bound is smaller than these rows, or the disk is full.
        """
        halves = {key: value.cpu().half() for key, value in rows.items()}
        self._store.write({key: [half] for key, half in halves.items()})
        return {key: half.float() for key, half in halves.items()}


@dataclass(frozen=True)
class SimilarityCache:
    """A folder for what SAM says of views that come again: rows, and the embeddings that other points need.

    Runs with other seeds or points share the embeddings, which are most of SAM's work.

    Attributes:
        folder: Of the cache; several runs and processes may share it.
        gb: Bound on the rows, and on the embeddings, in 10^9 bytes.
    """

    folder: Path
    gb: float

    def similarity(self, sam: PromptableSegmenter, points: int, sha256: str) -> SamSimilarity:
        """Targets by a frozen SAM whose weights have that hash, with this cache."""
        embeddings = EmbeddingCache(self.folder / "embeddings", sam, sha256, self.gb)
        return SamSimilarity(sam, points, embeddings, RowCache(self.folder / "rows", sha256, self.gb))


class SamSimilarity:
    """SAM as the source of targets for `similarity_loss`.

    Args:
        segmenter: The model, frozen and in evaluation mode.
        points: Number P of prompts for an image.
        embeddings: Keeps SAM's embeddings; only for views that come again unchanged.
        rows: Keeps the rows; only for views that come again unchanged with the same seeds.

    Raises:
        ModelError: The model is to be trained or in training mode, or the embeddings are another model's.
    """

    def __init__(
        self,
        segmenter: PromptableSegmenter,
        points: int = 128,
        embeddings: EmbeddingCache | None = None,
        rows: RowCache | None = None,
    ) -> None:
        if segmenter.model.training or any(parameter.requires_grad for parameter in segmenter.parameters()):
            raise ModelError(
                f"{segmenter.name} is not frozen, so it would not say the same about an image twice; call eval() and"
                " requires_grad_(False) on it first."
            )
        if embeddings is not None and embeddings.segmenter is not segmenter:
            raise ModelError(
                f"The embeddings are of {embeddings.segmenter.name}, but the rows are asked of {segmenter.name}; give"
                " both the same model."
            )
        self.segmenter = segmenter
        self.points = points
        self.embeddings = embeddings
        self.rows = rows

    def targets(self, views: Sequence[View], seeds: Sequence[int]) -> list[SimilarityTarget]:
        """What SAM says about views, each under points of its own.

        Args:
            views: Of any sizes, padded or not; SAM is shown their content alone.
            seeds: One for each view, of its points, which are a pure function of the seed and the view.

        Returns:
            A target for each view, its points on the view's device, its rows on the model's or, from the cache, the
            CPU; with a row cache rows are rounded alike whether they were found or not.

        Raises:
            ModelError, RunError: As `EmbeddingCache.encode_many` and `RowCache`.
        """
        points = [
            query_points(view, self.points, torch.Generator().manual_seed(seed))
            for view, seed in zip(views, seeds, strict=True)
        ]
        contents = [view.image[:, : view.content[0], : view.content[1]] for view in views]
        frames = [self.segmenter.frame_of(view.content) for view in views]
        if self.rows is None:
            rows = self._fresh(contents, points)
        else:
            keys = [self.rows.key(*parts) for parts in zip(contents, points, frames, strict=True)]
            found = {key: stored for key in dict.fromkeys(keys) if (stored := self.rows.read(key)) is not None}
            absent = {key: index for index, key in enumerate(keys) if key not in found}
            fresh = self._fresh([contents[i] for i in absent.values()], [points[i] for i in absent.values()])
            found |= self.rows.write(dict(zip(absent, fresh, strict=True)))
            rows = [found[key] for key in keys]
        return [SimilarityTarget(*parts) for parts in zip(points, rows, frames, strict=True)]

    @torch.no_grad()
    def _fresh(self, contents: Sequence[Tensor], points: Sequence[Tensor]) -> list[Tensor]:
        """Rows `(P, n)` of each image by the model."""
        device = next(self.segmenter.parameters()).device
        embedded = self._embed(contents)
        return [
            similarity_rows(self.segmenter, embedding, chosen[None].to(device))[0]
            for embedding, chosen in zip(embedded, points, strict=True)
        ]

    def _embed(self, images: Sequence[Tensor]) -> list[Embedding]:
        """Embeddings of batch 1, those of one size computed together."""
        if self.embeddings is not None:
            return self.embeddings.encode_many([image_hash(image) for image in images], images)
        device = next(self.segmenter.parameters()).device
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            sizes.setdefault(tuple(image.shape[1:]), []).append(index)
        found: dict[int, Embedding] = {}
        for indices in sizes.values():
            together = self.segmenter.encode(torch.stack([images[index] for index in indices]).to(device))
            for row, index in enumerate(indices):
                one = [part[row : row + 1] for part in together.features]
                found[index] = Embedding(one, together.size)
        return [found[index] for index in range(len(images))]

"""Features of a frozen encoder, computed once per image and kept on disk in half precision."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewlabel.core.errors import DataError, ModelError, RunError
from fewlabel.core.radiometry import standardise, to_unit
from fewlabel.core.types import Image
from fewlabel.data.pixels import FileError, read_image
from fewlabel.data.readers.base import ENDINGS
from fewlabel.sam.promptable import Embedding, PromptableSegmenter
from fewlabel.sam.shards import ShardStore

GB = 10**9
VERSION = 1  # goes up when the same weights no longer give the same features for the same image
SHARDS = 8  # as many at least make up a full cache, so that making room for one costs little of what is there
SHARD_BYTES = 64 * 10**6


@dataclass(frozen=True)
class EmbedSummary:
    """What `embed_folder` did.

    Attributes:
        images: Images that were read.
        encoded: Images that went through the encoder; the others were in the cache already.
        held: Images whose features are in the cache at the end; fewer than `images` when the bound is too small.
        bytes: Bytes of all shards in the cache's folder, those of other models and images included.
        rejected: Files that could not be read, and why.
    """

    images: int
    encoded: int
    held: int
    bytes: int
    rejected: tuple[tuple[Path, str], ...]

    @property
    def hit_rate(self) -> float:
        """Share of the images that were in the cache already, in [0, 1]."""
        return 1.0 - self.encoded / self.images


class EmbeddingCache:
    """Embeddings of a frozen encoder, each computed at most once while it stays in the cache.

    What is returned does not depend on what the cache holds: features that were just computed are rounded like stored
    ones. Half precision has 11 bits of mantissa, so a feature x is off by at most 2^-11 |x| + 2^-25, and |x| must not
    exceed 65504. Several models and processes may share a folder.

    Args:
        folder: Where the shards lie (see `fewlabel.sam.shards`).
        segmenter: The model, its encoder frozen and in evaluation mode.
        checkpoint_sha256: Hash of the model's weights, as `fewlabel.training.checkpoint.weights_sha256` gives it.
        max_gb: Bound on all shards together, in 10^9 bytes; the longest unused make room.

    Attributes:
        hits: Images that were found.
        misses: Images that were encoded.

    Raises:
        ModelError: The encoder is to be trained or in training mode, so that its features are not fixed.
        RunError: The bound is not a positive number, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, segmenter: PromptableSegmenter, checkpoint_sha256: str, max_gb: float) -> None:
        if not (math.isfinite(max_gb) and max_gb > 0):
            raise RunError(f"The cache's bound is {max_gb} GB, expected a number above 0; give it a larger one.")
        encoder = segmenter.model.vision_encoder
        if encoder.training or any(parameter.requires_grad for parameter in encoder.parameters()):
            raise ModelError(
                f"The encoder of {segmenter.name} is not frozen, so its features change and cannot be cached; call "
                "eval() and requires_grad_(False) on it first."
            )
        self.segmenter = segmenter
        self.checkpoint_sha256 = checkpoint_sha256
        self.hits = self.misses = 0
        self._store = ShardStore(folder, int(max_gb * GB))

    @property
    def hit_rate(self) -> float:
        """Share of the requested images that were found, in [0, 1]; 0 before the first request."""
        return self.hits / max(1, self.hits + self.misses)

    @property
    def bytes(self) -> int:
        """Bytes of all shards in the folder."""
        return self._store.bytes

    def holds(self, image_key: str, size: tuple[int, int]) -> bool:
        """Whether the features of an image of `size` (H, W) are in the cache now; counts as no request."""
        return self._key(image_key, size) in self._store

    def get(self, image_key: str, image: Tensor) -> Embedding:
        """The embedding of one image; see `encode_many`."""
        return self.encode_many([image_key], [image])[0]

    def encode_many(self, image_keys: Sequence[str], images: Sequence[Tensor]) -> list[Embedding]:
        """Embeddings of images, those that are not in the cache encoded together (per size) and stored.

        Args:
            image_keys: What identifies each image's pixels, such as `image_hash` of it.
            images: float `(C, H, W)` in [0, 1], C 1 or 3, of any sizes.

        Returns:
            An embedding of batch 1 for each image, float32 on the model's device, without gradients; `stack` joins
            those of one size.

        Raises:
            ModelError: An image has another number of axes or channels, or a feature exceeds half precision.
            RunError: The bound is smaller than one image's features, or the disk is full.
        """
        for image in images:
            if image.ndim != 3 or len(image) not in (1, 3):
                raise ModelError(
                    f"An image to be encoded has shape {tuple(image.shape)}, expected (C, H, W) with C 1 or 3; give "
                    "the images of a batch one by one."
                )
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        keys = [self._key(image_key, size) for image_key, size in zip(image_keys, sizes, strict=True)]
        found = {key: stored for key in dict.fromkeys(keys) if (stored := self._store.read(key)) is not None}
        absent: dict[tuple[int, int], dict[str, Tensor]] = {}
        for key, size, image in zip(keys, sizes, images, strict=True):
            if key not in found:
                absent.setdefault(size, {})[key] = image
        self.misses += sum(len(group) for group in absent.values())
        self.hits += len(keys) - sum(len(group) for group in absent.values())
        for group in absent.values():
            fresh = self._encode(group)
            per_shard = self._per_shard(next(iter(fresh.values())))
            order = list(fresh)
            for start in range(0, len(order), per_shard):
                self._store.write({key: fresh[key] for key in order[start : start + per_shard]})
            found |= fresh
        device = next(self.segmenter.parameters()).device
        return [
            Embedding([part.to(device=device, dtype=torch.float32) for part in found[key]], size)
            for key, size in zip(keys, sizes, strict=True)
        ]

    def _key(self, image_key: str, size: tuple[int, int]) -> str:
        """Hash of all that the features of an image follow from."""
        text = f"{VERSION} {self.checkpoint_sha256} {self.segmenter.frame} {size[0]} {size[1]} {image_key}"
        return hashlib.sha256(text.encode()).hexdigest()

    @torch.no_grad()
    def _encode(self, group: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """Features float16 `(1, C, h, w)` of images of one size and any number of channels."""
        device = next(self.segmenter.parameters()).device
        batch = torch.stack([image.expand(3, -1, -1) for image in group.values()])
        features = [part.cpu().half() for part in self.segmenter.encode(batch.to(device)).features]
        if not all(bool(part.isfinite().all()) for part in features):
            raise ModelError(
                f"Features of {self.segmenter.name} are infinite in half precision (limit 65504) or not numbers; check "
                "the weights, or encode without a cache."
            )
        return {key: [part[index : index + 1] for part in features] for index, key in enumerate(group)}

    def _per_shard(self, features: list[Tensor]) -> int:
        """Images that one shard may hold."""
        size = sum(part.numel() * part.element_size() for part in features)
        return max(1, min(SHARD_BYTES, self._store.max_bytes // SHARDS) // size)


def image_hash(image: Tensor) -> str:
    """SHA-256 of an image's shape and pixels, as lower-case hexadecimal.

    Args:
        image: float `(C, H, W)` on any device; equal values in another dtype give another hash.
    """
    pixels = image.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}\n".encode())
    digest.update(pixels.numpy().data)
    return digest.hexdigest()


def stack(embeddings: Sequence[Embedding]) -> Embedding:
    """Join embeddings of images of one size into one batch.

    Args:
        embeddings: At least one, each of any batch size.

    Returns:
        One embedding, the images in their order.

    Raises:
        ModelError: The images have different sizes, so that their prompts would be scaled differently.
    """
    sizes = sorted({embedding.size for embedding in embeddings})
    if len(sizes) != 1:
        raise ModelError(
            f"Embeddings of images of {len(sizes)} sizes {sizes} make no batch; decode each size by itself."
        )
    parts = zip(*(embedding.features for embedding in embeddings), strict=True)
    return Embedding([torch.cat(part) for part in parts], sizes[0])


def to_input(image: Image) -> Tensor:
    """An image as SAM is given it.

    Args:
        image: In the file's own units.

    Returns:
        float32 `(C, H, W)` in [0, 1]: 8-bit colour divided by 255; anything else (infrared, more than 8 bits) free of
        the sensor's gain and offset, as `to_unit(standardise(...))`.
    """
    if image.channels == 3 and image.dtype == "uint8":
        return torch.from_numpy(image.pixels / np.float32(255))
    return torch.from_numpy(to_unit(standardise(image.pixels)))


def image_files(images: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted; hidden files are passed over.

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    if not images.is_dir():
        raise DataError(f"{images} is not a folder; give a folder of images.")
    paths = [path for path in sorted(images.rglob("*")) if path.suffix.lower() in ENDINGS and path.is_file()]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(images).parts)]
    if not paths:
        raise DataError(
            f"{images} holds no image, expected files that end with {', '.join(ENDINGS)}; check the folder."
        )
    return paths


def embed_folder(images: Path, cache: EmbeddingCache, batch: int = 8) -> EmbedSummary:
    """Encode the images of a folder into a cache, those that it holds already left alone.

    Args:
        images: A folder, searched with its subfolders; hidden files are passed over.
        cache: Where the features go.
        batch: Images that are read at a time; those of one size among them are encoded together.

    Returns:
        Counts, bytes and the files that could not be read.

    Raises:
        DataError: There is no such folder, or no image in it can be read.
        ModelError, RunError: As `EmbeddingCache.encode_many`.
    """
    paths = image_files(images)
    before = cache.misses
    done: list[tuple[str, tuple[int, int]]] = []
    rejected: list[tuple[Path, str]] = []
    for start in range(0, len(paths), batch):
        pixels = []
        for path in paths[start : start + batch]:
            try:
                pixels.append(to_input(read_image(path)))
            except FileError as error:
                rejected.append((path, str(error)))
        keys = [image_hash(image) for image in pixels]
        cache.encode_many(keys, pixels)
        done += [(key, (int(image.shape[-2]), int(image.shape[-1]))) for key, image in zip(keys, pixels, strict=True)]
    if not done:
        raise DataError(f"None of the {len(paths)} images in {images} can be read; the first: {rejected[0][1]}")
    held = sum(cache.holds(key, size) for key, size in done)
    return EmbedSummary(len(done), cache.misses - before, held, cache.bytes, tuple(rejected))

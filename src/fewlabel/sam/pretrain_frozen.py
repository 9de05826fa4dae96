"""The frozen-encoder phase of nano-SAM's pre-training: what still trains, and where the features come from."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from fewlabel.core.errors import RunError
from fewlabel.sam.cache import EmbeddingCache, image_hash, stack
from fewlabel.sam.pretrain_config import PretrainConfig
from fewlabel.sam.promptable import Embedding, PromptableSegmenter


def check_phase(config: PretrainConfig, start: str | None, cache: Path | None) -> None:
    """Refuse options that contradict each other.

    Raises:
        RunError: A pool of scenes without weights to start from, or a cache without a pool.
    """
    if config.pool and start is None:
        raise RunError(
            f"A pool of {config.pool} scenes is for a frozen encoder, but no trained one was given to start from; give "
            "--start nano or a folder of weights."
        )
    if cache is not None and not config.pool:
        raise RunError(
            f"The cache {cache} keeps features of a frozen encoder, but here the encoder trains; give --frozen-encoder "
            "and --pool, or leave --cache out."
        )


def freeze_encoder(segmenter: PromptableSegmenter) -> None:
    """Let nothing train that an embedding follows from: what is left is the prompt encoder and most of the decoder.

    Args:
        segmenter: nano-SAM, changed in place. SAM 2's decoder owns the projections of the two fine maps; they are
            applied when an image is encoded, so they are frozen too.
    """
    decoder = segmenter.model.mask_decoder
    segmenter.requires_grad_(False)
    for part in (segmenter.model.prompt_encoder, decoder):
        part.requires_grad_(True)
    for part in (decoder.conv_s0, decoder.conv_s1):
        part.requires_grad_(False)


class FrozenEncoder(PromptableSegmenter):
    """A frozen copy of a model whose embedding of an image is always the same, in training and in any batch.

    Images are encoded one by one, in single precision, and features are rounded to half precision: the last bits of a
    matrix product depend on how many rows it has, and what comes out of a cache must be what would be computed.

    Args:
        segmenter: The model; it is not changed.
    """

    def __init__(self, segmenter: PromptableSegmenter) -> None:
        super().__init__(copy.deepcopy(segmenter.model), segmenter.family, segmenter.name)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Embedding:
        """Encode images; see `PromptableSegmenter.encode`. Features are float32 of 11 significant bits."""
        encode = super().encode
        with torch.autocast(images.device.type, enabled=False):
            embedding = stack([encode(image[None]) for image in images])
        return Embedding([part.half().float() for part in embedding.features], embedding.size)


class FrozenFeatures:
    """Embeddings of batches, from a cache as far as it has them.

    Args:
        segmenter: The model that starts to train.
        checkpoint_sha256: Hash of its weights.
        device: Where the encoder runs.
        cache: Folder of the cache; None runs the encoder each time, with the same result.
        cache_gb: Bound on the cache, in 10^9 bytes.

    Raises:
        RunError: As `EmbeddingCache`.
    """

    def __init__(
        self, segmenter: PromptableSegmenter, checkpoint_sha256: str, device: str, cache: Path | None, cache_gb: float
    ) -> None:
        self._encoder = FrozenEncoder(segmenter).to(device)
        self._device = device
        self._cache = None if cache is None else EmbeddingCache(cache, self._encoder, checkpoint_sha256, cache_gb)

    def __call__(self, images: Tensor) -> tuple[Embedding, float | None]:
        """Embed the images of one batch.

        Args:
            images: float `(B, 3, S, S)` in [0, 1], on the CPU.

        Returns:
            The embedding on the device, without gradients, and the share of the images that were in the cache, in
            [0, 1]; None without a cache.
        """
        if self._cache is None:
            return self._encoder.encode(images.to(self._device).float()), None
        before = self._cache.hits
        found = self._cache.encode_many([image_hash(image) for image in images], list(images.float()))
        return stack(found), (self._cache.hits - before) / len(images)

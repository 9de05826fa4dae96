"""The embedding cache: exact bookkeeping, half-precision error, folders of images, and processes that are killed."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from fewlabel.core.errors import DataError, ModelError, RunError
from fewlabel.core.radiometry import standardise, to_unit
from fewlabel.core.types import Image
from fewlabel.sam.cache import EmbeddingCache, embed_folder, image_hash, stack, to_input
from fewlabel.sam.promptable import Embedding, PromptableSegmenter
from fewlabel.training.checkpoint import weights_sha256

FAMILIES = ("sam", "sam2", "nano")


def picture(seed: int, size: tuple[int, int] = (37, 53), channels: int = 1) -> torch.Tensor:
    return torch.rand((channels, *size), generator=torch.Generator().manual_seed(seed))


def rounded(segmenter: PromptableSegmenter, image: torch.Tensor) -> list[torch.Tensor]:
    """What the cache must return for an image, straight from the model."""
    with torch.no_grad():
        return [part.half().float() for part in segmenter.encode(image[None]).features]


def same(embedding: Embedding, features: list[torch.Tensor]) -> bool:
    return len(features) == len(embedding.features) and all(
        one.dtype == torch.float32 and torch.allclose(one, other, atol=2e-3, rtol=2e-3)
        for one, other in zip(embedding.features, features, strict=True)
    )


@pytest.fixture
def sam(segmenters) -> PromptableSegmenter:
    return segmenters["sam"]


@pytest.mark.parametrize("name", FAMILIES)
def test_hit_equals_miss_and_model(segmenters, name, tmp_path):
    """All feature maps come back, for each family, with the same values before and after a restart."""
    segmenter = segmenters[name]
    images = [picture(0), picture(1, (64, 40), 3), picture(2)]
    keys = [image_hash(image) for image in images]
    cache = EmbeddingCache(tmp_path, segmenter, weights_sha256(segmenter), 0.1)
    first = cache.encode_many(keys, images)
    assert (cache.hits, cache.misses, cache.hit_rate) == (0, 3, 0.0)
    again = EmbeddingCache(tmp_path, segmenter, weights_sha256(segmenter), 0.1)
    second = again.encode_many(keys[::-1], images[::-1])[::-1]
    assert (again.hits, again.misses, again.hit_rate) == (3, 0, 1.0)
    for image, one, other in zip(images, first, second, strict=True):
        assert one.size == other.size == tuple(image.shape[-2:])
        assert all(map(torch.equal, one.features, other.features))
        assert same(one, rounded(segmenter, image))
        assert not any(part.requires_grad for part in one.features)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_error_is_within_its_bound(segmenters, name, tmp_path):
    """|error| <= 2^-11 |x| + 2^-25 for every feature, and masks agree."""
    segmenter, image = segmenters[name], picture(3)
    exact = segmenter.encode(image[None])
    cached = EmbeddingCache(tmp_path, segmenter, "c", 0.1).get("k", image)
    for one, other in zip(cached.features, exact.features, strict=True):
        assert ((one - other).abs() <= 2**-11 * other.abs() + 2**-25).all()
        assert not torch.equal(one, other)
    point = torch.tensor([26.0, 18.0]).view(1, 1, 1, 2)
    masks = [segmenter.decode(embedding, point)[0] > 0 for embedding in (cached, exact)]
    assert (masks[0] == masks[1]).float().mean() > 0.99


@given(values=st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=20))
def test_bound_of_half_precision(values):
    exact = torch.tensor(values, dtype=torch.float32)
    assert ((exact.half().double() - exact.double()).abs() <= 2**-11 * exact.double().abs() + 2**-25).all()


def test_each_thing_a_feature_follows_from_is_in_the_key(segmenters, tmp_path):
    image = picture(0)
    cache = EmbeddingCache(tmp_path, segmenters["sam"], "one", 0.1)
    cache.get("k", image)
    assert cache.holds("k", (37, 53))
    assert not cache.holds("other", (37, 53))
    assert not cache.holds("k", (53, 37))
    assert not EmbeddingCache(tmp_path, segmenters["sam"], "two", 0.1).holds("k", (37, 53))
    assert not EmbeddingCache(tmp_path, segmenters["nano"], "one", 0.1).holds("k", (37, 53))  # another frame


@given(seed=st.integers(0, 50), index=st.integers(0, 59), change=st.floats(1e-6, 1))
def test_image_hash_sees_every_pixel_and_the_shape(seed, index, change):
    image = picture(seed, (6, 10))
    other = image.clone()
    other.view(-1)[index] += change
    assert image_hash(image) == image_hash(image.clone())
    assert (image_hash(other) == image_hash(image)) == torch.equal(other, image)
    assert image_hash(image.view(1, 10, 6)) != image_hash(image)
    assert image_hash(image.mT) == image_hash(image.mT.contiguous())


def test_each_image_is_encoded_once(sam, tmp_path):
    cache = EmbeddingCache(tmp_path, sam, "c", 0.1)
    calls = []
    handle = sam.model.vision_encoder.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    try:
        found = cache.encode_many(["a", "b", "a", "c"], [picture(0), picture(1), picture(0), picture(2, (40, 40))])
        cache.get("b", picture(1))
    finally:
        handle.remove()
    assert calls == [2, 1]  # one batch for each size
    assert (cache.hits, cache.misses) == (2, 3)
    assert all(map(torch.equal, found[0].features, found[2].features))
    assert cache.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_bound_holds_and_the_longest_unused_go(sam, tmp_path):
    one = EmbeddingCache(tmp_path / "one", sam, "c", 0.1)
    one.get("a", picture(0))
    bound = 3.5 * one.bytes / 1e9
    cache = EmbeddingCache(tmp_path / "cache", sam, "c", bound)
    for number in range(5):
        cache.encode_many([f"k{number}", f"l{number}"], [picture(number), picture(number + 50)])
        assert cache.bytes <= bound * 1e9
        time.sleep(0.01)
    assert [cache.holds(key, (37, 53)) for key in ("k2", "l2", "k3", "l3", "k4", "l4")] == 3 * [False] + 3 * [True]
    assert same(cache.get("k0", picture(0)), rounded(sam, picture(0)))
    assert (cache.hits, cache.misses) == (0, 11)


def test_bound_below_one_image_is_refused(sam, tmp_path):
    cache = EmbeddingCache(tmp_path, sam, "c", 1e-7)
    with pytest.raises(RunError, match="bounded to 1e-07 GB, less than the features of one image"):
        cache.encode_many(["a", "b"], [picture(0), picture(1)])
    for bound in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RunError, match="expected a number above 0"):
            EmbeddingCache(tmp_path, sam, "c", bound)


@pytest.fixture
def own(tiny_models) -> PromptableSegmenter:
    """A model that a test may change."""
    return PromptableSegmenter(tiny_models["sam"](), "sam", "own SAM").eval().requires_grad_(False)


def test_encoder_must_be_frozen(own, tmp_path):
    own.model.mask_decoder.train().requires_grad_(True)
    EmbeddingCache(tmp_path, own, "c", 0.1)  # the decoder may be trained
    own.model.vision_encoder.train()
    with pytest.raises(ModelError, match="encoder of own SAM is not frozen"):
        EmbeddingCache(tmp_path, own, "c", 0.1)
    own.model.vision_encoder.eval().patch_embed.requires_grad_(True)
    with pytest.raises(ModelError, match="encoder of own SAM is not frozen"):
        EmbeddingCache(tmp_path, own, "c", 0.1)


def test_features_beyond_half_precision_are_refused(own, tmp_path):
    own.model.vision_encoder.neck.layer_norm2.weight.mul_(1e6)
    cache = EmbeddingCache(tmp_path, own, "c", 0.1)
    with pytest.raises(ModelError, match="infinite in half precision"):
        cache.get("k", picture(0))
    assert not cache.holds("k", (37, 53))


@pytest.mark.parametrize("shape", [(2, 8, 8), (8, 8), (1, 3, 8, 8)])
def test_wrong_images_are_named(sam, tmp_path, shape):
    with pytest.raises(ModelError, match="expected \\(C, H, W\\)"):
        EmbeddingCache(tmp_path, sam, "c", 0.1).get("k", torch.zeros(shape))


def test_stack_decodes_like_one_by_one(sam, tmp_path):
    cache = EmbeddingCache(tmp_path, sam, "c", 0.1)
    single = cache.encode_many(["a", "b"], [picture(0), picture(1)])
    points = torch.tensor([[[[9.0, 9.0]]], [[[30.0, 20.0]]]])
    together, _ = sam.decode(stack(single), points)
    for index, embedding in enumerate(single):
        torch.testing.assert_close(sam.decode(embedding, points[index : index + 1])[0][0], together[index])
    with pytest.raises(ModelError, match="2 sizes"):
        stack([single[0], cache.get("c", picture(0, (40, 40)))])


def test_infrared_and_colour_are_given_as_they_were_in_training():
    raw = np.random.default_rng(0).integers(0, 16000, (1, 9, 11)).astype(np.float32)
    infrared = to_input(Image("a", raw, "uint16", 16))
    assert torch.equal(infrared, torch.from_numpy(to_unit(standardise(raw))))
    torch.testing.assert_close(to_input(Image("a", 3 * raw + 700, "uint16", 16)), infrared, atol=1e-5, rtol=0)
    colour = np.random.default_rng(1).integers(0, 256, (3, 9, 11)).astype(np.float32)
    assert torch.equal(to_input(Image("b", colour, "uint8", 8)), torch.from_numpy(colour) / 255)
    deep = to_input(Image("c", colour * 16, "uint16", 16))
    assert deep.shape == (3, 9, 11)
    assert 0 < deep.min() < deep.max() < 1


@pytest.fixture
def folder(tmp_path) -> Path:
    """Seven images of two sizes and three kinds, one of them twice, beside what is to be left out."""
    images = tmp_path / "images"
    (images / "deeper" / ".hidden").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        Pillow.fromarray(rng.integers(0, 255, (30, 44), np.uint8)).save(images / f"grey{number}.png")
        Pillow.fromarray(rng.integers(0, 65535, (30, 44), np.uint16)).save(images / "deeper" / f"deep{number}.png")
    Pillow.fromarray(rng.integers(0, 255, (41, 20, 3), np.uint8)).save(images / "colour.bmp")
    (images / "twice.png").write_bytes((images / "grey1.png").read_bytes())
    (images / "deeper" / ".hidden" / "a.png").write_bytes(b"nothing")
    (images / ".b.png").write_bytes(b"nothing")
    (images / "notes.txt").write_text("no image")
    return images


def test_folder_is_embedded_once(sam, folder, tmp_path):
    def cache() -> EmbeddingCache:
        return EmbeddingCache(tmp_path / "cache", sam, weights_sha256(sam), 0.1)

    first = embed_folder(folder, cache(), batch=3)
    assert (first.images, first.encoded, first.held, first.rejected) == (8, 7, 8, ())
    assert first.hit_rate == 1 / 8
    assert first.bytes == sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.safetensors"))
    second = embed_folder(folder, cache(), batch=5)
    assert (second.images, second.encoded, second.hit_rate, second.bytes) == (8, 0, 1.0, first.bytes)


def test_folder_that_does_not_fit_says_so(sam, folder, tmp_path):
    whole = embed_folder(folder, EmbeddingCache(tmp_path / "whole", sam, "c", 0.1))
    summary = embed_folder(folder, EmbeddingCache(tmp_path / "small", sam, "c", whole.bytes / 2 / 1e9))
    assert summary.bytes <= whole.bytes / 2
    assert 0 < summary.held < summary.images


def test_damaged_images_are_named_and_passed_over(sam, folder, tmp_path):
    broken = folder / "deeper" / "deep1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    summary = embed_folder(folder, EmbeddingCache(tmp_path / "cache", sam, "c", 0.1))
    assert summary.images == 7
    ((path, reason),) = summary.rejected
    assert path == broken
    assert "truncated or damaged" in reason


def test_folders_without_images_are_named(sam, tmp_path):
    cache = EmbeddingCache(tmp_path / "cache", sam, "c", 0.1)
    with pytest.raises(DataError, match="absent is not a folder"):
        embed_folder(tmp_path / "absent", cache)
    with pytest.raises(DataError, match="holds no image"):
        embed_folder(tmp_path / "cache", cache)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="None of the 1 images .* the first: .*a.png"):
        embed_folder(tmp_path / "bad", cache)


def test_processes_that_are_killed_leave_right_features(sam, tmp_path):
    """Three generations of two processes each are killed while they encode; what is found is what the model gives."""
    images = {f"k{number}": picture(number) for number in range(12)}
    expected = {key: rounded(sam, image) for key, image in images.items()}
    size = EmbeddingCache(tmp_path / "one", sam, "c", 0.1)
    size.get("k", picture(0))
    bound = 8.5 * size.bytes / 1e9
    for generation in range(3):
        workers = []
        for worker in range(2):
            pid = os.fork()
            if pid == 0:
                rng = np.random.default_rng([generation, worker])
                cache = EmbeddingCache(tmp_path / "cache", sam, "c", bound)
                while True:
                    key = f"k{rng.integers(12)}"
                    if not same(cache.get(key, images[key]), expected[key]):
                        os._exit(3)
            workers.append(pid)
        time.sleep(0.6)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers] == [-signal.SIGKILL] * 2
        cache = EmbeddingCache(tmp_path / "cache", sam, "c", bound)
        assert not list((tmp_path / "cache").glob(".*"))
        assert cache.bytes <= bound * 1e9
    held = [key for key in images if cache.holds(key, (37, 53))]
    assert len(held) >= 5
    assert all(same(cache.get(key, images[key]), expected[key]) for key in held)
    assert (cache.hits, cache.misses) == (len(held), 0)

"""SAM's side of structural distillation: the same rows with caches and without, and no work done twice."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests.sam import tiny_sam as tiny

from fewlabel.core.errors import ModelError, RunError
from fewlabel.data.views import View
from fewlabel.s4m.similarity import query_points, similarity_loss
from fewlabel.s4m.similarity_targets import RowCache, SamSimilarity
from fewlabel.sam.cache import EmbeddingCache, image_hash
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.sam.tokens import similarity_rows

POINTS = 12


def view(content=(30, 44), size=(48, 64), seed=0, edge=20):
    image = torch.zeros(3, *size)
    image[:, : content[0], : content[1]] = torch.rand((3, *content), generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[:, 4:edge, 6:18] = True
    return View(image, masks, torch.zeros(1, dtype=torch.int64), content)


@pytest.fixture(scope="module", params=["sam", "sam2"])
def segmenter(request):
    model = PromptableSegmenter(tiny.BUILDERS[request.param](), request.param, f"tiny {request.param}")
    with torch.no_grad():  # the library's small weights would make all cells of an image alike
        for parameter in model.parameters():
            if parameter.ndim > 1:
                generator = torch.Generator().manual_seed(0)
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture
def work(segmenter):
    """How many images were encoded and how many prompts went through the decoder's transformer."""
    done = Counter()
    handles = [
        segmenter.model.vision_encoder.register_forward_hook(lambda _m, i, _o: done.update(encoded=len(i[0]))),
        segmenter.model.mask_decoder.transformer.register_forward_hook(
            lambda _m, _i, out: done.update(prompts=out[1].shape[0] * out[1].shape[1])
        ),
    ]
    yield done
    for handle in handles:
        handle.remove()


def same_rows(ours, others, atol=0.0):
    return all(
        torch.equal(one.points, other.points)
        and one.frame == other.frame
        and torch.allclose(one.rows, other.rows, rtol=0, atol=atol)
        for one, other in zip(ours, others, strict=True)
    )


VIEWS = (view(), view((48, 64), seed=1), view(seed=2), view((17, 20), seed=3))


def test_targets_are_sams_rows_of_the_content(segmenter):
    for whole, seed, target in zip(
        VIEWS, range(4), SamSimilarity(segmenter, POINTS).targets(VIEWS, range(4)), strict=True
    ):
        points = query_points(whole, POINTS, torch.Generator().manual_seed(seed))
        embedding = segmenter.encode(whole.image[None, :, : whole.content[0], : whole.content[1]])
        assert torch.equal(target.points, points)
        torch.testing.assert_close(target.rows, similarity_rows(segmenter, embedding, points[None])[0])
        assert target.frame == segmenter.frame_of(whole.content)
        assert target.side == 4
        assert target.rows.std() > 0.01
        assert not target.rows.requires_grad


def test_images_of_one_size_are_encoded_together(segmenter, work):
    calls = []
    handle = segmenter.model.vision_encoder.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    SamSimilarity(segmenter, POINTS).targets(VIEWS, range(4))
    handle.remove()
    assert sorted(calls) == [1, 1, 2]
    assert work["prompts"] == 4 * POINTS


def test_rows_are_kept_to_half_precision_and_no_work_is_done_twice(segmenter, work, tmp_path):
    plain = SamSimilarity(segmenter, POINTS).targets(VIEWS, range(4))
    first = SamSimilarity(segmenter, POINTS, rows=RowCache(tmp_path, "a", 0.1)).targets(VIEWS, range(4))
    work.clear()
    cache = RowCache(tmp_path, "a", 0.1)  # as after a restart
    again = SamSimilarity(segmenter, POINTS, rows=cache).targets(VIEWS, range(4))
    assert not work
    assert (cache.hits, cache.misses) == (4, 0)
    assert same_rows(first, again)
    assert same_rows(first, plain, atol=2**-11)
    assert not same_rows(first, plain)
    features = torch.randn((4, 6, 12, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        similarity_loss(features, (48, 64), again), similarity_loss(features, (48, 64), plain), rtol=1e-3, atol=1e-4
    )


def test_what_is_new_in_a_batch_is_made_alone(segmenter, work, tmp_path):
    source = SamSimilarity(segmenter, POINTS, rows=RowCache(tmp_path, "a", 0.1))
    source.targets(VIEWS[:2], [0, 1])
    work.clear()
    mixed = source.targets([VIEWS[2], VIEWS[1], VIEWS[2]], [5, 1, 5])
    assert work == {"encoded": 1, "prompts": POINTS}
    assert same_rows(mixed, SamSimilarity(segmenter, POINTS).targets([VIEWS[2], VIEWS[1], VIEWS[2]], [5, 1, 5]), 2**-11)


def test_each_thing_rows_follow_from_is_asked_for(segmenter, work, tmp_path):
    def prompts_of(whole, seed, count=POINTS, sha256="a"):
        work.clear()
        SamSimilarity(segmenter, count, rows=RowCache(tmp_path, sha256, 0.1)).targets([whole], [seed])
        return work["prompts"]

    assert prompts_of(view(), 0) == POINTS
    assert prompts_of(view(), 0) == 0
    assert prompts_of(view(seed=9), 0) == POINTS
    assert prompts_of(view(), 1) == POINTS
    assert prompts_of(view(edge=24), 0) == POINTS  # other objects, so other points
    assert prompts_of(view(content=(30, 40)), 0) == POINTS
    assert prompts_of(view(), 0, count=5) == 5
    assert prompts_of(view(), 0, sha256="b") == POINTS
    assert prompts_of(view(), 0) == 0


def test_padding_of_the_batch_changes_nothing(segmenter, work, tmp_path):
    source = SamSimilarity(segmenter, POINTS)
    padded, bare = source.targets([view(size=(80, 50)), view(size=(30, 44))], [3, 3])
    assert same_rows([padded], [bare], atol=1e-5)
    kept = SamSimilarity(segmenter, POINTS, rows=RowCache(tmp_path, "a", 0.1))
    kept.targets([view(size=(80, 50))], [3])
    work.clear()
    kept.targets([view(size=(30, 44))], [3])
    assert not work


def test_embeddings_are_kept_for_other_points(segmenter, work, tmp_path):
    embeddings = EmbeddingCache(tmp_path, segmenter, "a", 0.1)
    source = SamSimilarity(segmenter, POINTS, embeddings)
    source.targets(VIEWS, range(4))
    work.clear()
    targets = source.targets(VIEWS, range(10, 14))
    assert work == {"prompts": 4 * POINTS}
    assert (embeddings.hits, embeddings.misses) == (4, 4)
    assert embeddings.holds(image_hash(VIEWS[0].image[:, :30, :44]), (30, 44))  # as others ask for the same image
    assert same_rows(targets, SamSimilarity(segmenter, POINTS).targets(VIEWS, range(10, 14)), atol=5e-3)


def test_bound_holds(segmenter, tmp_path):
    one = RowCache(tmp_path / "one", "a", 0.1)
    SamSimilarity(segmenter, POINTS, rows=one).targets([view()], [0])
    shard = sum(path.stat().st_size for path in (tmp_path / "one").glob("*.safetensors"))
    bounded = SamSimilarity(segmenter, POINTS, rows=RowCache(tmp_path / "two", "a", 2.5 * shard / 1e9))
    for seed in range(4):
        bounded.targets([view()], [seed])
    assert len(list((tmp_path / "two").glob("*.safetensors"))) == 2
    for bound in (0.0, float("nan")):
        with pytest.raises(RunError, match="expected a number above 0"):
            RowCache(tmp_path / "three", "a", bound)


def test_a_model_that_changes_is_refused(segmenter, tmp_path):
    other = PromptableSegmenter(tiny.tiny_sam(), "sam", "other SAM").eval()
    with pytest.raises(ModelError, match=r"other SAM is not frozen.*call eval\(\)"):
        SamSimilarity(other)
    other.requires_grad_(False)
    with pytest.raises(ModelError, match="embeddings are of other SAM"):
        SamSimilarity(segmenter, embeddings=EmbeddingCache(tmp_path, other, "a", 0.1))
    other.train()
    with pytest.raises(ModelError, match="not frozen"):
        SamSimilarity(other)


def test_image_without_objects_has_targets(segmenter):
    empty = replace(view(), masks=torch.zeros(0, 48, 64, dtype=torch.bool), classes=torch.zeros(0, dtype=torch.int64))
    target = SamSimilarity(segmenter, POINTS).targets([empty], [0])[0]
    assert target.rows.shape == (POINTS, 16)
    assert target.rows.isfinite().all()

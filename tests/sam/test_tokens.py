"""Image tokens under prompts: those of the whole decoder, in any chunks, and rows of their similarity."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import ModelError
from fewlabel.sam.frames import Frame
from fewlabel.sam.promptable import PAD_LABEL
from fewlabel.sam.tokens import anchors, prompted_tokens, similarity_rows

ODD = (37, 53)
FAMILIES = ("sam", "sam_hq", "sam2", "sam3_tracker", "mobile_sam", "nano")


@pytest.fixture(scope="module")
def lively(segmenters):
    """Copies of the models whose cells differ: the library's small random weights would make them all alike."""
    found = {}
    for name, segmenter in segmenters.items():
        found[name] = copy.deepcopy(segmenter)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in found[name].parameters():
                if parameter.ndim > 1 and name != "nano":
                    parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return found


def pictures(batch=2, seed=0):
    return torch.rand((batch, 3, *ODD), generator=torch.Generator().manual_seed(seed))


def clicks(*shape, seed=1):
    return torch.rand((*shape, 2), generator=torch.Generator().manual_seed(seed)) * torch.tensor([53.0, 37.0])


def hooked(segmenter, embedding, points, labels=None):
    """The tokens as they pass through the whole decoder."""
    seen = []
    handle = segmenter.model.mask_decoder.transformer.register_forward_hook(lambda _m, _i, out: seen.append(out[1]))
    try:
        segmenter.decode_low(embedding, points, labels)
    finally:
        handle.remove()
    return seen[0].reshape(*points.shape[:2], *seen[0].shape[-2:])


@pytest.mark.parametrize("name", FAMILIES)
class TestEveryFamily:
    def test_tokens_are_those_of_the_whole_decoder(self, lively, name):
        segmenter = lively[name]
        embedding = segmenter.encode(pictures())
        for points, labels in (
            (clicks(2, 3, 1), None),
            (clicks(2, 1, 3), torch.tensor([1, 0, PAD_LABEL]).expand(2, 1, 3)),
        ):
            found = prompted_tokens(segmenter, embedding, points, labels)
            expected = hooked(segmenter, embedding, points, labels)
            side = segmenter.mask_size // 4
            assert found.shape == expected.shape == (*points.shape[:2], side * side, embedding.features[-1].shape[1])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(expected[0], expected[1])

    def test_neither_masks_nor_their_quality_are_made(self, lively, name):
        segmenter, ran = lively[name], []
        decoder = segmenter.model.mask_decoder
        embedding = segmenter.encode(pictures())
        heads = [module for part, module in decoder.named_children() if part != "transformer"]
        handles = [m.register_forward_hook(lambda *_: ran.append(1)) for head in heads for m in head.modules()]
        try:
            similarity_rows(segmenter, embedding, clicks(2, 3))
            assert not ran
            segmenter.decode_low(embedding, clicks(2, 3, 1))
            assert ran
        finally:
            for handle in handles:
                handle.remove()

    def test_rows_are_cosines_to_the_prompted_cell_in_any_chunks(self, lively, name):
        segmenter = lively[name]
        embedding, points = segmenter.encode(pictures()), clicks(2, 5)
        tokens = hooked(segmenter, embedding, points[:, :, None])
        side = segmenter.mask_size // 4
        expected = torch.empty(2, 5, side * side)
        for b in range(2):
            for p in range(5):
                at = segmenter.frame_of(ODD).points(points[b, p]) * side / segmenter.frame
                anchor = tokens[b, p, int(at[1]) * side + int(at[0])]
                expected[b, p] = F.cosine_similarity(tokens[b, p], anchor[None], dim=-1)
        assert expected.std(-1).min() > 0.005
        for chunk in (None, 1, 2, 5, 99):
            rows = similarity_rows(segmenter, embedding, points, chunk)
            torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)
            assert rows.dtype == torch.float32
            assert not rows.requires_grad
            at_anchors = rows.gather(2, anchors(segmenter.frame_of(ODD), points, side)[..., None])
            torch.testing.assert_close(at_anchors, torch.ones(2, 5, 1), rtol=0, atol=1e-5)

    def test_no_prompts_give_no_rows(self, lively, name):
        segmenter = lively[name]
        embedding, cells = segmenter.encode(pictures()), (segmenter.mask_size // 4) ** 2
        assert prompted_tokens(segmenter, embedding, torch.zeros(2, 0, 1, 2)).shape[:3] == (2, 0, cells)
        assert similarity_rows(segmenter, embedding, torch.zeros(2, 0, 2)).shape == (2, 0, cells)


def test_only_one_chunk_of_tokens_is_there_at_a_time(lively):
    segmenter, batches = lively["sam2"], []
    embedding = segmenter.encode(pictures())
    handle = segmenter.model.mask_decoder.transformer.register_forward_hook(
        lambda _m, _i, out: batches.append(out[1].shape[0] * out[1].shape[1])
    )
    try:
        similarity_rows(segmenter, embedding, clicks(2, 7), chunk=3)
    finally:
        handle.remove()
    assert batches == [3, 3, 1, 3, 3, 1]


def test_tokens_can_be_learned_through_and_rows_cannot(lively):
    segmenter, images = lively["sam"], pictures().requires_grad_()
    embedding = segmenter.encode(images)
    prompted_tokens(segmenter, embedding, clicks(2, 2, 1)).square().mean().backward()
    assert images.grad.abs().sum() > 0
    assert not similarity_rows(segmenter, segmenter.encode(images), clicks(2, 2)).requires_grad


def test_half_precision_around_it_does_not_round_the_cosines(lively):
    segmenter = lively["sam2"]
    embedding, points = segmenter.encode(pictures()), clicks(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = prompted_tokens(segmenter, embedding, points[:, :, None]).float()
        rows = similarity_rows(segmenter, embedding, points)
    cells = anchors(segmenter.frame_of(ODD), points, 4)
    for b in range(2):
        for p in range(3):
            exact = F.cosine_similarity(tokens[b, p], tokens[b, p, cells[b, p]][None], dim=-1)
            torch.testing.assert_close(rows[b, p], exact, rtol=1e-4, atol=1e-4)


def test_wrong_points_are_named(lively):
    segmenter = lively["sam"]
    embedding = segmenter.encode(pictures())
    with pytest.raises(ModelError, match="B = 2"):
        similarity_rows(segmenter, embedding, clicks(1, 3))
    with pytest.raises(ModelError, match=r"point \(54, 3\).*53 columns"):
        similarity_rows(segmenter, embedding, torch.tensor([54.0, 3.0]).expand(2, 1, 2))


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    keep=st.booleans(),
    side=st.sampled_from([4, 16, 64]),
    row=st.floats(0, 0.999),
    column=st.floats(0, 0.999),
)
def test_anchor_is_the_cell_that_holds_the_pixel(size, keep, side, row, column):
    """The cell's area, mapped back into the image, has the pixel's centre in it."""
    frame = Frame.of(size, 16 * side, keep_aspect=keep)
    point = torch.tensor([int(column * size[1]) + 0.5, int(row * size[0]) + 0.5])
    cell = int(anchors(frame, point, side))
    corner = torch.tensor([cell % side, cell // side], dtype=torch.float64) * frame.side / side
    low, high = frame.points_back(corner), frame.points_back(corner + frame.side / side)
    assert (low <= point + 1e-6).all()
    assert (point - 1e-6 <= high).all()

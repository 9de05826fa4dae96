"""What every model behind `PromptableSegmenter` must do, whichever family it is of."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import ModelError
from fewlabel.sam.frames import to_grid
from fewlabel.sam.promptable import PAD_LABEL, Embedding, PromptableSegmenter

ODD = (37, 53)


def picture(size, channels=1, batch=2, seed=0):
    return torch.rand((batch, channels, *size), generator=torch.Generator().manual_seed(seed))


class SamContract:
    """Promises of the interface; a subclass names the model."""

    name: str

    @pytest.fixture
    def segmenter(self, segmenters) -> PromptableSegmenter:
        return segmenters[self.name]

    @pytest.mark.parametrize("size", [ODD, (53, 37), (256, 256), (1, 9)])
    def test_logits_have_the_image_size(self, segmenter, size):
        embedding = segmenter.encode(picture(size))
        assert embedding.size == size
        points = torch.tensor([size[1] / 2, size[0] / 2]).expand(2, 3, 2, 2)
        for multimask, count in ((True, 3), (False, 1)):
            logits, quality = segmenter.decode(embedding, points, multimask=multimask)
            assert logits.shape == (2, 3, count, *size)
            assert quality.shape == (2, 3, count)
            assert torch.isfinite(logits).all()

    def test_every_kind_of_prompt_is_taken(self, segmenter):
        embedding = segmenter.encode(picture(ODD))
        points, boxes = torch.rand(2, 3, 1, 2) * 37, torch.tensor([3.0, 4.0, 20.0, 30.0]).expand(2, 3, 4)
        masks = torch.randn(2, 3, *ODD)
        seen = []
        for prompts in (
            {"points": points},
            {"boxes": boxes},
            {"masks": masks},
            {"points": points, "boxes": boxes},
            {"points": points, "masks": masks},
            {"points": points, "boxes": boxes, "masks": masks},
        ):
            logits, _ = segmenter.decode_low(embedding, **prompts)
            assert logits.shape == (2, 3, 3, segmenter.mask_size, segmenter.mask_size)
            assert all(not torch.equal(logits, other) for other in seen), prompts.keys()
            seen.append(logits)

    def test_batch_of_prompts_equals_one_by_one(self, segmenter):
        images = picture(ODD)
        points, labels = torch.rand(2, 3, 2, 2) * 37, torch.tensor([1, 0]).expand(2, 3, 2)
        masks = torch.randn(2, 3, *ODD)
        for dense in (None, masks):
            together, quality = segmenter.decode(segmenter.encode(images), points, labels, masks=dense)
            for b in range(2):
                single = segmenter.encode(images[b : b + 1])
                for p in range(3):
                    mask = None if dense is None else dense[b : b + 1, p : p + 1]
                    one, score = segmenter.decode(
                        single, points[b : b + 1, p : p + 1], labels[b : b + 1, p : p + 1], masks=mask
                    )
                    torch.testing.assert_close(one[0, 0], together[b, p], atol=2e-4, rtol=1e-3)
                    torch.testing.assert_close(score[0, 0], quality[b, p], atol=2e-4, rtol=1e-3)

    def test_prompt_free_decode(self, segmenter):
        logits, quality = segmenter.decode(segmenter.encode(picture(ODD)), multimask=False)
        assert logits.shape == (2, 1, 1, *ODD)
        assert quality.shape == (2, 1, 1)
        assert not torch.equal(logits[0], logits[1])

    def test_no_prompts_give_no_masks(self, segmenter):
        logits, quality = segmenter.decode(segmenter.encode(picture(ODD)), torch.zeros(2, 0, 1, 2))
        assert logits.shape == (2, 0, 3, *ODD)
        assert quality.shape == (2, 0, 3)

    def test_low_logits_are_a_mask_prompt(self, segmenter):
        embedding, points = segmenter.encode(picture(ODD)), torch.rand(2, 2, 1, 2) * 30
        low, _ = segmenter.decode_low(embedding, points)
        again, _ = segmenter.decode_low(embedding, points, masks=low[:, :, 0])
        assert again.shape == low.shape
        assert not torch.equal(again, low)

    def test_point_and_label_matter(self, segmenter):
        embedding = segmenter.encode(picture(ODD))
        point = torch.tensor([20.0, 10.0]).expand(2, 1, 1, 2)
        object_, _ = segmenter.decode_low(embedding, point, torch.ones(2, 1, 1))
        background, _ = segmenter.decode_low(embedding, point, torch.zeros(2, 1, 1))
        moved, _ = segmenter.decode_low(embedding, point + 5)
        assert not torch.allclose(object_, background)
        assert not torch.allclose(object_, moved)

    def test_mask_of_the_image_goes_where_the_mask_is(self, segmenter):
        embedding, masks = segmenter.encode(picture(ODD)), torch.randn(2, 3, *ODD) * 8
        on_the_grid = to_grid(masks, segmenter.frame_of(ODD), segmenter.mask_size)
        torch.testing.assert_close(
            segmenter.decode_low(embedding, masks=masks)[0], segmenter.decode_low(embedding, masks=on_the_grid)[0]
        )

    def test_padding_point_ignores_its_coordinates(self, segmenter):
        embedding = segmenter.encode(picture(ODD))
        points, labels = torch.full((2, 1, 2, 2), 9.5), torch.tensor([1, PAD_LABEL]).expand(2, 1, 2)
        other = points.clone()
        other[:, :, 1] = 30.0
        torch.testing.assert_close(
            segmenter.decode_low(embedding, points, labels)[0], segmenter.decode_low(embedding, other, labels)[0]
        )

    def test_grey_equals_three_equal_channels(self, segmenter):
        grey = picture(ODD)
        torch.testing.assert_close(segmenter.preprocess(grey), segmenter.preprocess(grey.expand(-1, 3, -1, -1)))

    def test_gradients_reach_the_image_through_a_frozen_model(self, segmenter):
        images = picture((40, 40)).requires_grad_()
        logits, quality = segmenter.decode(segmenter.encode(images), torch.full((2, 1, 1, 2), 20.0))
        (logits.square().mean() + quality.sum()).backward()
        assert images.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in segmenter.parameters())

    def test_hooks_on_blocks_see_channels_last_tokens(self, segmenter):
        blocks, seen = segmenter.encoder_blocks, []
        bias = [torch.zeros(channels, requires_grad=True) for channels in segmenter.block_channels]
        handles = [
            block.register_forward_hook(lambda _m, _i, out, b=b: (seen.append(out.shape), out + b)[1])
            for block, b in zip(blocks, bias, strict=True)
        ]
        try:
            low, _ = segmenter.decode_low(segmenter.encode(picture((64, 64))), multimask=False)
            low.square().mean().backward()
        finally:
            for handle in handles:
                handle.remove()
        assert len(seen) == len(blocks)
        for shape, channels in zip(seen, segmenter.block_channels, strict=True):
            assert len(shape) == 4
            assert shape[0] == 2
            assert shape[1] == shape[2]
            assert shape[3] == channels
        assert all(torch.isfinite(b.grad).all() and b.grad.abs().sum() > 0 for b in bias)

    @pytest.mark.parametrize(
        ("prompts", "words"),
        [
            ({"points": torch.zeros(2, 1, 2)}, "points have shape"),
            ({"points": torch.zeros(1, 1, 1, 2)}, "B = 2"),
            ({"points": torch.zeros(2, 1, 1, 2), "point_labels": torch.ones(2, 1, 3)}, "one label"),
            ({"points": torch.zeros(2, 1, 1, 2), "boxes": torch.zeros(2, 2, 4)}, "same P"),
            ({"points": torch.zeros(2, 1, 0, 2)}, "K = 0"),
            ({"points": torch.full((2, 1, 1, 2), 41.0)}, r"point \(41, 41\).*40 columns"),
            ({"boxes": torch.tensor([0, 0, 4, torch.nan]).expand(2, 1, 4)}, "not finite"),
            ({"masks": torch.zeros(2, 1, 13, 13)}, "13x13"),
        ],
    )
    def test_wrong_prompts_are_named(self, segmenter, prompts, words):
        with pytest.raises(ModelError, match=words):
            segmenter.decode(segmenter.encode(picture((40, 40))), **prompts)

    def test_wrong_images_are_named(self, segmenter):
        with pytest.raises(ModelError, match="got shape"):
            segmenter.encode(torch.zeros(1, 2, 8, 8))


class OwnForward(SamContract):
    """A family whose network has a forward pass of its own in transformers: the same logits come out of both."""

    @pytest.mark.parametrize("multimask", [True, False])
    @pytest.mark.parametrize("kinds", ["points", "boxes", "points boxes", "points masks", "points boxes masks"])
    def test_equals_the_models_own_forward(self, segmenter, kinds, multimask):
        """Prompts in pixel indices, which lie half a pixel before our coordinates."""
        side, cells = segmenter.frame, segmenter.mask_size
        prompts = 1 if "masks" in kinds else 3  # transformers takes one mask per image
        rng = torch.Generator().manual_seed(1)
        images = picture((side, side), 3)
        points = torch.rand((2, prompts, 2, 2), generator=rng) * side
        labels = torch.tensor([1, 0]).expand(2, prompts, 2)
        boxes = torch.rand((2, prompts, 4), generator=rng).sort(-1).values * side
        masks = torch.randn((2, 1, cells, cells), generator=rng)
        ours, theirs = {}, {"pixel_values": segmenter.preprocess(images), "multimask_output": multimask}
        if "points" in kinds:
            ours |= {"points": points, "point_labels": labels}
            theirs |= {"input_points": points - 0.5, "input_labels": labels}
        if "boxes" in kinds:
            ours["boxes"], theirs["input_boxes"] = boxes, boxes - 0.5
        if "masks" in kinds:
            ours["masks"], theirs["input_masks"] = masks, masks
        low, quality = segmenter.decode_low(segmenter.encode(images), **ours, multimask=multimask)
        output = segmenter.model(**theirs)
        torch.testing.assert_close(low, output.pred_masks)
        torch.testing.assert_close(quality, output.iou_scores)


class TestSam(OwnForward):
    name = "sam"

    def test_padding_never_reaches_the_image(self, segmenter):
        """Logits that mark the padding alone leave every image pixel unmarked, and the content alone marks all."""
        frame = segmenter.frame_of((32, 64))
        assert frame.content == (32, 64)
        low = torch.full((1, 1, 1, 16, 16), -1.0)
        low[..., 8:, :] = 1.0  # the lower half of the frame is padding
        assert (segmenter.to_image(low, (32, 64)) < 0).all()
        assert (segmenter.to_image(-low, (32, 64)) > 0).all()


class TestSamHq(OwnForward):
    name = "sam_hq"

    def test_masks_are_ordered_by_quality_and_see_the_early_tokens(self, segmenter):
        embedding = segmenter.encode(picture(ODD))
        low, quality = segmenter.decode_low(embedding, torch.full((2, 1, 1, 2), 9.5))
        assert (quality.diff(dim=-1) <= 0).all()
        blind = Embedding([torch.zeros_like(embedding.features[0]), embedding.features[1]], embedding.size)
        assert not torch.allclose(segmenter.decode_low(blind, torch.full((2, 1, 1, 2), 9.5))[0], low)


class TestSam2(OwnForward):
    name = "sam2"


class TestSam3Tracker(OwnForward):
    name = "sam3_tracker"

    def test_pixels_are_normalised_around_a_half(self, segmenter):
        images = picture((segmenter.frame, segmenter.frame), 3)
        torch.testing.assert_close(segmenter.preprocess(images), 2 * images - 1)


class TestMobileSam(OwnForward):
    name = "mobile_sam"


class TestNano(SamContract):
    name = "nano"

    def test_clicks_are_drawn_where_they_are(self, segmenter):
        points = torch.tensor([[[[100.0, 60.0], [31.0, 201.0], [5.0, 5.0]]]]) - 0.5
        canvas = segmenter._draw(None, points, torch.tensor([[[1, 0, PAD_LABEL]]]), None)[0, 0]
        assert canvas.shape == (128, 128)
        rows, columns = torch.meshgrid(torch.arange(128) * 2 + 1.0, torch.arange(128) * 2 + 1.0, indexing="ij")
        for (x, y), sign in (((100, 60), 1), ((31, 201), -1), ((5, 5), 0)):
            near = (rows - y) ** 2 + (columns - x) ** 2 < 100
            expected = sign * 10 * torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 18)
            torch.testing.assert_close(canvas[near], expected[near], atol=1e-3, rtol=1e-4)

    def test_boxes_are_drawn_by_the_share_of_each_cell(self, segmenter):
        box = torch.tensor([[[10.0, 21.0, 50.0, 31.0]]]) - 0.5
        canvas = segmenter._draw(None, None, None, box)[0, 0] / 10 + 0.5
        expected = torch.zeros(256, 256)
        expected[21:31, 10:50] = 1
        torch.testing.assert_close(canvas, F.avg_pool2d(expected[None], 2)[0], atol=1e-4, rtol=0)

    def test_strokes_add_to_a_mask_prompt(self, segmenter):
        masks = torch.randn(2, 1, 128, 128)
        point, labels = torch.full((1, 2, 1, 2), 40.0), torch.ones(1, 2, 1)
        both = segmenter._draw(masks, point, labels, None)
        torch.testing.assert_close(both, masks + segmenter._draw(None, point, labels, None))

    def test_tile_of_the_frame_goes_in_as_it_is(self, segmenter):
        images = picture((256, 256), 3)
        pixels = segmenter.preprocess(images) * segmenter.pixel_std + segmenter.pixel_mean
        torch.testing.assert_close(pixels, images)


@settings(deadline=None, max_examples=40)
@given(size=st.tuples(st.integers(8, 90), st.integers(8, 90)), row=st.floats(0, 0.999), column=st.floats(0, 0.999))
def test_prompted_cell_contains_the_point(segmenters, size, row, column):
    """The decoder cell a pixel centre is sent to lights that pixel up again, in padded and in squashed frames."""
    y, x = int(row * size[0]), int(column * size[1])
    for name in ("sam", "sam2"):
        segmenter = segmenters[name]
        frame = segmenter.frame_of(size)
        cell = frame.points(torch.tensor([x + 0.5, y + 0.5])) * segmenter.mask_size / frame.side
        low = torch.zeros(segmenter.mask_size, segmenter.mask_size)
        low[int(cell[1]), int(cell[0])] = 1.0
        lit = segmenter.to_image(low[None, None, None], size)[0, 0, 0]
        assert lit[y, x] >= 0.25 - 1e-5  # bilinear weight of the containing cell: at least a half on each axis

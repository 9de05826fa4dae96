"""Structural distillation: query points, the teacher's rows on SAM's cells, and the distance of the two."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sam import tiny_sam as tiny

from fewlabel.core.errors import ModelError
from fewlabel.data.views import View
from fewlabel.s4m.similarity import SimilarityTarget, _reading, query_points, similarity_loss, teacher_rows
from fewlabel.sam.frames import Frame
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.sam.tokens import anchors, prompted_tokens, similarity_rows


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def view(size=(40, 56), content=(32, 40), objects=((2, 10, 3, 9), (8, 20, 5, 30)), seed=0):
    """A padded view with rectangles (top, bottom, left, right), which overlap."""
    image = torch.zeros(3, *size)
    image[:, : content[0], : content[1]] = torch.rand((3, *content), generator=rng(seed))
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, objects, strict=True):
        mask[top:bottom, left:right] = True
    return View(image, masks, torch.zeros(len(objects), dtype=torch.int64), content)


@pytest.fixture(scope="module", params=["sam", "sam2"])
def segmenter(request):
    """One that keeps the aspect and pads, one that squashes."""
    model = PromptableSegmenter(tiny.BUILDERS[request.param](), request.param, f"tiny {request.param}")
    with torch.no_grad():  # the library's small weights would make all cells of an image alike
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=rng())
    return model.eval().requires_grad_(False)


class TestQueryPoints:
    @given(
        count=st.integers(0, 300),
        seed=st.integers(0, 2**31),
        content=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        beyond=st.tuples(st.integers(0, 9), st.integers(0, 9)),
        objects=st.integers(0, 3),
    )
    def test_half_on_objects_none_in_the_padding(self, count, seed, content, beyond, objects):
        generator = torch.Generator().manual_seed(seed)
        size = (content[0] + beyond[0], content[1] + beyond[1])
        masks = torch.zeros(objects, *size, dtype=torch.bool)
        masks[:, : content[0], : content[1]] = torch.rand((objects, *content), generator=generator) < 0.3
        masks = masks[masks.flatten(1).any(1)]
        whole = View(torch.zeros(3, *size), masks, torch.zeros(len(masks), dtype=torch.int64), content)
        points = query_points(whole, count, generator)
        assert points.shape == (count, 2)
        assert points.dtype == torch.float32
        assert (points % 1 == 0.5).all()
        columns, rows = points.long().unbind(-1)
        assert (rows < content[0]).all()
        assert (columns < content[1]).all()
        union = masks.any(0) if len(masks) else torch.zeros(size, dtype=torch.bool)
        drawn = min(count // 2, int(union.sum()))
        assert union[rows, columns][:drawn].all()
        assert len({*zip(rows[:drawn].tolist(), columns[:drawn].tolist(), strict=True)}) == drawn

    def test_same_seed_same_points(self):
        assert torch.equal(query_points(view(), 64, rng(3)), query_points(view(), 64, rng(3)))
        assert not torch.equal(query_points(view(), 64, rng(3)), query_points(view(), 64, rng(4)))

    def test_both_halves_are_uniform(self):
        """Counts per pixel over many draws stay within six standard deviations of what is expected."""
        whole, draws = view((6, 8), (4, 5), ((0, 2, 0, 3),)), 1000
        found = torch.stack([query_points(whole, 8, rng(seed)) for seed in range(draws)])
        for half, pixels in ((found[:, :4], 6), (found[:, 4:], 20)):
            columns, rows = half.reshape(-1, 2).long().unbind(-1)
            counts = torch.bincount(rows * 5 + columns, minlength=20)
            expected = 4 * draws / pixels
            assert (counts > 0).sum() == pixels
            assert ((counts[counts > 0] - expected).abs() < 6 * expected**0.5).all()


class TestTeacherRows:
    @pytest.mark.parametrize(("size", "grid", "side"), [((64, 96), (16, 24), 16), ((40, 24), (10, 6), 8)])
    def test_equals_interpolation_where_the_content_fills_the_frame(self, size, grid, side):
        features = torch.randn((6, *grid), generator=rng())
        frame = Frame.of(size, 128, keep_aspect=False)
        points = torch.tensor([[3.5, 0.5], [size[1] - 0.5, size[0] - 0.5]])
        resized = F.interpolate(features[None], (side, side), mode="bilinear", align_corners=False)[0].flatten(1)
        chosen = resized[:, anchors(frame, points, side)]
        expected = F.cosine_similarity(chosen[:, :, None], resized[:, None], dim=0)
        rows, cells = teacher_rows(features, size, frame, points, side)
        assert torch.equal(cells, torch.arange(side * side))
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)

    @settings(deadline=None)
    @given(
        content=st.tuples(st.integers(1, 150), st.integers(1, 150)),
        beyond=st.tuples(st.integers(0, 60), st.integers(0, 60)),
        keep=st.booleans(),
        side=st.sampled_from([4, 16, 64]),
    )
    def test_features_are_read_at_the_cells_centres(self, content, beyond, keep, side):
        """Features that say where they are give the centre of each cell, mapped back into the image."""
        frame = Frame.of(content, 16 * side, keep_aspect=keep)
        for axis in (0, 1):
            padded = content[axis] + beyond[axis]
            length = -(-padded // 4)
            where = (torch.arange(length) + 0.5) * padded / length
            weights = _reading(frame, axis, side, length, padded)
            count = frame.touched(side, side)[axis]
            centres = ((torch.arange(count, dtype=torch.float64) + 0.5) * frame.side / side)[:, None].expand(-1, 2)
            expected = frame.points_back(centres)[:, 1 - axis]
            within = -(-content[axis] * length // padded)
            torch.testing.assert_close(
                (weights @ where).double(), expected.clamp(float(where[0]), float(where[within - 1])), atol=1e-3, rtol=0
            )
            assert (weights[:, within:] == 0).all()
            torch.testing.assert_close(weights.sum(1), torch.ones(count), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(("keep", "content"), [(True, (32, 32)), (False, (32, 32)), (True, (32, 24))])
    def test_anchor_is_the_prompted_pixel_of_a_padded_view(self, keep, content):
        """Features of one kind on one cell of SAM's, of another elsewhere: the row of a point there finds that cell."""
        frame = Frame.of(content, 64, keep_aspect=keep)
        features = torch.zeros(2, 16, 16)  # of a view of 64 x 64 pixels
        features[0] = 1.0
        features[:, 2:4, 4:6] = torch.tensor([0.0, 1.0])[:, None, None]  # rows 8-16, columns 16-24: cell (1, 2) of 4
        rows, cells = teacher_rows(features, (64, 64), frame, torch.tensor([[20.5, 12.5], [3.5, 12.5]]), 4)
        expected = (cells == 1 * 4 + 2).float()
        torch.testing.assert_close(rows, torch.stack((expected, 1 - expected)))
        assert len(cells) == (16 if content == (32, 32) else 12)

    def test_row_is_one_at_its_anchor_and_at_most_one_elsewhere(self, segmenter):
        frame = segmenter.frame_of((30, 40))
        points = query_points(view((40, 48), (30, 40)), 20, rng())
        rows, cells = teacher_rows(torch.randn((5, 10, 12), generator=rng()), (40, 48), frame, points, 4)
        at_anchor = rows[torch.arange(20), torch.searchsorted(cells, anchors(frame, points, 4))]
        torch.testing.assert_close(at_anchor, torch.ones(20))
        assert rows.abs().max() <= 1 + 1e-6

    def test_autocast_changes_nothing(self):
        features, frame = torch.randn((5, 10, 12), generator=rng()), Frame.of((30, 40), 64, keep_aspect=True)
        points = query_points(view((40, 48), (30, 40)), 4, rng())
        rows, _ = teacher_rows(features, (40, 48), frame, points, 4)
        with torch.autocast("cpu", torch.bfloat16):
            other, _ = teacher_rows(features, (40, 48), frame, points, 4)
        assert torch.equal(rows, other)


def sam_target(segmenter, whole, points):
    """SAM's rows and tokens of a view."""
    content = whole.image[None, :, : whole.content[0], : whole.content[1]]
    embedding = segmenter.encode(content)
    rows = similarity_rows(segmenter, embedding, points[None])[0]
    tokens = prompted_tokens(segmenter, embedding, points[None, :, None])[0]
    return SimilarityTarget(points, rows, segmenter.frame_of(whole.content)), tokens


def random_target(frame, points, side=4, seed=0):
    rows = torch.rand((len(points), side * side), generator=rng(seed)) * 2 - 1
    return SimilarityTarget(points, rows, frame)


class TestLoss:
    @pytest.mark.parametrize("content", [(64, 64), (32, 64), (64, 48)])
    def test_zero_when_the_teacher_has_sams_tokens_up_to_scale(self, segmenter, content):
        """One prompt, because each prompt makes SAM's tokens anew; the padding holds something else."""
        whole = view((64, 64), content, ((2, 10, 3, 9),))
        points = query_points(whole, 1, rng(5))
        target, tokens = sam_target(segmenter, whole, points)
        frame = target.frame
        height, width = frame.touched(4, 4)
        features = torch.randn((1, tokens.shape[-1], 4, 4), generator=rng())
        # Cells over the content and over the padded view: as many to a pixel, as the tokens lie on the content.
        size = (content[0] * 4 // height, content[1] * 4 // width)
        features[0, :, :height, :width] = tokens[0].T.unflatten(1, (4, 4))[:, :height, :width]
        features *= torch.rand((1, 1, 4, 4), generator=rng(1)) * 5 + 0.1
        assert similarity_loss(features, size, [target]) < 1e-10
        turned = features.flip(-1)
        assert similarity_loss(turned, size, [target]) > 1e-6

    def test_equals_the_formula_over_all_valid_cells(self):
        """Images of unlike content: the mean is over cells, not over images."""
        size, features = (48, 64), torch.randn((3, 5, 12, 16), generator=rng())
        targets = []
        for seed, content in enumerate([(48, 64), (20, 64), (33, 17)]):
            frame = Frame.of(content, 64, keep_aspect=True)
            targets.append(random_target(frame, query_points(view(size, content, ()), 6, rng(seed)), seed=seed))
        terms = []
        for image, target in zip(features, targets, strict=True):
            rows, cells = teacher_rows(image, size, target.frame, target.points, 4)
            for i in range(6):
                for n, cell in enumerate(cells.tolist()):
                    gap = abs(float(rows[i, n]) - float(target.rows[i, cell]))
                    terms.append(0.5 * gap**2 if gap < 1 else gap - 0.5)
        assert float(similarity_loss(features, size, targets)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)

    def test_channels_may_be_rotated(self):
        features, size = torch.randn((1, 8, 10, 12), generator=rng()), (40, 48)
        target = random_target(Frame.of((30, 40), 64, True), query_points(view(size, (30, 40)), 9, rng()))
        rotation = torch.linalg.qr(torch.randn((8, 8), generator=rng(1))).Q
        turned = torch.einsum("dc,bchw->bdhw", rotation, features)
        torch.testing.assert_close(similarity_loss(turned, size, [target]), similarity_loss(features, size, [target]))
        assert not torch.allclose(
            similarity_loss(features.flip(-1), size, [target]), similarity_loss(features, size, [target])
        )

    def test_gradient_reaches_the_content_of_the_teacher_alone(self, segmenter):
        whole = view((64, 64), (30, 44))
        target, _ = sam_target(segmenter, whole, query_points(whole, 7, rng()))
        features = torch.randn((1, 6, 16, 16), generator=rng(), requires_grad=True)
        similarity_loss(features, (64, 64), [target]).backward()
        reached = features.grad[0].abs().sum(0) > 0
        assert reached[:8, :11].float().mean() > 0.3
        assert not reached[8:].any()
        assert not reached[:, 11:].any()
        assert not target.rows.requires_grad
        assert all(parameter.grad is None for parameter in segmenter.parameters())

    def test_padding_has_no_say(self, segmenter):
        """Neither the teacher's features there nor how much of it there is."""
        whole = view((64, 64), (30, 44))
        target, _ = sam_target(segmenter, whole, query_points(whole, 7, rng()))
        features = torch.randn((1, 6, 16, 16), generator=rng())
        loss = similarity_loss(features, (64, 64), [target])
        other = features.clone()
        other[:, :, 8:], other[:, :, :, 11:] = 7.0, -3.0
        torch.testing.assert_close(similarity_loss(other, (64, 64), [target]), loss)
        torch.testing.assert_close(similarity_loss(features[..., :8, :12], (32, 48), [target]), loss)
        beyond = target.frame.touched(4, 4)[0] * 4  # cells of SAM's own padding, where there is any
        rows = target.rows.clone()
        rows[:, beyond:] = -1.0
        torch.testing.assert_close(
            similarity_loss(features, (64, 64), [SimilarityTarget(target.points, rows, target.frame)]), loss
        )

    def test_training_on_it_makes_the_teacher_alike(self, segmenter):
        whole = view((64, 64), (64, 64))
        target, _ = sam_target(segmenter, whole, query_points(whole, 16, rng()))
        features = torch.randn((1, 8, 16, 16), generator=rng(), requires_grad=True)
        optimiser = torch.optim.Adam([features], 0.1)
        first = last = float(similarity_loss(features.detach(), (64, 64), [target]))
        for _ in range(40):
            loss = similarity_loss(features, (64, 64), [target])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            last = float(loss.detach())
        assert last < 0.1 * first

    def test_features_of_nothing_give_finite_gradients(self):
        features = torch.zeros((1, 4, 8, 8), requires_grad=True)
        target = random_target(Frame.of((32, 32), 64, False), torch.tensor([[3.5, 3.5]]))
        similarity_loss(features, (32, 32), [target]).backward()
        assert features.grad.isfinite().all()

    def test_no_prompt_is_no_loss(self):
        target = random_target(Frame.of((32, 32), 64, False), torch.zeros(0, 2))
        assert similarity_loss(torch.randn(1, 4, 8, 8), (32, 32), [target]) == 0

    def test_what_does_not_fit_is_named(self):
        target = random_target(Frame.of((32, 32), 64, False), torch.tensor([[3.5, 3.5]]))
        with pytest.raises(ModelError, match="2 images and 1 targets"):
            similarity_loss(torch.randn(2, 4, 8, 8), (32, 32), [target])
        with pytest.raises(ModelError, match=r"\(32, 32\) pixels .* have \(16, 64\)"):
            similarity_loss(torch.randn(1, 4, 4, 16), (16, 64), [target])

"""Everything at once, against one prompt at a time."""

import inspect
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fewlabel.core.errors import ModelError
from fewlabel.core.types import Instances
from fewlabel.sam.everything import automatic_masks, deepest_view, segment_everything
from fewlabel.sam.prompters import Proposals, boxes, coarse_masks, grid_points

SIZE = (37, 53)
ANY = {"min_quality": -100.0, "min_stability": 0.0}


def picture(size=SIZE, seed=0):
    return torch.rand((1, *size), generator=torch.Generator().manual_seed(seed))


def random_points(count, size=SIZE, seed=0):
    points = np.random.default_rng(seed).random((count, 2)) * [size[1], size[0]]
    return Proposals(np.ones(count, np.float32), points.astype(np.float32))


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def same(got: Instances, masks, scores):
    """Masks in order; a logit may round to the other side of 0 when the batch is another one."""
    assert len(got) == len(masks)
    np.testing.assert_allclose(got.scores, np.clip(scores, 0, 1), atol=1e-4)
    assert all(iou(a, b) > 0.98 for a, b in zip(got.masks(), masks, strict=True))


@pytest.fixture(params=["sam", "nano"])
def segmenter(request, segmenters):
    return segmenters[request.param]


def between(values):
    """A threshold in the middle of the widest gap in the middle half of some values."""
    ordered = np.sort(values)[len(values) // 4 : -(len(values) // 4)]
    widest = int(np.diff(ordered).argmax())
    return float(ordered[widest] + ordered[widest + 1]) / 2


def judged(logits, quality):
    """Masks, scores, stabilities at an offset that parts random logits, and thresholds that part the masks."""
    offset = 0.3 * float(logits.abs().median())
    wide, narrow = ((logits > level).sum((1, 2)) for level in (-offset, offset))
    stability = (narrow / wide.clamp_min(1)).numpy()
    options = {"offset": offset, "min_quality": between(quality.numpy()), "min_stability": between(stability)}
    masks = (logits > 0).numpy()
    good = (quality.numpy() > options["min_quality"]) & (stability >= options["min_stability"]) & masks.any((1, 2))
    return masks, quality.numpy(), np.flatnonzero(good), options


def greedy(shapes, scores, candidates, threshold):
    """The rule of suppression itself, on dense masks."""
    kept = []
    for i in sorted(candidates, key=lambda i: -scores[i]):
        if all(iou(shapes[i], shapes[j]) <= threshold for j in kept):
            kept.append(int(i))
    return kept


class TestAgainstOnePromptAtATime:
    @pytest.mark.parametrize("batch", [1, 5])
    def test_points(self, segmenter, batch):
        image, proposals = picture(), random_points(16)
        embedding = segmenter.encode(image[None])
        answers = [segmenter.decode(embedding, torch.from_numpy(xy)[None, None, None]) for xy in proposals.points]
        best = [int(quality[0, 0].argmax()) for _, quality in answers]
        logits = torch.stack([answer[0][0, 0, i] for answer, i in zip(answers, best, strict=True)])
        quality = torch.stack([answer[1][0, 0, i] for answer, i in zip(answers, best, strict=True)])
        masks, scores, good, options = judged(logits, quality)
        kept = greedy(masks, scores, good, 0.8)
        got = segment_everything(segmenter, image, proposals, **options, max_share=1.0, duplicate=0.8, batch=batch)
        assert kept
        same(got, masks[kept], scores[kept])
        assert got.source == "sam"
        assert got.size == SIZE
        np.testing.assert_array_equal(got.boxes, Instances.from_masks(got.masks(), size=SIZE).boxes)

    def test_boxes_and_coarse_masks(self, segmenter):
        response = np.zeros(SIZE)
        response[5:12, 8:20], response[20:30, 30:45] = 2, 1
        image = picture()
        embedding = segmenter.encode(image[None])
        boxed, coarse = boxes(response), coarse_masks(response)
        drawn = torch.stack([torch.where(torch.from_numpy(response == level), 10.0, -10.0) for level in (2, 1)])
        for proposals, prompts in (
            (boxed, {"boxes": torch.from_numpy(boxed.boxes)[None]}),
            (coarse, {"points": torch.from_numpy(coarse.points)[None, :, None], "masks": drawn[None].float()}),
        ):
            answer, quality = segmenter.decode(embedding, **prompts)
            score, best = quality[0].max(dim=1)
            wanted = [(answer[0, p, best[p]] > 0).numpy() for p in range(2)]
            got = segment_everything(segmenter, image, proposals, **ANY, max_share=1.0, duplicate=1.0)
            order = [int(p) for p in score.argsort(descending=True, stable=True) if wanted[p].any()]
            assert order
            same(got, [wanted[p] for p in order], [float(score[p]) for p in order])

    @pytest.mark.parametrize("batch", [5])
    def test_the_automatic_procedure(self, segmenter, batch):
        image = picture()
        points = torch.from_numpy(grid_points(4, SIZE))[None, :, None]
        logits, quality = segmenter.decode(segmenter.encode(image[None]), points)
        masks, scores, good, options = judged(logits[0].flatten(0, 1), quality[0].flatten())
        filled = np.zeros_like(masks)
        for mask, (x0, y0, x1, y1) in zip(filled, Instances.from_masks(masks).boxes.astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        kept = greedy(filled, scores, good, 0.7)
        got = automatic_masks(segmenter, image, side=4, **options, batch=batch)
        assert kept
        same(got, masks[kept], scores[kept])


class TestReasons:
    def test_every_mask_is_kept_or_counted(self, segmenters):
        segmenter = segmenters["sam2"]
        for dropped, total, run in (
            (Counter(), 20, lambda d: segment_everything(segmenter, picture(), random_points(20), dropped=d)),
            (Counter(), 20, lambda d: segment_everything(segmenter, picture(), random_points(20), **ANY, dropped=d)),
            (Counter(), 48, lambda d: automatic_masks(segmenter, picture(), side=4, dropped=d)),
            (Counter(), 48, lambda d: automatic_masks(segmenter, picture(), side=4, **ANY, dropped=d)),
        ):
            assert len(run(dropped)) + sum(dropped.values()) == total

    def test_each_test_drops_under_its_name(self, segmenters):
        segmenter = segmenters["sam"]
        proposals = random_points(9)
        for options, reason in (
            ({"min_quality": 100.0}, "predicted IoU"),
            ({"min_quality": -100.0, "min_stability": 1.1}, "stability"),
            ({**ANY, "max_share": 0.0}, "huge"),
        ):
            dropped = Counter()
            assert len(segment_everything(segmenter, picture(), proposals, **options, dropped=dropped)) == 0
            assert dropped[reason] + dropped["empty"] == 9
            assert dropped[reason] > 0
        dropped = Counter()
        twins = Proposals(np.ones(2, np.float32), proposals.points[[0, 0]])
        kept = segment_everything(segmenter, picture(), twins, **ANY, max_share=1.0, dropped=dropped)
        assert (len(kept), dropped["duplicate"]) == (1, 1)

    def test_the_published_thresholds_are_the_defaults(self):
        names = ("side", "min_quality", "min_stability", "offset", "duplicate")
        defaults = inspect.signature(automatic_masks).parameters
        assert [defaults[name].default for name in names] == [32, 0.88, 0.95, 1.0, 0.7]


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made, in elements."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


class TestMemory:
    @pytest.mark.parametrize("name", ["sam", "nano"])
    def test_does_not_grow_with_the_number_of_prompts(self, segmenters, name):
        """The largest tensor and the largest decode are those of one batch, for 8 prompts as for 80."""
        segmenter, decoded = segmenters[name], []

        def watch(module, args, kwargs):
            decoded.append(kwargs["sparse_prompt_embeddings"].shape[:2].numel())

        handle = segmenter.model.mask_decoder.register_forward_pre_hook(watch, with_kwargs=True)
        largest = {}
        try:
            for count in (8, 80):
                with _Largest() as mode:
                    segment_everything(segmenter, picture(), random_points(count), **ANY, batch=8)
                largest[count] = mode.largest
        finally:
            handle.remove()
        assert decoded == [8] * 11
        assert largest[80] == largest[8]

    def test_masks_at_image_resolution_are_made_a_few_at_a_time(self, segmenters, monkeypatch):
        monkeypatch.setattr("fewlabel.sam.everything.PIXELS", 2 * 300 * 400)
        with _Largest() as mode:
            segment_everything(segmenters["sam"], picture((300, 400)), random_points(16, (300, 400)), **ANY)
        assert mode.largest <= 2 * 300 * 400


class TestViews:
    def test_a_view_is_encoded_on_its_own(self, segmenter):
        image, view = picture(), (20, 0, 53, 30)
        inside = np.random.default_rng(1).random((6, 2)) * [33, 30]
        moved = Proposals(np.ones(6, np.float32), (inside + [20, 0]).astype(np.float32))
        alone = Proposals(np.ones(6, np.float32), inside.astype(np.float32))
        options = {**ANY, "max_share": 1.0, "duplicate": 1.0}
        dropped = Counter()
        got = segment_everything(segmenter, image, moved, views=[view], dropped=dropped, **options)
        crop = segment_everything(segmenter, image[:, :30, 20:], alone, **options)
        whole = np.zeros((len(crop), *SIZE), bool)
        whole[:, :30, 20:] = crop.masks()
        cut = whole[:, :30, 20].any(1) | whole[:, 29, :].any(1)  # sides where the view ends inside the image
        assert dropped["cut"] == cut.sum()
        same(got, whole[~cut], crop.scores[~cut])

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 10_000))
    def test_each_centre_goes_where_it_is_deepest(self, seed):
        rng = np.random.default_rng(seed)
        size = (40, 60)
        quarters = [(0, 0, 25, 40), (15, 0, 45, 40), (35, 0, 60, 25), (35, 15, 60, 40)]
        views = [(0, 0, 60, 40)] if seed % 7 == 0 else quarters
        centres = (rng.integers(0, [61, 41], (9, 2))).astype(np.float32)
        for (x, y), chosen in zip(centres, deepest_view(centres, views, size), strict=True):
            depths = []
            for x0, y0, x1, y1 in views:
                sides = [(x - x0, x0 > 0), (x1 - x, x1 < 60), (y - y0, y0 > 0), (y1 - y, y1 < 40)]
                within = x0 <= x <= x1 and y0 <= y <= y1
                depths.append(min([gap for gap, inner in sides if inner], default=np.inf) if within else -np.inf)
            assert depths[chosen] == max(depths) >= 0

    def test_a_grid_over_tiles_asks_as_many_points(self, segmenters):
        dropped = Counter()
        views = [(0, 0, 30, 37), (23, 0, 53, 37)]
        got = automatic_masks(segmenters["sam2"], picture(), side=5, **ANY, views=views, dropped=dropped)
        assert len(got) + sum(dropped.values()) == 75


class TestBadInput:
    def test_nothing_to_ask_gives_nothing(self, segmenters):
        for proposals in (random_points(0), boxes(np.zeros(SIZE)), coarse_masks(np.zeros(SIZE))):
            assert len(segment_everything(segmenters["sam"], picture(), proposals)) == 0

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"image": torch.rand(1, 1, *SIZE)}, "give one image"),
            ({"batch": 0}, "batch of at least 1"),
            ({"proposals": Proposals(np.ones(1, np.float32), np.array([[53.5, 3]], np.float32))}, "lies in no view"),
            ({"proposals": Proposals(np.ones(1, np.float32), np.array([[np.nan, 3]], np.float32))}, "lies in no view"),
            ({"proposals": Proposals(np.ones(1, np.float32), boxes=np.array([[0, 0, 60, 9]], np.float32))}, "cut it"),
            ({"views": [(0, 0, 54, 37)]}, "not a box"),
            ({"views": []}, "lies in no view"),
            ({"proposals": coarse_masks(np.eye(9))}, "the same image"),
        ],
    )
    def test_one_sentence(self, segmenters, changes, sentence):
        given_ = {"image": picture(), "proposals": random_points(2)} | changes
        with pytest.raises(ModelError, match=sentence):
            segment_everything(segmenters["sam"], **given_)

"""Refinement by SAM: with answers that are known, with a tiny random SAM 2, and with nano-SAM."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.sam import tiny_sam as tiny

from fewlabel.data.views import View
from fewlabel.s4m.pseudo import Pseudo, content_cells, image_masks
from fewlabel.s4m.refine import RefineConfig, best_masks, refine, sam_masks
from fewlabel.s4m.refine_gate import RefineGate, RefineStats, iou_change, mask_iou
from fewlabel.s4m.refine_points import prompt_points, tight_boxes
from fewlabel.sam.families import load
from fewlabel.sam.promptable import PAD_LABEL, Embedding, PromptableSegmenter

SIZE, CONTENT = (64, 96), (58, 90)
GRID = (16, 24)
PUBLISHED = RefineConfig(choose="quality", gate=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(seed, objects=4):
    """A view without labels, its true masks (disjoint, in the content), and pseudo-labels of them, rough and noisy."""
    rng = np.random.default_rng(seed)
    truth = torch.zeros((objects, *SIZE), dtype=torch.bool)
    for index in range(objects):
        left = index * (CONTENT[1] // objects)
        height, width = rng.integers(12, 40), rng.integers(12, CONTENT[1] // objects + 1)
        top = rng.integers(0, CONTENT[0] - height + 1)
        truth[index, top : top + height, left : left + width] = True
    coarse = F.avg_pool2d(truth.float()[None], 4)[0]
    logits = 12 * (coarse - 0.5) + torch.from_numpy(rng.normal(0, 1.5, coarse.shape).astype(np.float32))
    rows, columns = content_cells(GRID, SIZE, CONTENT)
    masks = logits > 0
    masks[:, rows:], masks[:, :, columns:] = False, False
    image = torch.zeros((3, *SIZE))
    image[:, : CONTENT[0], : CONTENT[1]] = torch.from_numpy(rng.random((3, *CONTENT), dtype=np.float32))
    nothing = torch.zeros((0, *SIZE), dtype=torch.bool)
    view = View(image, nothing, torch.zeros(0, dtype=torch.int64), CONTENT)
    scores = torch.from_numpy(rng.uniform(0.7, 1, objects).astype(np.float32))
    return view, truth, Pseudo(masks, logits, torch.from_numpy(rng.integers(0, 5, objects)), scores)


def sure(pseudo, truth):
    """The pseudo-labels without the cells that are not wholly on the object: a point elsewhere asks for another one."""
    return replace(pseudo, masks=pseudo.masks & (F.avg_pool2d(truth.float()[None], 4)[0] == 1))


class Answers:
    """Stands for the SAM of someone else: answers each prompt as told, and keeps what it was asked.

    Args:
        answer: Takes the first point (row, column) of a prompt and the number of prompts so far; returns masks
            bool `(3, h, w)` of the content and predicted IoU of the three.
    """

    def __init__(self, answer):
        self.answer = answer
        self.images, self.prompts, self.boxes, self.calls = [], [], [], []

    def encode(self, images):
        self.images.append(images)
        return Embedding([images], (int(images.shape[2]), int(images.shape[3])))

    def decode(self, embedding, points=None, point_labels=None, boxes=None):
        masks, quality = [], []
        for index, some in enumerate(points[0]):
            assert (point_labels[0, index] == 1).any()
            x, y = some[0].long().tolist()
            given_masks, given_quality = self.answer((y, x), len(self.prompts))
            masks.append(given_masks)
            quality.append(given_quality)
            self.prompts.append((some, point_labels[0, index]))
        self.boxes.append(boxes)
        self.calls.append(len(masks))
        stacked = torch.stack(masks)
        assert stacked.shape[2:] == embedding.size
        return torch.where(stacked, 5.0, -5.0)[None], torch.tensor(quality)[None]


def oracle(truth):
    """Answers the true mask under the first point, and nothing where there is none."""

    def answer(point, _):
        inside = truth[:, : CONTENT[0], : CONTENT[1]]
        hit = inside[:, point[0], point[1]].nonzero()[:, 0].tolist()
        mask = inside[hit[0]] if hit else torch.zeros(CONTENT, dtype=torch.bool)
        return mask.expand(3, -1, -1), [0.9, 0.9, 0.9]

    return Answers(answer)


def noisy_sam(seed):
    """Answers anything: empty masks, the whole image, and random rectangles."""
    rng = np.random.default_rng(seed)

    def answer(point, _):
        masks = torch.zeros((3, *CONTENT), dtype=torch.bool)
        for mask in masks:
            kind = rng.integers(4)
            if kind == 0:
                continue
            reach = rng.integers(1, 60, 4) if kind < 3 else [100] * 4
            y, x = point
            mask[max(y - reach[0], 0) : y + reach[1], max(x - reach[2], 0) : x + reach[3]] = True
        return masks, rng.uniform(-0.2, 1.2, 3).astype(np.float32).tolist()

    return Answers(answer)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3]), st.sampled_from(["agreement", "quality"]))
def test_an_oracle_gives_the_truth(seed, draws, choose):
    view, truth, pseudo = scene(seed)
    pseudo = sure(pseudo, truth)
    result = refine(oracle(truth), view, pseudo, seeded(seed), RefineConfig(choose=choose, draws=draws, gate=None))
    assert torch.equal(result.masks, truth)
    assert torch.equal(result.classes, pseudo.classes)
    assert torch.equal(result.scores, pseudo.scores)
    assert result.by_sam.all()
    change = iou_change(image_masks(pseudo, SIZE, CONTENT), result.masks, truth)
    assert (change[:, 1] == 1).all()
    assert result.stats.accepted == result.stats.count == 4


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["agreement", "quality"]),
)
def test_behind_the_gate_no_mask_is_farther_from_the_teacher_than_allowed(seed, least, quality, draws, choose):
    view, _, pseudo = scene(seed)
    gate = RefineGate(min_iou=least, min_quality=quality)
    config = RefineConfig(gate=gate, draws=draws, choose=choose)
    result = refine(noisy_sam(seed), view, pseudo, seeded(seed), config)
    teacher = image_masks(pseudo, SIZE, CONTENT)
    raw, predicted = sam_masks(noisy_sam(seed), view, pseudo, teacher, seeded(seed), config)
    assert ((predicted >= 0) & (predicted <= 1)).all()
    assert torch.equal(result.classes, pseudo.classes)
    assert torch.equal(result.scores, pseudo.scores)
    assert result.kept.tolist() == list(range(len(pseudo)))
    assert result.masks.flatten(1).any(1).all()
    assert (mask_iou(result.masks, teacher) >= least - 1e-6).all()
    for index in range(len(pseudo)):
        iou, growth = float(mask_iou(raw[index], teacher[index])), float(raw[index].sum() / teacher[index].sum())
        limits = float(np.float32(least)), float(np.float32(quality))
        fits = iou >= limits[0] and float(predicted[index]) >= limits[1] and 0.5 <= growth <= 2
        fits = fits and bool(raw[index].any())
        assert bool(result.by_sam[index]) is fits
        assert torch.equal(result.masks[index], raw[index] if fits else teacher[index])
    assert result.stats.accepted == int(result.by_sam.sum())
    assert result.stats.mean_iou == pytest.approx(float(mask_iou(raw, teacher).mean()), abs=1e-6)


def test_without_a_gate_empty_masks_go_with_their_labels():
    view, truth, pseudo = scene(3)
    pseudo = sure(pseudo, truth)
    blind = truth.clone()
    blind[[0, 2]] = False
    result = refine(oracle(blind), view, pseudo, seeded(), PUBLISHED)
    assert result.kept.tolist() == [1, 3]
    assert torch.equal(result.masks, truth[[1, 3]])
    assert torch.equal(result.classes, pseudo.classes[[1, 3]])
    assert torch.equal(result.scores, pseudo.scores[[1, 3]])
    assert (result.stats.count, result.stats.accepted, result.stats.empty) == (4, 2, 2)
    assert len(refine(oracle(truth & False), view, pseudo, seeded(), PUBLISHED)) == 0


def test_the_gate_keeps_what_a_confident_but_wrong_sam_would_ruin():
    view, truth, pseudo = scene(5)
    wrong = Answers(lambda point, _: (torch.ones((3, *CONTENT), dtype=torch.bool), [0.95, 0.9, 0.9]))
    teacher = image_masks(pseudo, SIZE, CONTENT)
    for gate, lost in ((RefineGate(), False), (None, True)):
        result = refine(wrong, view, pseudo, seeded(), RefineConfig(gate=gate))
        before, after = iou_change(teacher, result.masks, truth).T
        assert bool((after < before - 0.2).all()) is lost
        assert bool((after == before).all()) is not lost


def test_the_choice_among_three_masks():
    teacher = torch.zeros((2, 4, 10), dtype=torch.bool)
    teacher[:, :, :5] = True
    masks = torch.zeros((2, 3, 4, 10), dtype=torch.bool)
    masks[:, 0, :, :1], masks[:, 1, :, :4], masks[:, 2] = True, True, True
    quality = torch.tensor([[0.99, 0.6, 0.9], [0.0, 0.0, 0.0]])
    assert best_masks(masks, quality, teacher, "quality").tolist() == [0, 0]
    # 0.2 * 0.99, 0.8 * 0.6 and 0.5 * 0.9; without any predicted IoU the teacher alone decides.
    assert best_masks(masks, quality, teacher, "agreement").tolist() == [1, 1]
    assert best_masks(masks, torch.tensor([[0.2, 0.3, 0.6]]).expand(2, 3), teacher, "agreement").tolist() == [2, 2]


@pytest.mark.parametrize(("draws", "rows"), [(1, 40), (2, 20), (3, 30), (4, 20), (5, 30)])
def test_more_than_half_of_the_draws_hold_a_pixel(draws, rows):
    view, _, pseudo = scene(1, objects=1)
    heights = [40, 20, 30, 10, 58]

    def answer(_, number):
        mask = torch.zeros(CONTENT, dtype=torch.bool)
        mask[: heights[number]] = True
        return mask.expand(3, -1, -1), [0.1 * (number + 1)] * 3

    segmenter = Answers(answer)
    teacher = image_masks(pseudo, SIZE, CONTENT)
    masks, quality = sam_masks(segmenter, view, pseudo, teacher, seeded(), RefineConfig(draws=draws))
    assert masks[0, : CONTENT[0], : CONTENT[1]].any(1).sum() == rows
    assert float(quality) == pytest.approx(0.1 * sum(range(1, draws + 1)) / draws)
    firsts = {tuple(points[0].tolist()) for points, _ in segmenter.prompts}
    assert len(firsts) > draws // 2  # each draw has its own points


def test_duplicates_go_and_the_better_one_stays():
    view, truth, pseudo = scene(2)
    pseudo = sure(pseudo, truth)
    order = [0, 1, 0, 2, 3, 2]
    doubled = Pseudo(
        pseudo.masks[order], pseudo.logits[order], torch.arange(6), torch.tensor([0.8, 0.9, 0.95, 0.9, 0.9, 0.75])
    )
    result = refine(oracle(truth), view, doubled, seeded(), RefineConfig(gate=None, duplicate=0.7))
    assert result.kept.tolist() == [1, 2, 3, 4]
    assert result.classes.tolist() == [1, 2, 3, 4]
    assert torch.equal(result.masks, truth[[1, 0, 2, 3]])
    assert (result.stats.duplicates, result.stats.empty, result.stats.count) == (2, 0, 6)
    assert len(refine(oracle(truth), view, doubled, seeded(), RefineConfig(gate=None))) == 6


def test_without_pseudo_labels_sam_is_not_asked():
    view, truth, pseudo = scene(0)
    nothing = Pseudo(*(part[:0] for part in vars(pseudo).values()))
    segmenter, generator = oracle(truth), seeded()
    before = generator.get_state()
    result = refine(segmenter, view, nothing, generator, RefineConfig(duplicate=0.5, box=True, negatives=2))
    assert len(result) == 0
    assert result.masks.shape == (0, *SIZE)
    assert result.stats == RefineStats()
    assert segmenter.images == []
    assert torch.equal(generator.get_state(), before)


def test_sam_sees_the_content_alone():
    view, _, pseudo = scene(4)
    everything = Answers(lambda point, _: (torch.ones((3, *CONTENT), dtype=torch.bool), [0.9] * 3))
    result = refine(everything, view, pseudo, seeded(), PUBLISHED)
    assert torch.equal(everything.images[0], view.image[None, :, : CONTENT[0], : CONTENT[1]])
    assert result.masks[:, : CONTENT[0], : CONTENT[1]].all()
    assert not result.masks[:, CONTENT[0] :].any()
    assert not result.masks[:, :, CONTENT[1] :].any()


def test_the_image_is_encoded_once_and_prompts_come_in_bounded_numbers(monkeypatch):
    view, truth, pseudo = scene(6)
    pseudo = sure(pseudo, truth)
    config = RefineConfig(draws=3, box=True)
    together, apart = oracle(truth), oracle(truth)
    expected = refine(together, view, pseudo, seeded(), config)
    assert together.calls == [12]
    monkeypatch.setattr("fewlabel.s4m.refine.PIXELS", 5 * 3 * CONTENT[0] * CONTENT[1])
    result = refine(apart, view, pseudo, seeded(), config)
    assert apart.calls == [5, 5, 2]
    assert len(apart.images) == 1
    assert torch.equal(result.masks, expected.masks)
    boxes = tight_boxes(image_masks(pseudo, SIZE, CONTENT)).repeat_interleave(3, 0)
    assert torch.equal(torch.cat(apart.boxes, 1)[0], boxes)


def test_prompts_are_those_that_were_drawn():
    view, truth, pseudo = scene(7)
    segmenter = oracle(truth)
    refine(segmenter, view, pseudo, seeded(9), RefineConfig(count=2, draws=2, negatives=1, points="softmax"))
    points, labels = prompt_points(pseudo, SIZE, CONTENT, seeded(9), 2, 2, "softmax", 1)
    assert torch.equal(torch.stack([some for some, _ in segmenter.prompts]), points.flatten(0, 1))
    assert torch.equal(torch.stack([marks for _, marks in segmenter.prompts]), labels.flatten(0, 1))
    assert segmenter.boxes == [None]
    assert (labels[..., 2] == 0).all()


@pytest.mark.parametrize("wrong", [{"count": 0}, {"draws": 0}, {"points": "centre"}, {"gate": {"tau": 1}}, {"k": 3}])
def test_options_are_checked(wrong):
    with pytest.raises(ValidationError):
        RefineConfig(**wrong)


@pytest.fixture(scope="module")
def tiny_sam2():
    return PromptableSegmenter(tiny.tiny_sam2(), "sam2", "tiny SAM 2").eval().requires_grad_(False)


def test_a_real_sam2_is_asked_as_published(tiny_sam2):
    view, _, pseudo = scene(8)
    result = refine(tiny_sam2, view, pseudo, seeded(3), PUBLISHED)
    points, labels = prompt_points(pseudo, SIZE, CONTENT, seeded(3))
    embedding = tiny_sam2.encode(view.image[None, :, : CONTENT[0], : CONTENT[1]])
    logits, quality = tiny_sam2.decode(embedding, points[None, :, 0], labels[None, :, 0])
    expected = logits[0, torch.arange(4), quality[0].argmax(1)] > 0
    kept = expected.flatten(1).any(1)
    assert kept.any()
    assert torch.equal(result.masks[:, : CONTENT[0], : CONTENT[1]], expected[kept])
    assert result.kept.tolist() == kept.nonzero()[:, 0].tolist()


def test_a_real_sam2_takes_every_option_and_one_seed_gives_one_result(tiny_sam2):
    view, _, pseudo = scene(9)
    tiny = pseudo.masks[0].nonzero()[0].tolist()  # a mask of one cell: fewer cells than points
    pseudo.masks[0] = False
    pseudo.masks[0, tiny[0], tiny[1]] = True
    for points in ("mask", "softmax"):
        config = RefineConfig(points=points, box=True, negatives=3, draws=3, duplicate=0.9, gate=None)
        state = torch.get_rng_state()
        first, again, other = (refine(tiny_sam2, view, pseudo, seeded(s), config) for s in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first.masks, again.masks)
        assert first.stats == again.stats
        assert not torch.equal(first.masks, other.masks)
    _, labels = prompt_points(pseudo, SIZE, CONTENT, seeded(0))
    assert labels[0, 0].tolist() == [1, PAD_LABEL, PAD_LABEL]


def test_nano_sam_mends_misplaced_masks_of_bright_discs():
    """What refinement is for: masks of the right objects with a wrong outline come closer to them."""
    rows, columns = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    discs = ((30, 34, 14), (40, 90, 12), (92, 40, 16), (88, 98, 10))
    truth = torch.stack([torch.hypot(rows - y, columns - x) < radius for y, x, radius in discs])
    grey = 0.15 + 0.55 * truth.any(0) + 0.03 * torch.randn((128, 128), generator=seeded())
    view = View(grey.clamp(0, 1).expand(3, -1, -1), truth[:0], torch.zeros(0, dtype=torch.int64), (128, 128))
    logits = 8 * (F.avg_pool2d(truth.roll((3, -3), (1, 2)).float()[None], 4)[0] - 0.5)
    pseudo = Pseudo(logits > 0, logits, torch.zeros(4, dtype=torch.int64), torch.ones(4))
    teacher, sam = image_masks(pseudo, view.size, view.content), load("nano")
    before = iou_change(teacher, teacher, truth)[:, 0].mean()
    assert before < 0.7
    after = {}
    for name, config in {"points": RefineConfig(), "box": RefineConfig(box=True)}.items():
        results = [refine(sam, view, pseudo, seeded(seed), config) for seed in range(3)]
        after[name] = torch.stack([iou_change(teacher, result.masks, truth)[:, 1].mean() for result in results])
        assert sum((result.stats for result in results), RefineStats()).acceptance > 0.5
    assert (after["points"] > before).all()
    assert after["points"].mean() > before + 0.05
    assert (after["box"] > before + 0.15).all()

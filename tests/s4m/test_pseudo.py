"""The filter of pseudo-labels: each of its rules, its border to the padding, and its masks at image resolution."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fewlabel.core.errors import DataError
from fewlabel.s4m.pseudo import FilterConfig, Pseudo, content_cells, image_masks, pseudo_labels

PUBLISHED = FilterConfig()
SIZE, GRID = (32, 48), (8, 12)


def class_logits(*probabilities):
    """Logits of rows of probabilities."""
    return torch.tensor(probabilities).log()


def square(top=1, left=1, side=4, inside=6.0, grid=GRID):
    """Mask logits of one square."""
    logits = torch.full(grid, -8.0)
    logits[top : top + side, left : left + side] = inside
    return logits


def random_queries(seed, queries=12, classes=3, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn((queries, classes + 1), generator=generator) * 3,
        torch.randn((queries, *grid), generator=generator) * 3,
    )


def brute_force(classes, masks, cells, config):
    """The rules of the specification, query by query in plain Python; indices of those that stay."""
    kept = []
    for index in range(len(classes)):
        probability = classes[index].softmax(0)
        label = int(probability.argmax())
        if label == len(probability) - 1 or probability[label] <= config.class_threshold:
            continue
        values = masks[index].sigmoid()[: cells[0], : cells[1]]
        inside = values[values > 0.5]
        if values.sum() <= config.min_mass or len(inside) == 0:
            continue
        if config.mask_threshold is not None and inside.mean() <= config.mask_threshold:
            continue
        kept.append((index, label))
    return kept


@pytest.mark.parametrize(
    ("probabilities", "logits", "expected"),
    [
        ((0.8, 0.1, 0.1), square(), 1),
        ((0.1, 0.1, 0.8), square(), 0),  # no object
        ((0.69, 0.16, 0.15), square(), 0),  # unsure of the class
        ((0.71, 0.15, 0.14), square(), 1),
        ((0.8, 0.1, 0.1), square(side=2), 0),  # 4 pixels: a mass of about 4
        ((0.8, 0.1, 0.1), square(side=3), 1),  # 9 pixels
        ((0.8, 0.1, 0.1), torch.full(GRID, -0.1), 0),  # a mass of 46 without a pixel above one half
    ],
)
def test_each_rule(probabilities, logits, expected):
    found = pseudo_labels(class_logits(probabilities), logits[None], SIZE, SIZE, PUBLISHED)
    assert len(found) == expected


def test_what_a_pseudo_label_holds():
    logits = torch.stack([square(), square(3, 5, 4), square(2, 2, 5)])
    rows = class_logits((0.05, 0.9, 0.05), (0.1, 0.1, 0.8), (0.75, 0.2, 0.05))
    found = pseudo_labels(rows, logits, SIZE, SIZE, PUBLISHED)
    assert found.classes.tolist() == [1, 0]
    assert found.classes.dtype == torch.int64
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.75]))
    assert torch.equal(found.masks, logits[[0, 2]] > 0)
    assert torch.equal(found.logits, logits[[0, 2]])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(0.3, 0.95),
    st.floats(0, 60),
    st.none() | st.floats(0.5, 1),
    st.tuples(st.integers(4, 32), st.integers(4, 48)),
)
def test_the_filter_is_the_specification(seed, threshold, mass, confidence, content):
    classes, masks = random_queries(seed)
    config = FilterConfig(class_threshold=threshold, min_mass=mass, mask_threshold=confidence)
    found = pseudo_labels(classes, masks, SIZE, content, config)
    # Centres of the cells are at 2, 6, 10...
    cells = (len(range(2, content[0], 4)), len(range(2, content[1], 4)))
    expected = brute_force(classes, masks, cells, config)
    assert found.classes.tolist() == [label for _, label in expected]
    assert torch.equal(found.logits, masks[[index for index, _ in expected]])
    assert found.masks.flatten(1).any(1).all()
    assert not found.masks[:, cells[0] :].any()
    assert not found.masks[:, :, cells[1] :].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_class_threshold_never_adds_a_pseudo_label(seed, first, second):
    classes, masks = random_queries(seed)
    loose, strict = (
        pseudo_labels(classes, masks, SIZE, SIZE, at_threshold(value)) for value in sorted((first, second))
    )
    held = {tuple(row.flatten().tolist()) for row in loose.logits}
    assert all(tuple(row.flatten().tolist()) in held for row in strict.logits)
    assert len(strict) <= len(loose)


def at_threshold(value):
    return PUBLISHED.model_copy(update={"class_threshold": value})


def test_mass_in_the_padding_does_not_count():
    logits = square(top=4, side=4)[None]  # rows 4 to 7, of which the content holds one
    rows = class_logits((0.9, 0.05, 0.05))
    assert len(pseudo_labels(rows, logits, SIZE, SIZE, PUBLISHED)) == 1
    assert len(pseudo_labels(rows, logits, SIZE, (20, 48), PUBLISHED)) == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 160), st.data())
def test_cells_of_the_content_are_those_with_their_centre_inside(cells, side, data):
    limit = data.draw(st.integers(1, side))
    expected = sum((2 * row + 1) * side < 2 * limit * cells for row in range(cells))
    assert content_cells((cells, 1), (side, 1), (limit, 1)) == (expected, 1)


def test_no_query_and_no_survivor():
    classes, masks = random_queries(0)
    for rows in (slice(0), slice(None)):
        found = pseudo_labels(classes[rows], masks[rows], SIZE, SIZE, FilterConfig(class_threshold=1.0))
        assert found.masks.shape == (0, *GRID)
        assert image_masks(found, SIZE, SIZE).shape == (0, *SIZE)


def test_half_precision_gives_the_same_labels_in_float32():
    classes, masks = random_queries(3)
    config = FilterConfig(class_threshold=0.5)
    found = pseudo_labels(classes.bfloat16(), masks.bfloat16(), SIZE, SIZE, config)
    same = pseudo_labels(classes.bfloat16().float(), masks.bfloat16().float(), SIZE, SIZE, config)
    assert found.logits.dtype == found.scores.dtype == torch.float32
    assert torch.equal(found.masks, same.masks)
    assert len(found) > 0


def test_no_gradient_reaches_the_teacher():
    classes, masks = random_queries(1)
    found = pseudo_labels(classes.requires_grad_(), masks.requires_grad_(), SIZE, SIZE, FilterConfig(class_threshold=0))
    assert not found.logits.requires_grad
    assert not found.scores.requires_grad


def pseudo(*logits):
    stack = torch.stack(logits)
    count = len(logits)
    return Pseudo(stack > 0, stack, torch.zeros(count, dtype=torch.int64), torch.ones(count))


def test_image_masks_are_straight_where_the_logits_are():
    """Of equal strength on both sides, the edge lies where the cells meet."""
    masks = image_masks(pseudo(square(inside=8.0)), SIZE, SIZE)
    expected = torch.zeros((1, *SIZE), dtype=torch.bool)
    expected[:, 4:20, 4:20] = True
    corners = [(4, 4), (4, 19), (19, 4), (19, 19)]  # bilinear interpolation rounds these off by one pixel
    assert all(not masks[0, y, x] for y, x in corners)
    for y, x in corners:
        masks[0, y, x] = True
    assert torch.equal(masks, expected)


def test_a_vanishing_mask_keeps_its_cells():
    tiny = torch.full(GRID, -40.0)
    tiny[2, 3] = 0.5
    masks = image_masks(pseudo(square(), tiny), SIZE, SIZE)
    assert masks[1].nonzero().tolist() == [[y, x] for y in range(8, 12) for x in range(12, 16)]
    assert masks[0].sum() > 200


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.tuples(st.integers(8, 32), st.integers(8, 48)))
def test_image_masks_are_never_empty_nor_in_the_padding(seed, content):
    classes, masks = random_queries(seed)
    found = pseudo_labels(classes, masks, SIZE, content, FilterConfig(class_threshold=0, min_mass=0))
    full = image_masks(found, SIZE, content)
    assert full.flatten(1).any(1).all()
    assert not full[:, content[0] :].any()
    assert not full[:, :, content[1] :].any()


def test_what_lies_in_the_padding_does_not_bleed_into_the_image():
    classes, masks = random_queries(5)
    content = (18, 30)  # ends within cells
    found = pseudo_labels(classes, masks, SIZE, content, FilterConfig(class_threshold=0.3))
    cells = content_cells(GRID, SIZE, content)
    other = found.logits.clone()
    other[:, cells[0] :], other[:, :, cells[1] :] = 50.0, -50.0
    assert len(found) > 0
    assert torch.equal(image_masks(found, SIZE, content), image_masks(replace(found, logits=other), SIZE, content))


def test_many_masks_are_resampled_like_each_alone(monkeypatch):
    classes, masks = random_queries(7)
    found = pseudo_labels(classes, masks, SIZE, SIZE, FilterConfig(class_threshold=0.3))
    together = image_masks(found, SIZE, SIZE)
    monkeypatch.setattr("fewlabel.s4m.pseudo.PIXELS", 2 * SIZE[0] * SIZE[1])
    assert len(found) > 3
    assert torch.equal(image_masks(found, SIZE, SIZE), together)


def test_queries_of_several_images_are_refused():
    classes, masks = random_queries(0)
    with pytest.raises(DataError, match="one image"):
        pseudo_labels(classes[None], masks[None], SIZE, SIZE, PUBLISHED)
    with pytest.raises(DataError, match=r"\(12, 4\)"):
        pseudo_labels(classes, masks[:5], SIZE, SIZE, PUBLISHED)
    with pytest.raises(DataError, match="one of each"):
        Pseudo(masks > 0, masks, torch.zeros(3, dtype=torch.int64), torch.ones(12))


@pytest.mark.parametrize("wrong", [{"class_threshold": 1.1}, {"min_mass": -1}, {"mask_threshold": 2}, {"mass": 5}])
def test_options_are_checked(wrong):
    with pytest.raises(ValidationError):
        FilterConfig(**wrong)

"""Stitching: what tiles show of known objects gives back the objects, byte for byte."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core import masks, rle
from fewlabel.core.errors import DataError
from fewlabel.core.types import Instances
from fewlabel.data.stitch import stitch, stitched
from fewlabel.data.tiles import Crop, crops

tilings = st.tuples(st.integers(6, 24), st.integers(3, 16)).filter(lambda pair: pair[1] <= 0.7 * pair[0])
places = st.tuples(st.integers(1, 45), st.integers(1, 45))


def truth_of(stack: np.ndarray, classes=None) -> Instances:
    return Instances.from_masks(stack, classes=classes, scores=np.linspace(0.3, 0.9, len(stack)), source="teacher")


def shown(truth: Instances, crop: Crop, rng: np.random.Generator) -> Instances:
    """What an ideal segmenter of instances says about a tile, in any order and as sure as it happens to be."""
    top, left, height, width = crop
    x0, y0, x1, y1 = truth.boxes.T
    near = np.flatnonzero((x0 < left + width) & (y0 < top + height) & (x1 > left) & (y1 > top))
    views = {i: rle.crop(truth.rles[i], *crop) for i in near}
    order = rng.permutation(np.array([i for i, view in views.items() if rle.spans(view).area], dtype=np.int64))
    return Instances(
        crop[2:],
        tuple(views[i] for i in order),
        truth.classes[order],
        rng.uniform(0.1, 1.0, len(order)).astype(np.float32),
        np.zeros((len(order), 4), np.float32),
        truth.source,
    )


def connected(mask: np.ndarray, crop: Crop) -> Instances:
    """What an ideal segmenter of pixels says about a tile."""
    top, left, height, width = crop
    return Instances.from_semantic(mask[top : top + height, left : left + width], source="student")


def sorted_codes(instances: Instances) -> list:
    pairs = zip(instances.rles, instances.classes.tolist(), strict=True)
    return sorted((code["counts"], number) for code, number in pairs)


def blobs(rng: np.random.Generator, size: tuple[int, int], side: int, count: int, parts: bool = False) -> np.ndarray:
    """Disjoint random objects of less than `side` rows and columns, many of which touch; in pieces if `parts`."""
    free, stack = np.ones(size, bool), []
    for _ in range(count):
        height, width = rng.integers(1, min(side, size[0] + 1)), rng.integers(1, min(side, size[1] + 1))
        top, left = rng.integers(0, size[0] - height + 1), rng.integers(0, size[1] - width + 1)
        mask = np.zeros(size, bool)
        mask[top : top + height, left : left + width] = rng.random((height, width)) < rng.choice([0.3, 0.7, 1.0])
        mask &= free
        if not parts and mask.any():
            mask = masks.components(mask)[0] == 1
        if mask.any():
            stack.append(mask)
            free &= ~mask
    return np.array(stack).reshape(-1, *size)


@settings(max_examples=80, deadline=None)
@given(places, tilings, st.integers(0, 2**31), st.booleans())
def test_objects_smaller_than_the_overlap_come_back(size, tiling, seed, parts):
    """Given instances: touching ones stay apart, those of several parts stay one, classes are kept."""
    tile, overlap = tiling
    rng = np.random.default_rng(seed)
    stack = blobs(rng, size, overlap, 14, parts)
    truth = truth_of(stack, rng.integers(0, 2, len(stack)))
    areas = crops(*size, tile, overlap)
    result = stitch(size, areas, (shown(truth, crop, rng) for crop in areas))
    assert sorted_codes(result) == sorted_codes(truth)
    np.testing.assert_array_equal(result.boxes, masks.boxes(result.masks()))
    if len(truth):
        assert result.source == "teacher"


@settings(max_examples=30, deadline=None)
@given(places, tilings, st.integers(0, 2**31), st.floats(0.05, 0.6))
def test_connected_components_come_back_in_raster_order(size, tiling, seed, share):
    """Pixels: the tiled result is the untiled one, bytes and order, for components smaller than the overlap."""
    tile, overlap = tiling
    mask = np.random.default_rng(seed).random(size) < share
    labels, count = masks.components(mask)
    boxes = masks.component_boxes(labels, count)
    large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= overlap) + 1
    mask &= ~np.isin(labels, large)
    truth = Instances.from_semantic(mask)
    areas = crops(*size, tile, overlap)
    result = stitch(size, areas, (connected(mask, crop) for crop in areas))
    assert result.rles == truth.rles
    np.testing.assert_array_equal(result.boxes, truth.boxes)
    assert (result.scores == 1).all() and (result.classes == 0).all()


@settings(max_examples=30, deadline=None)
@given(places, tilings, st.integers(0, 2**31))
def test_objects_that_overlap_stay_apart(size, tiling, seed):
    """Masks may share pixels, as those of parts and wholes do, up to an IoU of one half."""
    tile, overlap = tiling
    rng = np.random.default_rng(seed)
    stack: list[np.ndarray] = []
    for mask in (blob for _ in range(4) for blob in blobs(rng, size, overlap, 4)):
        if all((mask & other).sum() < 0.5 * (mask | other).sum() for other in stack):
            stack.append(mask)
    truth = truth_of(np.array(stack).reshape(-1, *size))
    areas = crops(*size, tile, overlap)
    result = stitch(size, areas, (shown(truth, crop, rng) for crop in areas))
    assert sorted_codes(result) == sorted_codes(truth)


@settings(max_examples=30, deadline=None)
@given(places, tilings, st.integers(0, 2**31))
def test_large_boxes_are_put_together(size, tiling, seed):
    """Objects of any size without holes or bays, cut into many pieces; neighbours touch."""
    tile, overlap = tiling
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, size[0] + 1, 3).tolist() + [0, size[0]])
    columns = np.unique(rng.integers(0, size[1] + 1, 3).tolist() + [0, size[1]])
    stack = []
    for top, bottom in zip(rows[:-1], rows[1:], strict=True):
        for left, right in zip(columns[:-1], columns[1:], strict=True):
            mask = np.zeros(size, bool)
            mask[top:bottom, left:right] = True
            stack.append(mask)
    truth = truth_of(np.array(stack))
    areas = crops(*size, tile, overlap)
    result = stitch(size, areas, (shown(truth, crop, rng) for crop in areas))
    assert sorted_codes(result) == sorted_codes(truth)


def stamp(size, *boxes) -> np.ndarray:
    mask = np.zeros(size, bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


SIZE, TWO = (20, 36), [Crop(0, 0, 20, 20), Crop(0, 16, 20, 20)]


def of(crop: Crop, *views: tuple[np.ndarray, float], classes=None) -> Instances:
    """Instances of a tile from masks of the image and scores."""
    cut = [mask[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width] for mask, _ in views]
    stack = np.array(cut).reshape(-1, crop.height, crop.width)
    return Instances.from_masks(stack, scores=[score for _, score in views], classes=classes)


def test_pieces_of_a_large_object_are_united_and_weighted():
    bar = stamp(SIZE, (5, 7, 2, 30))
    result = stitch(SIZE, TWO, [of(TWO[0], (bar, 0.9)), of(TWO[1], (bar, 0.6))])
    assert result.rles == (masks.encode(bar),)
    assert result.scores[0] == pytest.approx((36 * 0.9 + 28 * 0.6) / 64)


def test_prongs_join_the_piece_that_holds_them():
    """A fork that the second tile sees as two pieces, one of which is small."""
    fork = stamp(SIZE, (2, 18, 4, 10), (2, 6, 4, 30), (16, 18, 4, 30))
    second = [(stamp(SIZE, (2, 6, 4, 30)), 1.0), (stamp(SIZE, (16, 18, 4, 30)), 1.0)]
    result = stitch(SIZE, TWO, [of(TWO[0], (fork, 1.0)), of(TWO[1], *second)])
    assert result.rles == (masks.encode(fork),)


def test_a_part_that_both_tiles_see_does_not_vanish_in_its_whole():
    """A cut part joins the other view of the part, not the cut object that contains it."""
    whole, part = stamp(SIZE, (2, 18, 4, 32)), stamp(SIZE, (4, 8, 14, 24))
    result = stitch(SIZE, TWO, [of(TWO[0], (whole, 1), (part, 1)), of(TWO[1], (part, 1), (whole, 1))])
    assert sorted_codes(result) == sorted_codes(truth_of(np.array([whole, part])))


def test_a_piece_that_glues_two_whole_objects_is_dropped():
    """The tile where objects are whole is believed, not the one that cuts and glues them."""
    one, two = stamp(SIZE, (4, 8, 13, 19)), stamp(SIZE, (8, 12, 13, 19))
    for tiles in (TWO, TWO[::-1]):
        found = {TWO[0]: of(TWO[0], (one, 0.5), (two, 0.6)), TWO[1]: of(TWO[1], (one | two, 0.99))}
        result = stitch(SIZE, tiles, [found[crop] for crop in tiles])
        assert result.rles == (masks.encode(one), masks.encode(two))
        np.testing.assert_allclose(result.scores, [0.5, 0.6])


def test_of_two_views_of_a_whole_object_the_surer_stays():
    thin, thick = stamp(SIZE, (5, 8, 17, 19)), stamp(SIZE, (5, 9, 17, 19))
    result = stitch(SIZE, TWO, [of(TWO[0], (thin, 0.4)), of(TWO[1], (thick, 0.8))])
    assert result.rles == (masks.encode(thick),) and result.scores[0] == np.float32(0.8)
    result = stitch(SIZE, TWO, [of(TWO[0], (thin, 0.8)), of(TWO[1], (thick, 0.8))])
    assert result.rles == (masks.encode(thin),)


def test_a_view_that_stops_short_of_the_border_is_continued():
    """The first tile's mask ends two pixels before the border, the second shows that the object goes on."""
    short, bar = stamp(SIZE, (5, 9, 6, 19)), stamp(SIZE, (5, 9, 14, 30))
    result = stitch(SIZE, TWO, [of(TWO[0], (short, 1)), of(TWO[1], (bar, 1))])
    expected = short | stamp(SIZE, (5, 9, 16, 30))
    assert result.rles == (masks.encode(expected),)


def test_the_border_of_the_image_cuts_nothing():
    """An object at the image's right border is whole in the first tile, whose score it keeps."""
    size, areas = (36, 20), [Crop(0, 0, 20, 20), Crop(16, 0, 20, 20)]
    corner = stamp(size, (14, 19, 17, 20))
    result = stitch(size, areas, [of(areas[0], (corner, 0.4)), of(areas[1], (corner, 0.9))])
    assert result.rles == (masks.encode(corner),) and result.scores[0] == np.float32(0.4)


def test_a_neighbour_that_overlaps_is_no_part():
    """Inside the overlap one of them looks like the other, but the tile shows that other too."""
    one, two = stamp(SIZE, (4, 8, 13, 19)), stamp(SIZE, (4, 8, 17, 20))
    result = stitch(SIZE, TWO, [of(TWO[0], (one, 1), (two, 1)), of(TWO[1], (two, 1), (one, 1))])
    assert sorted_codes(result) == sorted_codes(truth_of(np.array([one, two])))


def test_classes_are_not_mixed():
    bar = stamp(SIZE, (5, 7, 2, 30))
    result = stitch(SIZE, TWO, [of(TWO[0], (bar, 1), classes=[3]), of(TWO[1], (bar, 1), classes=[4])])
    assert sorted(result.classes) == [3, 4]


def test_offsets_are_exact_far_out():
    size = (50_000, 60_000)
    areas = [Crop(40_000, 50_000, 10_000, 64), Crop(49_968, 50_032, 32, 64)]
    runs = rle.spans(masks.encode(np.ones((4, 5), bool)))
    code = rle.from_spans(rle.shift(runs, 4, 49_990, 50_040, size[0]), size)
    corners = np.array([[50_040, 49_990, 50_045, 49_994]], np.float32)
    far = Instances(size, (code,), np.zeros(1, np.int64), np.ones(1, np.float32), corners)
    result = stitch(size, areas, [shown(far, crop, np.random.default_rng(0)) for crop in areas])
    assert result.rles == (code,)
    assert result.boxes.tolist() == corners.tolist()


def test_only_what_later_tiles_can_see_is_kept():
    """Results appear while tiles are still to come, and what is held does not grow with the image."""
    size = (600, 40)
    areas = crops(*size, 20, 8)
    rng = np.random.default_rng(0)
    truth = truth_of(
        np.concatenate(
            [np.pad(blobs(rng, (60, 40), 8, 30), ((0, 0), (60 * k, 540 - 60 * k), (0, 0))) for k in range(10)]
        )
    )
    parts = [shown(truth, crop, rng) for crop in areas]
    total, held = 0, []
    tracemalloc.start()
    for part in stitched(size, areas, iter(parts)):
        total += len(part)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert total == len(truth) > 100
    assert len(held) > len(areas) // 2
    assert max(held[len(held) // 2 :]) < 1.3 * max(held[: len(held) // 2])


def test_tiles_without_their_instances_are_refused():
    empty = Instances((20, 20))
    with pytest.raises(DataError, match="tile 2 have the size"):
        stitch(SIZE, TWO, [empty, Instances((19, 20))])
    with pytest.raises(DataError, match="expected no more"):
        stitch(SIZE, TWO, [empty] * 3)
    with pytest.raises(DataError, match="of 1 tiles, expected 2"):
        stitch(SIZE, TWO, [empty])
    assert len(stitch(SIZE, TWO, [empty] * 2)) == 0

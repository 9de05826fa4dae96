import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewlabel.core.errors import RunError
from fewlabel.report.contents import Example
from fewlabel.report.pictures import (
    GREYS,
    MAP_LEVELS,
    Window,
    box_path,
    find_window,
    grey_levels,
    grey_palette,
    map_levels,
    map_palette,
    outline,
    overlay_levels,
    overlay_palette,
    panels,
    png_address,
    reduce_levels,
)


def plain(shape: tuple[int, int] = (48, 64), **parts: np.ndarray | None) -> Example:
    image = np.zeros(shape, np.float32)
    return Example("x", image, **{"truth": None, "priors": np.zeros((0, *shape), np.float32), **parts})  # type: ignore[arg-type]


def spot(shape: tuple[int, int], row: int, column: int, size: int = 2) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[row : row + size, column : column + size] = True
    return mask


@pytest.mark.parametrize("palette", [grey_palette(), map_palette(), overlay_palette()])
def test_a_png_gives_back_the_colours_of_its_levels(
    decode_png: Callable[[str], np.ndarray], palette: np.ndarray
) -> None:
    levels = np.random.default_rng(0).integers(0, len(palette), (17, 23)).astype(np.uint8)
    address = png_address(levels, palette)
    assert address == png_address(levels.copy(), palette)
    np.testing.assert_array_equal(decode_png(address), palette[levels])


def test_levels_survive_constant_and_broken_maps() -> None:
    for values in (np.full((4, 5), 3.0), np.full((4, 5), np.nan)):
        assert not grey_levels(values).any()
        assert not map_levels(values).any()
    broken = np.array([[0.0, np.nan], [np.inf, 1.0]])
    np.testing.assert_array_equal(map_levels(broken), [[0, 0], [0, MAP_LEVELS - 1]])
    np.testing.assert_array_equal(map_levels(np.array([[0.0, 0.5, 1.0]]), unit=True), [[0, 16, MAP_LEVELS - 1]])
    assert map_levels(np.array([[0.2, 0.2]]), unit=True).max() == 6


def test_ignored_pixels_win_over_accepted_ones() -> None:
    target = np.array([[True, True, False, False]])
    weight = np.array([[1.0, 0.0, 0.0, 1.0]])
    kinds = overlay_levels(np.zeros((1, 4)), target, weight) // GREYS
    np.testing.assert_array_equal(kinds, [[2, 1, 1, 0]])
    np.testing.assert_array_equal(overlay_levels(np.zeros((1, 4)), target, None) // GREYS, [[2, 2, 0, 0]])


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(1, 4))
def test_reducing_keeps_the_brightest_pixel_of_each_block(levels: np.ndarray, factor: int) -> None:
    small = reduce_levels(levels, factor)
    for row in range(small.shape[0]):
        for column in range(small.shape[1]):
            block = levels[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            assert small[row, column] == block.max()


@given(arrays(np.bool_, st.tuples(st.integers(1, 8), st.integers(1, 8))))
def test_the_outline_is_the_set_of_edges_between_in_and_out(mask: np.ndarray) -> None:
    drawn: set[tuple[str, int, int]] = set()
    for x, y, kind, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", outline(mask)):
        for offset in range(int(length)):
            drawn.add((kind, int(x) + offset, int(y)) if kind == "h" else (kind, int(x), int(y) + offset))
    expected: set[tuple[str, int, int]] = set()
    height, width = mask.shape
    for row, column in np.argwhere(mask):
        for kind, x, y, other in (
            ("h", column, row, (row - 1, column)),
            ("h", column, row + 1, (row + 1, column)),
            ("v", column, row, (row, column - 1)),
            ("v", column + 1, row, (row, column + 1)),
        ):
            inside = 0 <= other[0] < height and 0 <= other[1] < width
            if not inside or not mask[other]:
                expected.add((kind, int(x), int(y)))
    assert drawn == expected


def test_the_window_prefers_a_target_that_the_student_missed() -> None:
    shape = (100, 120)
    truth = spot(shape, 10, 10, 4) | spot(shape, 80, 90)
    found = spot(shape, 10, 10, 4).astype(np.float32)
    window = find_window(plain(shape, truth=truth, student=found))
    assert window.cut(truth).sum() == 4
    assert window.cut(spot(shape, 80, 90)).sum() == 4
    assert find_window(plain(shape, truth=truth)).cut(truth).sum() == 16
    hit = truth.astype(np.float32)
    assert find_window(plain(shape, truth=truth, student=hit)).cut(truth).sum() == 16


def test_without_targets_the_window_lies_on_the_highest_response() -> None:
    shape = (60, 70)
    student = spot(shape, 50, 3, 1) * np.float32(0.2)
    assert find_window(plain(shape, truth=np.zeros(shape, bool), student=student)).cut(student).max() > 0
    target = spot(shape, 5, 60)
    assert find_window(plain(shape, target=target, student=student)).cut(target).sum() == 4


@settings(max_examples=40)
@given(st.integers(1, 150), st.integers(1, 150), st.data())
def test_the_window_is_a_square_inside_the_image(height: int, width: int, data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    size = data.draw(st.integers(1, 200))
    truth = spot((height, width), row, column, size)
    window = find_window(plain((height, width), truth=truth))
    assert 0 < window.size <= min(height, width, 96)
    assert 0 <= window.top <= height - window.size and 0 <= window.left <= width - window.size
    assert window.cut(truth).any()


def boxed(shape: tuple[int, int], boxes: list[tuple[float, float, float, float]], **parts: np.ndarray) -> Example:
    scores = np.linspace(0.9, 0.7, len(boxes), dtype=np.float32)
    return plain(shape, boxes=np.array(boxes, np.float32).reshape(-1, 4), box_scores=scores, **parts)


def test_boxes_are_drawn_on_the_image_beside_the_true_ones(decode_png: Callable[[str], np.ndarray]) -> None:
    shape = (100, 120)
    truth = spot(shape, 10, 20, 4) | spot(shape, 80, 90)
    example = boxed(shape, [(19.5, 10.25, 24, 14), (60, 60, 70, 70)], truth=truth)
    window, drawn = panels(example)
    assert [panel.title for panel in drawn] == ["image", "student"]
    panel = drawn[1]
    np.testing.assert_array_equal(decode_png(panel.whole), decode_png(drawn[0].whole))
    assert panel.whole_truth == "M20.0 10.0H24.0V14.0H20.0ZM90.0 80.0H92.0V82.0H90.0Z"
    assert window.cut(truth).sum() == 4, "the target without a box is the one to look at"
    assert panel.truth == box_path(np.array([[90, 80, 92, 82]]), window) != ""
    assert [(mark.verdict, mark.number, mark.x, mark.y) for mark in panel.marks] == [
        ("found", "0.90", 24, 10),
        ("found", "0.70", 70, 60),
    ]
    assert panel.marks[0].whole == "M19.5 10.2H24.0V14.0H19.5Z" and panel.marks[0].zoom == ""
    assert panels(boxed(shape, []))[1][1].marks == ()
    assert panels(boxed(shape, [(1, 1, 4, 4)]))[1][1].whole_truth == "", "the truth is unknown"


@given(st.tuples(*[st.integers(0, 30)] * 4), st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_a_box_is_drawn_in_a_window_where_they_share_a_pixel(
    corners: tuple[int, ...], top: int, left: int, size: int
) -> None:
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    x1, y1 = x1 + 1, y1 + 1
    mask = np.zeros((60, 60), bool)
    mask[y0:y1, x0:x1] = True
    window = Window(top, left, size)
    drawn = box_path(np.array([[x0, y0, x1, y1]]), window)
    assert bool(drawn) == bool(window.cut(mask).any())
    if drawn:
        found = [float(value) for value in re.findall(r"-?\d+\.\d", drawn)]
        assert found == [x0 - left, y0 - top, x1 - left, y1 - top, x0 - left]


def test_boxes_without_scores_are_refused() -> None:
    with pytest.raises(RunError, match="'x'.*2 boxes and None scores"):
        plain(boxes=np.zeros((2, 4), np.float32))


def test_panels_follow_what_the_example_holds(
    decode_png: Callable[[str], np.ndarray], example_maker: Callable[..., Example]
) -> None:
    example = example_maker(0, (90, 70))
    _, drawn = panels(example, ("a", "b"))
    assert [panel.title for panel in drawn] == [
        "image",
        "a",
        "b",
        "prior 3",
        "prior 4",
        "teacher",
        "pseudo-label",
        "student",
    ]
    assert all(panel.truth for panel in drawn)
    assert [bool(panel.outline) for panel in drawn] == [False] * 5 + [True, False, True]
    bare = replace(example, truth=None, priors=example.priors[:0], teacher=None, target=None, weight=None, student=None)
    _, drawn = panels(bare)
    assert [panel.title for panel in drawn] == ["image"]
    assert drawn[0].truth == ""
    assert decode_png(drawn[0].whole).shape == (90, 70, 3)


def test_large_images_are_reduced_by_a_whole_factor(
    decode_png: Callable[[str], np.ndarray], example_maker: Callable[..., Example]
) -> None:
    window, drawn = panels(example_maker(1, (300, 520)))
    assert decode_png(drawn[0].whole).shape == (100, 174, 3)
    assert decode_png(drawn[0].zoom).shape == (window.size, window.size, 3)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(RunError, match=r"'x'.*truth of shape \(3, 3\)"):
        plain(truth=np.zeros((3, 3), bool))
    with pytest.raises(RunError, match="priors of shape"):
        plain(priors=np.zeros((48, 64), np.float32))
    with pytest.raises(RunError, match="image of shape"):
        Example("x", np.zeros((1, 4, 4), np.float32), None, np.zeros((0, 4, 4), np.float32))

"""Geometry of the frame: one exact map for pixels, points, boxes and masks, held against brute-force oracles."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fewlabel.sam.frames import OUTSIDE, Frame, to_grid, to_image

sides = st.sampled_from([64, 256, 1024])
sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))
frames = st.builds(Frame.of, sizes, sides, st.booleans())
small_frames = st.builds(Frame.of, st.tuples(st.integers(1, 90), st.integers(1, 90)), st.just(64), st.booleans())
grids = st.sampled_from([4, 16, 24, 64])
shares = st.floats(0, 1)
SAM = Frame.of((431, 853), 256, True)


def looked_up(frame: Frame, axis: int, grid: int) -> np.ndarray:
    """Weights `(length, grid)` with which the pixels of one image axis look up the cells of a grid over the frame."""
    cell = frame.side / grid
    touched = math.ceil(frame.content[axis] / cell)
    centres = (np.arange(frame.size[axis]) + 0.5) * frame.content[axis] / frame.size[axis] / cell
    centres = np.clip(centres, 0.5, touched - 0.5)
    weights = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - (np.arange(touched) + 0.5)))
    return np.pad(weights, [(0, 0), (0, grid - touched)])


def gathered(frame: Frame, axis: int, grid: int) -> np.ndarray:
    """Weights `(touched, length)` with which cells that touch the content gather the pixels of one image axis."""
    length, content = frame.size[axis], frame.content[axis]
    rows = []
    for cell in range(grid):
        if cell * frame.side >= content * grid:
            break
        # Everything in image pixels: the cell's centre, and a cell's width or a pixel to each side of it.
        centre, width = ((cell + 0.5) * frame.side / grid / content * length, frame.side / grid / content * length)
        weights = [max(0.0, 1.0 - abs(pixel + 0.5 - centre) / max(1.0, width)) for pixel in range(length)]
        rows.append([weight / sum(weights) for weight in weights])
    return np.array(rows)


def window_means(frame: Frame, axis: int, grid: int) -> np.ndarray:
    """Weights `(touched, length)` of means over 1.6 cells, a pixel at least; the image's last pixels go on."""
    length, cell = frame.size[axis], frame.side / grid / frame.content[axis] * frame.size[axis]
    touched = math.ceil(frame.content[axis] * grid / frame.side)
    weights = np.zeros((touched, length))
    for row in range(touched):
        width = max(1.0, 1.6 * cell)
        low, high = (row + 0.5) * cell - width / 2, (row + 0.5) * cell + width / 2
        for pixel in range(math.floor(low), math.ceil(high)):
            share = max(0.0, min(high, pixel + 1) - max(low, pixel)) / width
            weights[row, min(max(pixel, 0), length - 1)] += share
    return weights


def padding(frame: Frame, grid: int) -> torch.Tensor:
    """Which cells of a grid over the whole frame hold none of the content, by area: bool `(grid, grid)`."""
    edges = np.arange(grid + 1) * frame.side / grid
    rows, columns = (np.minimum(edges[1:], n) - np.minimum(edges[:-1], n) for n in frame.content)
    return torch.from_numpy(np.outer(rows, columns) == 0)


def pixel_centres(frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column coordinates `(H, W)` of an image's pixel centres, float64."""
    rows, columns = (torch.arange(length, dtype=torch.float64) + 0.5 for length in frame.size)
    return torch.meshgrid(rows, columns, indexing="ij")


def iou(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


@given(size=sizes, side=sides)
def test_content_is_the_rounded_image(size, side):
    """Halves are rounded up, computed exactly here with fractions; SAM 2 fills the frame."""
    expected = tuple(max(1, math.floor(Fraction(n * side, max(size)) + Fraction(1, 2))) for n in size)
    assert Frame.of(size, side, True).content == expected
    assert max(expected) == side
    assert Frame.of(size, side, False).content == (side, side)


@pytest.mark.parametrize(
    ("size", "content"), [((1200, 1800), (683, 1024)), ((5, 2048), (3, 1024)), ((480, 640), (768, 1024))]
)
def test_content_of_known_sizes(size, content):
    """What `ResizeLongestSide(1024).get_preprocess_shape` gives, the second one a tie."""
    assert Frame.of(size, 1024, True).content == content


@given(frame=frames, x=shares, y=shares)
def test_point_keeps_its_place_and_comes_back(frame, x, y):
    """Exact to 1e-4 px and better in single precision for images up to 1024 pixels, and to 1e-9 in double."""
    xy = torch.tensor([x * frame.size[1], y * frame.size[0]], dtype=torch.float64)
    mapped = frame.points(xy)
    expected = torch.tensor([x * frame.content[1], y * frame.content[0]], dtype=torch.float64)
    torch.testing.assert_close(mapped, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(frame.points_back(mapped), xy, atol=1e-9, rtol=0)
    single = xy.float()
    assert frame.points(single).dtype == torch.float32
    # Half a step of float32 in the frame is stretched with the image, and the result is rounded once more.
    exact = 1e-4 * max(1.0, max(frame.size) / frame.side)
    torch.testing.assert_close(frame.points_back(frame.points(single)), single, atol=exact, rtol=0)


@pytest.mark.parametrize("size", [(1024, 1024), (1023, 767), (1, 1024), (37, 53)])
@pytest.mark.parametrize("keep", [True, False])
def test_single_precision_is_enough_for_a_tenth_of_a_thousandth(size, keep):
    frame = Frame.of(size, 1024, keep)
    xy = torch.rand((20000, 2), generator=torch.Generator().manual_seed(0)) * torch.tensor([size[1], size[0]])
    assert (frame.points_back(frame.points(xy)) - xy).abs().max() <= 1e-4


@given(frame=frames)
def test_corners_map_exactly(frame):
    """Far edges stay far edges to the last bit, in both directions and both precisions."""
    (height, width), (rows, columns) = frame.size, frame.content
    for dtype in (torch.float32, torch.float64):
        corners = torch.tensor([0, 0, width, height], dtype=dtype)
        expected = torch.tensor([0, 0, columns, rows], dtype=dtype)
        assert torch.equal(frame.boxes(corners), expected)
        assert torch.equal(frame.points_back(expected.view(2, 2)).flatten(), corners)


@given(frame=frames, corners=st.lists(shares, min_size=4, max_size=4))
def test_boxes_are_two_points(frame, corners):
    boxes = torch.tensor(corners).expand(2, 3, 4) * 50
    mapped = frame.boxes(boxes)
    assert mapped.shape == (2, 3, 4)
    assert torch.equal(mapped[..., :2], frame.points(boxes[..., :2]))
    assert torch.equal(mapped[..., 2:], frame.points(boxes[..., 2:]))


def test_points_are_differentiable():
    xy = torch.rand((3, 2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SAM.points, (xy,))


@given(frame=frames, grid=grids, x=shares, y=shares)
def test_cell_contains_its_point(frame, grid, x, y):
    """The point lies between the edges of its cell, in the frame and mapped back to the image."""
    xy = torch.tensor([x * frame.size[1], y * frame.size[0]], dtype=torch.float64)
    cell = frame.cells(xy, grid)
    low, high = cell.double() * frame.side / grid, (cell.double() + 1) * frame.side / grid
    mapped = frame.points(xy)
    assert (low - 1e-9 <= mapped).all()
    assert (mapped <= high + 1e-9).all()
    assert (frame.points_back(low) <= xy + 1e-9).all()
    assert (xy <= frame.points_back(high) + 1e-9).all()


@settings(deadline=None, max_examples=100)
@given(frame=small_frames, grid=grids, x=st.floats(0, 0.999), y=st.floats(0, 0.999))
def test_cell_of_a_pixel_lights_that_pixel(frame, grid, x, y):
    """Prompts and masks agree: the cell a pixel's centre is sent to has at least half of its weight on each axis."""
    row, column = int(y * frame.size[0]), int(x * frame.size[1])
    cell = frame.cells(torch.tensor([column + 0.5, row + 0.5]), grid)
    low = torch.zeros(grid, grid)
    low[cell[1], cell[0]] = 1.0
    assert to_image(low, frame)[row, column] >= 0.25 - 1e-5


@given(frame=frames, grid=grids, x=shares, y=shares, single=st.booleans())
def test_no_prompt_lands_in_padding(frame, grid, x, y, single):
    """Points of the image, its edges included, are mapped into the content and into a cell that touches it."""
    dtype = torch.float32 if single else torch.float64
    # A share times the length can round beyond the length; such a point is not in the image.
    xy = torch.tensor([x * frame.size[1], y * frame.size[0]], dtype=dtype)
    assume(bool(frame.contains(xy)))
    mapped = frame.points(xy)
    assert 0 <= mapped[0] <= frame.content[1]
    assert 0 <= mapped[1] <= frame.content[0]
    column, row = frame.cells(xy, grid).tolist()
    assert not padding(frame, grid)[row, column]


def test_contains_knows_the_edges():
    frame = Frame.of((40, 60), 64, True)
    inside = torch.tensor([[0.0, 0.0], [60.0, 40.0], [30.0, 20.0]])
    outside = torch.tensor([[-0.1, 5.0], [60.1, 5.0], [5.0, -0.1], [50.0, 40.1], [math.nan, 5.0]])
    assert frame.contains(inside).all()
    assert not frame.contains(outside).any()
    assert frame.contains(inside.view(1, 3, 2)).shape == (1, 3)


@settings(deadline=None)
@given(frame=frames, grid=grids)
def test_content_touches_all_but_the_padding(frame, grid):
    rows, columns = frame.touched(grid, grid)
    touched = torch.zeros((grid, grid), dtype=torch.bool)
    touched[:rows, :columns] = True
    assert torch.equal(touched, ~padding(frame, grid))


@settings(deadline=None, max_examples=60)
@given(frame=small_frames, grid=grids, seed=st.integers(0, 2**16))
@example(frame=Frame.of((2, 18), 64, True), grid=16, seed=0)  # as many cells as pixels in an axis, at another scale
@example(frame=Frame.of((25, 68), 64, True), grid=64, seed=0)
def test_to_image_looks_up_pixel_centres(frame, grid, seed):
    low = torch.randn((2, 3, grid, grid), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows, columns = (torch.from_numpy(looked_up(frame, axis, grid)) for axis in (0, 1))
    torch.testing.assert_close(to_image(low, frame), rows @ low @ columns.T, atol=1e-9, rtol=0)
    torch.testing.assert_close(to_image(low.float(), frame).double(), to_image(low, frame), atol=2e-4, rtol=0)


@settings(deadline=None, max_examples=60)
@given(frame=small_frames, grid=grids, seed=st.integers(0, 2**16))
@example(frame=Frame.of((5, 1), 64, True), grid=4, seed=0)  # a single column
@example(frame=Frame.of((2, 18), 64, True), grid=16, seed=0)  # as many cells as pixels in an axis, at another scale
def test_to_grid_gathers_means_and_what_they_lose(frame, grid, seed):
    """Brute force: means, and once more the means of what is missing when they are read back, one axis at a time."""
    masks = torch.randn((2, 3, *frame.size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows, columns = (window_means(frame, axis, grid) for axis in (0, 1))
    down, across = (looked_up(frame, axis, grid)[:, : len(means)] for axis, means in ((0, rows), (1, columns)))
    rows, columns = (
        torch.from_numpy(means + means @ (np.eye(means.shape[1]) - reading @ means))
        for means, reading in ((rows, down), (columns, across))
    )
    expected = torch.full((2, 3, grid, grid), OUTSIDE, dtype=torch.float64)
    expected[..., : len(rows), : len(columns)] = rows @ masks @ columns.T
    torch.testing.assert_close(to_grid(masks, frame, grid), expected, atol=1e-9, rtol=0)
    assert torch.equal(to_grid(masks, frame, grid)[0, 0] == OUTSIDE, padding(frame, grid))


@settings(deadline=None, max_examples=40)
@given(size=st.tuples(st.integers(1, 90), st.integers(1, 90)), grid=st.sampled_from([16, 32]))
def test_equals_interpolate_where_the_image_fills_the_frame(size, grid):
    """Without padding the scale is the ratio of the two sizes, which is what `F.interpolate` takes."""
    frame = Frame.of(size, 64, keep_aspect=False)
    rng = torch.Generator().manual_seed(0)
    low = torch.randn((1, 3, grid, grid), generator=rng)
    torch.testing.assert_close(to_image(low, frame), F.interpolate(low, size=size, mode="bilinear"))


def test_equals_interpolate_of_the_content_where_whole_cells_cover_it():
    frame = Frame.of((90, 180), 64, keep_aspect=True)
    assert frame.content == (32, 64)
    low = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(to_image(low, frame), F.interpolate(low[..., :8, :], size=(90, 180), mode="bilinear"))


@settings(deadline=None, max_examples=40)
@given(frame=small_frames, grid=grids)
def test_nothing_predicted_for_the_padding_reaches_the_image(frame, grid):
    low = torch.randn((grid, grid), generator=torch.Generator().manual_seed(0))
    other = torch.where(padding(frame, grid), 1e6, low)
    assert torch.equal(to_image(low, frame), to_image(other, frame))


@settings(deadline=None, max_examples=30)
@given(frame=frames, grid=st.sampled_from([16, 64]))
def test_ramp_over_the_grid_gives_each_pixel_its_place_in_the_frame(frame, grid):
    """Cells that hold their centre's coordinate are read as `points` of the pixel's centre, between cell centres."""
    cell = frame.side / grid
    centres = (torch.arange(grid, dtype=torch.float64) + 0.5) * cell
    y, x = pixel_centres(frame)
    mapped = frame.points(torch.stack([x, y], -1))
    for axis, ramp in ((0, centres.expand(grid, grid)), (1, centres[:, None].expand(grid, grid))):
        touched = frame.touched(grid, grid)[1 - axis]
        expected = mapped[..., axis].clamp(cell / 2, (touched - 0.5) * cell)
        torch.testing.assert_close(to_image(ramp, frame), expected, atol=1e-8, rtol=0)


@settings(deadline=None, max_examples=25)
@given(size=st.tuples(st.integers(2, 64), st.integers(2, 64)), name=st.sampled_from(["sam", "sam2"]))
def test_resized_ramp_holds_image_coordinates(segmenters, size, name):
    """An enlarged image of its own coordinates shows, at each frame pixel, where that pixel's centre lies in it."""
    segmenter = segmenters[name]
    frame = segmenter.frame_of(size)
    y, x = pixel_centres(frame)
    pixels = torch.stack([x / size[1], y / size[0], torch.zeros_like(x)])[None].float()
    seen = (segmenter.preprocess(pixels) * segmenter.pixel_std + segmenter.pixel_mean)[0].double()
    rows, columns = frame.content
    across, down = torch.arange(columns) + 0.5, torch.arange(rows) + 0.5
    grid = torch.stack(torch.meshgrid(across.double(), down.double(), indexing="xy"), -1)
    back = frame.points_back(grid)
    for axis, length in ((0, size[1]), (1, size[0])):
        expected = back[..., axis].clamp(0.5, length - 0.5)
        torch.testing.assert_close(seen[axis, :rows, :columns] * length, expected, atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=25)
@given(size=st.tuples(st.integers(65, 300), st.integers(65, 300)), name=st.sampled_from(["sam", "sam2"]))
def test_reduced_image_is_gathered_around_the_same_centres(segmenters, size, name):
    """Brute force of the reducing resize: triangles around the mapped centres, one frame pixel to each side."""
    segmenter = segmenters[name]
    frame = segmenter.frame_of(size)
    pixels = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0))
    seen = (segmenter.preprocess(pixels) * segmenter.pixel_std + segmenter.pixel_mean)[0].double()
    rows, columns = (torch.from_numpy(gathered(frame, axis, frame.side)) for axis in (0, 1))
    expected = rows @ pixels[0].double() @ columns.T
    torch.testing.assert_close(seen[:, : len(rows), : len(columns)], expected, atol=1e-4, rtol=0)


def blob(frame: Frame, kind: str, area: float, aspect: float, turn: float, x: float, y: float) -> torch.Tensor:
    """An object bool `(H, W)` of about `area` frame pixels: an ellipse, a turned rectangle or a lobed shape."""
    rows, columns = pixel_centres(frame)
    place = frame.points(torch.stack([columns, rows], -1)) - torch.tensor([frame.content[1] * x, frame.content[0] * y])
    along = (place[..., 0] * math.cos(turn) + place[..., 1] * math.sin(turn)) / aspect
    beside = (place[..., 1] * math.cos(turn) - place[..., 0] * math.sin(turn)) * aspect
    if kind == "rectangle":
        return torch.maximum(along.abs(), beside.abs()) < math.sqrt(area) / 2
    radius, angle = torch.hypot(along, beside), torch.atan2(beside, along)
    lobes = 0.3 if kind == "lobes" else 0.0
    return radius < math.sqrt(area / math.pi / (1 + lobes**2 / 2)) * (1 + lobes * torch.sin(3 * angle))


def there_and_back(mask: torch.Tensor, frame: Frame, grid: int) -> torch.Tensor:
    """A mask after the way to a grid over the frame and back, as logits of -10 and 10."""
    return to_image(to_grid(20.0 * mask.float() - 10.0, frame, grid), frame) > 0


def within(mask: torch.Tensor, frame: Frame, grid: int) -> torch.Tensor:
    """The part of an image mask that keeps a cell of a grid away from the image's edges."""
    for axis in (0, 1):
        cell = math.ceil(frame.side / grid / frame.content[axis] * frame.size[axis])
        mask = mask.narrow(axis, cell, max(0, mask.shape[axis] - 2 * cell))
    return mask


def frame_area(mask: torch.Tensor, frame: Frame) -> float:
    """Area of an image mask in frame pixels."""
    return float(mask.sum()) * frame.content[0] / frame.size[0] * frame.content[1] / frame.size[1]


def assert_kept(mask: torch.Tensor, frame: Frame, grid: int) -> None:
    """IoU >= 0.99 for what keeps a cell away from the image's edges, where that has more than 32 x 32 cells."""
    cell = frame.side / grid
    assume(frame_area(within(mask, frame, grid), frame) > (32 * cell) ** 2)
    back = there_and_back(mask, frame, grid)
    assert iou(within(back, frame, grid), within(mask, frame, grid)) >= 0.99


objects = {
    "kind": st.sampled_from(["ellipse", "rectangle", "lobes"]),
    "aspect": st.floats(0.6, 1.6),
    "turn": st.floats(0, math.pi),
    "x": shares,
    "y": shares,
}


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(20, 900), st.integers(20, 900)), keep=st.booleans(), side=st.floats(34, 80), **objects
)
def test_mask_survives_the_way_to_the_frame_and_back(size, keep, side, **shape):
    """Objects above 32 x 32 frame pixels, in images smaller and larger than the frame of 256."""
    frame = Frame.of(size, 256, keep)
    assert_kept(blob(frame, area=side**2, **shape), frame, 256)


# Objects of half the frame fit into images that are nearly square, and near their middle.
middle = {"x": st.floats(0.35, 0.65), "y": st.floats(0.35, 0.65)}


@settings(deadline=None, max_examples=25)
@given(
    long=st.integers(80, 900),
    ratio=st.floats(0.8, 1.0),
    upright=st.booleans(),
    keep=st.booleans(),
    side=st.floats(140, 200),
    **objects | middle,
)
def test_mask_survives_the_way_to_the_decoders_grid_and_back(long, ratio, upright, keep, side, **shape):
    """The decoder's grid has cells of 4 x 4 frame pixels: there the same holds from 32 x 32 cells."""
    size = (long, round(long * ratio)) if upright else (round(long * ratio), long)
    frame = Frame.of(size, 256, keep)
    assert_kept(blob(frame, area=side**2, **shape), frame, 64)


@pytest.mark.parametrize(
    ("size", "keep", "area", "aspect", "x", "y"),
    [((80, 116), False, 136.0**2, 1.25, 0.65625, 0.5), ((480, 548), True, 146.9**2, 1 / 0.7782, 0.3306, 0.5168)],
)
def test_objects_that_a_plain_mean_spoils(size, keep, area, aspect, x, y):
    """With means over triangles of two cells, as antialiased resizing takes them, these keep less than 0.99."""
    frame = Frame.of(size, 256, keep)
    mask = blob(frame, "rectangle", area, aspect, 0.0, x, y)
    assert frame_area(mask, frame) > (4 * 32) ** 2
    rows, columns = (torch.from_numpy(gathered(frame, axis, 64)).float() for axis in (0, 1))
    plain = F.pad(rows @ (20.0 * mask.float() - 10.0) @ columns.T, (0, 64 - len(columns), 0, 64 - len(rows)))
    assert iou(to_image(plain, frame) > 0, mask) < 0.99
    assert iou(there_and_back(mask, frame, 64), mask) >= 0.995


@settings(deadline=None, max_examples=60)
@given(length=st.integers(20, 900), grid=st.sampled_from([16, 64]), at=shares)
def test_straight_edges_stay_where_they_are(length, grid, at):
    """To 0.06 of a cell, whole pixels included, and at the image's edge, where one value has to do, to half a cell."""
    frame, cell = Frame.of((length, 1), 64, keep_aspect=False), length / grid
    position = round(at * length)
    mask = (torch.arange(length) < position)[:, None]
    moved = abs(int(there_and_back(mask, frame, grid).sum()) - position) / cell
    assert moved <= (0.06 if 2 * cell <= position <= length - 2 * cell else 0.5) + 1e-9


@pytest.mark.parametrize(("diameter", "least"), [(2.0, 0.65), (3.0, 0.8), (5.0, 0.9)])
def test_objects_of_a_few_cells_do_not_fade(diameter, least):
    """Mean IoU of discs in all positions relative to cells of 16 pixels."""
    frame, found = Frame.of((256, 256), 256, True), []
    y, x = pixel_centres(frame)
    for place in itertools.product(range(0, 16, 3), repeat=2):
        mask = torch.hypot(x - 120.5 - place[0], y - 120.5 - place[1]) < 8 * diameter
        found.append(iou(there_and_back(mask, frame, 16), mask))
    assert np.mean(found) > least


def test_decoders_grid_is_too_coarse_for_smaller_objects():
    """What the decoder's resolution costs: an object of 32 x 32 frame pixels, 8 x 8 cells, cannot keep 0.99."""
    shape = {"kind": "rectangle", "area": 34.0**2, "aspect": 1.0, "turn": 0.4, "x": 0.5, "y": 0.5}
    mask = blob(SAM, **shape)
    assert frame_area(mask, SAM) > 32**2
    assert iou(there_and_back(mask, SAM, 256), mask) >= 0.99
    assert 0.9 < iou(there_and_back(mask, SAM, 64), mask) < 0.99


@settings(deadline=None, max_examples=40)
@given(frame=st.builds(Frame.of, st.tuples(st.integers(100, 500), st.integers(100, 500)), st.just(256), st.booleans()))
def test_soft_logits_keep_their_centroid(frame):
    """A smooth bump through the decoder's grid and back moves by less than a hundredth of a cell."""
    y, x = pixel_centres(frame)
    place = frame.points(torch.stack([x, y], -1))
    centre = torch.tensor([frame.content[1] * 0.45, frame.content[0] * 0.55], dtype=torch.float64)
    radius = min(frame.content) / 5
    assume(radius > 12)
    logits = 20 * torch.exp(-0.5 * ((place - centre) / radius).square().sum(-1)) - 10
    back = to_image(to_grid(logits, frame, 64), frame)
    for coordinate in (x, y):
        before, after = ((coordinate * v.sigmoid()).sum() / v.sigmoid().sum() for v in (logits, back))
        cell = 4 * max(frame.size[0] / frame.content[0], frame.size[1] / frame.content[1])
        assert abs(before - after) < 0.01 * cell


def test_resampling_is_differentiable():
    frame = Frame.of((7, 5), 16, True)
    low, masks = torch.rand(2, 4, 4, dtype=torch.float64), torch.rand(2, 7, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: to_image(value, frame), (low.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda value: to_grid(value, frame, 4), (masks.requires_grad_(),))


def test_no_masks_give_no_masks():
    assert to_image(torch.zeros(2, 0, 3, 64, 64), SAM).shape == (2, 0, 3, 431, 853)
    assert to_grid(torch.zeros(2, 0, 431, 853), SAM, 64).shape == (2, 0, 64, 64)

"""Prompts that a decoder must never see, and the many that it must."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewlabel.core.errors import ModelError
from fewlabel.sam.checks import PAD_LABEL, check_prompts
from fewlabel.sam.frames import Frame

FRAME = Frame.of((30, 50), 64, keep_aspect=True)  # 30 rows, 50 columns


@pytest.mark.parametrize(
    ("prompts", "count"),
    [
        ({}, 1),
        ({"points": torch.zeros(2, 0, 1, 2)}, 0),
        ({"points": torch.zeros(2, 0, 0, 2)}, 0),
        ({"boxes": torch.zeros(2, 0, 4), "masks": torch.zeros(2, 0, 7, 7)}, 0),
        ({"points": torch.tensor([50.0, 30.0]).expand(2, 3, 1, 2)}, 3),  # edges of the image belong to it
        ({"boxes": torch.tensor([0.0, 0.0, 50.0, 30.0]).expand(2, 4, 4)}, 4),
        ({"masks": torch.zeros(2, 2, 30, 50)}, 2),
        ({"masks": torch.zeros(2, 2, 16, 16)}, 2),
    ],
)
def test_number_of_prompts(prompts, count):
    assert check_prompts(2, FRAME, **prompts, mask_size=16) == count


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"points": torch.zeros(2, 1, 0, 2)}, "K = 0"),
        ({"masks": torch.full((2, 1, 16, 16), -torch.inf)}, "no finite logits"),
        ({"masks": torch.ones(2, 1, 30, 50, dtype=torch.bool)}, "torch.bool are no finite logits"),
        ({"points": torch.ones(2, 1, 1, 2), "labels": torch.full((2, 1, 1), 7)}, "point_labels hold 7"),
        ({"points": torch.zeros(2, 1, 1, 3)}, "ending in 2"),
        ({"boxes": torch.zeros(2, 1, 5)}, "ending in 4"),
        ({"points": torch.zeros(3, 1, 1, 2)}, "B = 2"),
        ({"points": torch.tensor([51.0, 3.0])}, r"point \(51, 3\) of prompt 0 lies outside.*50 columns and 30 rows"),
        ({"points": torch.tensor([3.0, -0.5])}, r"point \(3, -0.5\)"),
        ({"points": torch.tensor([torch.nan, 3.0])}, r"point \(nan, 3\) of prompt 0 is not finite"),
        ({"points": torch.tensor([3.0, torch.inf])}, r"\(3, inf\) of prompt 0 is not finite"),
        ({"boxes": torch.tensor([3.0, 3.0, 9.0, 31.0])}, r"box corner \(9, 31\)"),
        ({"boxes": torch.tensor([9.0, 3.0, 3.0, 8.0])}, r"box \(9.0, 3.0, 3.0, 8.0\).*swapped"),
        ({"boxes": torch.tensor([3.0, 3.0, 9.0, 3.0])}, "is empty"),
        ({"masks": torch.zeros(2, 1, 50, 30)}, "masks are 50x30.*30x50 pixels.*16x16 cells"),
        ({"labels": torch.ones(2, 1, 1)}, "do not belong to points None"),
    ],
)
def test_wrong_prompts_are_named(prompts, words):
    for kind, axes in (("points", (2, 1, 1, 2)), ("boxes", (2, 1, 4))):
        if kind in prompts and prompts[kind].ndim == 1:
            prompts = {kind: prompts[kind].expand(axes)}
    with pytest.raises(ModelError, match=words):
        check_prompts(2, FRAME, **prompts, mask_size=16)


def test_padding_may_lie_anywhere():
    points = torch.tensor([[[[3.0, 3.0], [torch.nan, 999.0]]]])
    assert check_prompts(1, FRAME, points, torch.tensor([[[1, PAD_LABEL]]])) == 1
    with pytest.raises(ModelError, match="999"):
        check_prompts(1, FRAME, points, torch.tensor([[[1, 0]]]))


@given(st.floats(-100, 200), st.floats(-100, 200), st.integers(0, 4), st.integers(0, 2))
def test_exactly_the_points_of_the_image_pass(x, y, p, k):
    """The one that lies elsewhere is found wherever it stands, and named."""
    points = torch.full((2, 5, 3, 2), 9.5, dtype=torch.float64)
    points[1, p, k] = torch.tensor([x, y], dtype=torch.float64)
    if 0 <= x <= 50 and 0 <= y <= 30:
        assert check_prompts(2, FRAME, points) == 5
    else:
        with pytest.raises(ModelError, match=f"of prompt {p} lies outside the image: image 1 "):
            check_prompts(2, FRAME, points)

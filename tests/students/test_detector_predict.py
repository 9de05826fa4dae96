import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewlabel.core.errors import DataError
from fewlabel.core.masks import component_boxes, components
from fewlabel.students.detector.network import Detector
from fewlabel.students.detector.predict import MOST, detect

FRAME = 128


class Tracer(Detector):
    """A detector without learning: it reports the exact boxes of what is positive in its frame, brighter = surer."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.frame = FRAME
        self.device = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, logits = torch.zeros(len(images), 200, 4), torch.full((len(images), 200), -50.0)
        for k, image in enumerate(images[:, 0].numpy()):
            labels, count = components(image > 0)
            boxes[k, :count] = torch.from_numpy(component_boxes(labels, count))
            logits[k, :count] = torch.tensor([image[labels == n + 1].max() for n in range(count)])
        return boxes, logits


@st.composite
def images(draw):
    """Targets of up to 24 pixels, at most one in each cell of 27, on an image that is larger than they are."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.tuples(st.integers(26, 300), st.integers(26, 300)))
    image = np.full((height, width), -1.0, np.float32)
    truth = []
    for row in range(0, height, 27):
        for column in range(0, width, 27):
            if rng.random() < 0.3:
                h, w = rng.integers(1, 25, 2)
                top, left = row + rng.integers(0, 26 - h + 1), column + rng.integers(0, 26 - w + 1)
                box = tuple(int(v) for v in (left, top, min(left + w, width), min(top + h, height)))
                if box[0] < box[2] and box[1] < box[3]:
                    image[box[1] : box[3], box[0] : box[2]] = len(truth) % 7 + 1
                    truth.append(box)
    return image, truth


@settings(max_examples=60, deadline=None)
@given(images())
def test_every_target_of_an_image_of_any_size_has_one_box(case):
    image, truth = case
    found = detect(Tracer(), image, least=0.5)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert sorted(map(tuple, found.boxes.tolist())) == sorted(truth)[:MOST]
    assert (np.diff(found.scores) <= 0).all()
    for box, score in zip(found.boxes.astype(int), found.scores, strict=True):
        assert score == pytest.approx(1 / (1 + np.exp(-image[box[1], box[0]])))


def test_images_of_a_few_pixels_pass():
    for size in [(1, 1), (1, 40), (3, 2)]:
        assert detect(Tracer(), np.full(size, -1.0, np.float32), least=0.5).boxes.shape == (0, 4)


def test_a_frame_at_a_time_gives_the_same():
    rng = np.random.default_rng(0)
    image = np.where(rng.random((200, 260)) < 0.001, 3.0, -1.0).astype(np.float32)
    whole, single = (detect(Tracer(), image, batch=batch) for batch in (8, 1))
    np.testing.assert_array_equal(whole.boxes, single.boxes)
    np.testing.assert_array_equal(whole.scores, single.scores)


def test_only_the_surest_boxes_are_kept_and_low_scores_go():
    image = np.full((FRAME, FRAME), -1.0, np.float32)
    image[::10, ::10] = np.arange(1, 170, dtype=np.float32).reshape(13, 13) / 100
    found = detect(Tracer(), image)
    assert len(found.boxes) == MOST
    assert found.scores[-1] == pytest.approx(1 / (1 + np.exp(-0.70)), abs=1e-5)
    assert len(detect(Tracer(), image, least=1 / (1 + np.exp(-1.595))).boxes) == 10


def test_a_network_is_run_in_evaluation_mode_and_left_as_it_was():
    torch.manual_seed(0)
    model = Detector(48).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = np.random.default_rng(0).normal(size=(60, 75)).astype(np.float32)
    found = detect(model, image)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert 0 < len(found.boxes) <= MOST
    assert (found.boxes >= 0).all() and (found.boxes <= np.array([75, 60, 75, 60])).all()
    # A flipped view has negative strides.
    np.testing.assert_array_equal(detect(model, image[::-1]).boxes, detect(model, image[::-1].copy()).boxes)


def test_what_is_not_a_plane_is_refused():
    with pytest.raises(DataError, match=r"\(1, 4, 4\)"):
        detect(Tracer(), np.zeros((1, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"\(0, 4\)"):
        detect(Tracer(), np.zeros((0, 4), np.float32))

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from fewlabel.core.errors import RunError
from fewlabel.report.contents import Example
from fewlabel.report.plots import hero


def test_the_wide_picture_is_wide_and_the_same_each_time(tmp_path: Path, example_maker: Callable[..., Example]) -> None:
    example = example_maker(0, (120, 200))
    first, second = tmp_path / "docs" / "hero.png", tmp_path / "again.png"
    for path in (first, second):
        hero(example, path, prior=2, prior_name="blob", dpi=60)
    assert first.read_bytes() == second.read_bytes()
    picture = np.asarray(PilImage.open(first).convert("RGB"))
    assert picture.shape == (186, 720, 3)
    fifths = np.array_split(picture[60:], 5, axis=1)
    assert all(len(np.unique(part.reshape(-1, 3), axis=0)) > 10 for part in fifths)


def test_an_example_without_a_pseudo_label_is_refused(tmp_path: Path, example_maker: Callable[..., Example]) -> None:
    example = example_maker(0, (64, 64))
    with pytest.raises(RunError, match="unlabelled training image"):
        hero(replace(example, target=None), tmp_path / "a.png")
    with pytest.raises(RunError, match="prior 4"):
        hero(example, tmp_path / "a.png", prior=4)
    assert not list(tmp_path.iterdir())

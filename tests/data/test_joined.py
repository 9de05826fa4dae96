"""A data set joined by further images without labels."""

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.data.readers.contract import objects, pictures, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import Radiometry
from fewlabel.data.joined import JoinedDataset
from fewlabel.data.readers import open_folder


@pytest.fixture
def joined(tmp_path):
    save_pictures(tmp_path / "set" / "images")
    (tmp_path / "set" / "masks").mkdir()
    for id in "ab":
        Pillow.fromarray(objects(id)[0].any(axis=0)).save(tmp_path / f"set/masks/{id}.png")
    save_pictures(tmp_path / "more" / "night", ".bmp")
    Pillow.new("L", (9, 9), 3).save(tmp_path / "more/night/a.png")
    options = {"strict": False, "radiometry": Radiometry(policy="min-max")}
    return JoinedDataset(open_folder(tmp_path / "set", **options), open_folder(tmp_path / "more", **options))


def test_both_are_there_under_ids_of_their_own(joined):
    further = [f"unlabelled__night__{id}" for id in "abc"]
    assert joined.train_ids == ("a", "b", "c", *further) and joined.test_ids == ()
    assert (joined.name, joined.classes) == ("set", ("target",))
    image = joined.image(further[1])
    assert image.id == further[1] and image.radiometry.policy == "min-max"
    np.testing.assert_array_equal(image.pixels[0], pictures()["b"])
    assert joined.unlabelled("b").image.id == "b" and joined.unlabelled(further[2]).image.id == further[2]


def test_only_the_data_set_has_labels(joined):
    assert [joined.has_mask(id) for id in ("a", "c", "unlabelled__night__a")] == [True, False, False]
    assert len(joined.labelled("a").instances) == 2
    with pytest.raises(DataError):
        joined.labelled("unlabelled__night__b")


def test_groups_and_problems_say_where_they_come_from(joined):
    assert joined.group("a") == "a" and joined.group("unlabelled__night__b") == "unlabelled__night"
    assert [problem.id for problem in joined.problems] == ["unlabelled__night__a"]

"""Folders of images without labels."""

import numpy as np
import pytest
from PIL import Image as Pillow
from tests.data.readers.contract import pictures, save_pictures

from fewlabel.core.errors import DataError
from fewlabel.data.readers import find_layout, open_folder


def test_images_of_all_folders(tmp_path):
    save_pictures(tmp_path)
    save_pictures(tmp_path / "night" / "2", ".bmp")
    (tmp_path / ".hidden").mkdir()
    save_pictures(tmp_path / ".hidden")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    layout = find_layout(tmp_path)
    data = open_folder(tmp_path)
    assert (layout.format, layout.others) == ("plain", ())
    assert data.train_ids == ("a", "b", "c", "night__2__a", "night__2__b", "night__2__c") and data.test_ids == ()
    np.testing.assert_array_equal(data.image("night__2__b").pixels[0], pictures()["b"])
    assert [data.group(id) for id in ("a", "night__2__a", "night__2__b")] == ["a", "night/2", "night/2"]
    assert not data.has_mask("a")
    with pytest.raises(DataError, match="has no labels: add them"):
        data.labelled("a")


def test_two_files_of_one_id(tmp_path):
    save_pictures(tmp_path)
    Pillow.new("L", (9, 9)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="a.jpg and a.png for the same id 'a'"):
        open_folder(tmp_path)
    assert [problem.id for problem in open_folder(tmp_path, strict=False).problems] == ["a"]


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="seems to hold no image"):
        open_folder(tmp_path)
    with pytest.raises(DataError, match="no data format 'coco3'; choose one of auto, "):
        open_folder(tmp_path, "coco3")
    with pytest.raises(DataError, match="holds no image: expected files"):
        open_folder(tmp_path, "plain")


def test_masks_beside_images_are_no_images(tmp_path):
    """The parts of StarDist's DSB 2018: neither the masks nor the test images may train."""
    for part in ("train", "test"):
        save_pictures(tmp_path / part / "images", ".tif")
        save_pictures(tmp_path / part / "masks", ".tif")
    assert find_layout(tmp_path).format == "plain"
    with pytest.raises(DataError, match="holds masks in test/masks/, which would count as images here") as caught:
        open_folder(tmp_path)
    assert "instances/PART" in str(caught.value) and str(caught.value).endswith(f"{tmp_path / 'test/images'}.")
    assert open_folder(tmp_path / "test" / "images").train_ids == ("a", "b", "c")


def test_folders_called_like_masks_may_hold_images(tmp_path):
    save_pictures(tmp_path / "masks")  # of faces, say
    Pillow.new("L", (9, 9)).save(tmp_path / "masks" / "other.png")
    (tmp_path / "images").mkdir()
    Pillow.new("L", (9, 9)).save(tmp_path / "images" / "else.png")
    assert len(open_folder(tmp_path, "plain").train_ids) == 5

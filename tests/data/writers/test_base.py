"""Which image files are copied and which are written anew."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image
from fewlabel.data.pixels import read_image
from fewlabel.data.writers.base import save_image

VALUES = np.random.default_rng(0).integers(0, 255, (8, 9), dtype=np.uint8)


def test_a_file_that_holds_the_image_is_copied(tmp_path):
    path = tmp_path / "a.JPG"
    Pillow.fromarray(VALUES).save(path, "JPEG")
    copy = save_image(read_image(path), tmp_path / "out")
    assert copy.name == "a.jpg" and copy.read_bytes() == path.read_bytes()


def test_changed_pixels_are_written_anew(tmp_path):
    path = tmp_path / "a.jpg"
    Pillow.fromarray(VALUES).save(path)
    image = read_image(path)
    changed = replace(image, pixels=255 - image.pixels)
    made = save_image(changed, tmp_path / "out")
    assert made.name == "a.png"
    np.testing.assert_array_equal(read_image(made).pixels, changed.pixels)
    path.unlink()
    np.testing.assert_array_equal(read_image(save_image(image, tmp_path / "gone")).pixels, image.pixels)


def test_a_picture_that_viewers_turn_is_written_as_it_was_read(tmp_path):
    exif = Pillow.Exif()
    exif[274] = 6
    Pillow.fromarray(VALUES).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    made = save_image(image, tmp_path / "out")
    assert made.name == "a.png"
    np.testing.assert_array_equal(np.asarray(Pillow.open(made)), image.pixels[0])


def test_two_channels_have_no_file(tmp_path):
    with pytest.raises(DataError, match="has 2 channels"):
        save_image(Image("a", np.zeros((2, 8, 8), np.float32)), tmp_path)

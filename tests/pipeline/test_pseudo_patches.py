"""Patches of pseudo-labelled images: the same crops whether an image is held or read by windows."""

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from fewlabel.core.masks import encode, encode_many
from fewlabel.core.types import Instances
from fewlabel.data.augment import AugmentConfig, crop_batch
from fewlabel.data.readers import open_folder
from fewlabel.labels.soft import write_soft
from fewlabel.labels.store import LabelStore, PseudoLabel
from fewlabel.pipeline.inputs import pseudo_loaders

SIZE = (90, 70)


@pytest.mark.parametrize("unsure", [False, True])
def test_crops_of_a_large_pseudo_labelled_image(tmp_path, monkeypatch, unsure):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/a.tif", rng.integers(900, 1200, SIZE).astype(np.uint16), tile=(16, 16))
    accepted = np.zeros((0 if unsure else 3, *SIZE), bool)
    for mask in accepted:
        row, column = rng.integers(0, 60, 2)
        mask[row : row + 4, column : column + 6] = True
    ignored = [encode(ndimage.binary_dilation(rng.random(SIZE) < 0.01)) for _ in range(2)]  # a target, and the band
    rejected = Instances.from_masks(np.zeros((0, *SIZE), bool), size=SIZE)
    found = Instances(
        SIZE,
        tuple(encode_many(accepted)),
        np.zeros(len(accepted), np.int64),
        np.ones(len(accepted), np.float32),
        np.zeros((len(accepted), 4), np.float32),
    )
    label = PseudoLabel("a", SIZE, found, tuple(ignored), rejected, ("seen",) * (len(accepted) + 1))
    assert label.unsure == unsure
    store = LabelStore(tmp_path / "labels")
    store.add(label)
    write_soft(tmp_path / "soft/a.png", rng.random(SIZE))
    (load,) = pseudo_loaders(open_folder(tmp_path / "images", "plain"), store, ["a"], tmp_path / "soft")
    whole = load()
    monkeypatch.setattr("fewlabel.data.large.HELD", 100)
    large = load()
    assert isinstance(whole.image, np.ndarray) and not isinstance(large.image, np.ndarray)
    for seed in range(12):
        one, other = (
            crop_batch([patch], 32, np.random.default_rng(seed), AugmentConfig(), objects=True)
            for patch in (whole, large)
        )
        np.testing.assert_allclose(one.images, other.images, atol=1e-5, rtol=0)
        for plane in ("targets", "weights", "soft", "objects"):
            np.testing.assert_array_equal(getattr(one, plane), getattr(other, plane))
        assert not unsure or not other.weights.any()

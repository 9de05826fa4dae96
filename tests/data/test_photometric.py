import pytest
import torch

from fewlabel.data.photometric import vary


@pytest.fixture
def images():
    return torch.rand(6, 3, 40, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_varies_within_the_range_and_leaves_the_input(images, strength):
    before = images.clone()
    varied = vary(images, strength, 1)
    assert varied.shape == images.shape
    assert torch.equal(images, before)
    assert 0 <= varied.min() <= varied.max() <= 1
    changes = (varied - images).flatten(1).abs().mean(1)
    assert len(changes.unique()) > 2


def test_depends_on_the_seed_alone_and_keeps_the_global_generator(images):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = vary(images, "strong", 5)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(8)
    assert torch.equal(vary(images, "strong", 5), one)
    assert not torch.equal(vary(images, "strong", 6), one)


def test_no_image_is_no_image():
    assert vary(torch.zeros(0, 3, 8, 8), "strong", 0).shape == (0, 3, 8, 8)

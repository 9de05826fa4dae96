from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.students import STUDENTS, create
from fewlabel.students.predict import predict
from fewlabel.training.checkpoint import load_weights, save_weights
from fewlabel.training.losses import bce, soft_iou

SIZES = [(1, 1), (2, 33), (37, 61), (64, 48), (96, 1)]


def count_macs(model: nn.Module, size: int, *, published: bool) -> int:
    """Multiply-accumulates of all convolutions on one image.

    ``published`` charges a transposed convolution its whole kernel at each output pixel, as the usual counters do; the
    arithmetic really done is its whole kernel at each input pixel.
    """
    total = 0

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.ConvTranspose2d):
            per_input = module.weight[0].numel()
            per_output = module.weight[:, 0].numel()
            total += output.numel() * per_output if published else inputs[0].numel() * per_input

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 1, size, size))
    for handle in handles:
        handle.remove()
    return total


def settled(name: str, seed: int = 0) -> nn.Module:
    """A student in eval mode whose running statistics are no longer those of the start."""
    torch.manual_seed(seed)
    model = create(name).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 1, 64, 64))
    return model.eval()


class StudentContract:
    """What every student keeps to; a subclass names it and gives its figures."""

    name: str
    parameters: int
    macs: int
    published: ClassVar[dict[str, float]] = {}

    @pytest.mark.parametrize("size", SIZES)
    def test_logits_have_the_size_of_the_image(self, size: tuple[int, int]):
        logits = settled(self.name)(torch.randn(2, 1, *size))
        assert logits.shape == (2, 1, *size)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()

    @pytest.mark.parametrize("size", SIZES)
    def test_padding_repeats_the_border(self, size: tuple[int, int]):
        model, image = settled(self.name), torch.randn(1, 1, *size)
        rows = torch.arange(-(-size[0] // 16) * 16).clamp(max=size[0] - 1)
        columns = torch.arange(-(-size[1] // 16) * 16).clamp(max=size[1] - 1)
        whole = model(image[..., rows[:, None], columns])
        torch.testing.assert_close(model(image), whole[..., : size[0], : size[1]])

    def test_images_of_a_batch_do_not_touch_each_other(self):
        model, images = settled(self.name), torch.randn(3, 1, 40, 56)
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)

    def test_every_parameter_receives_a_gradient(self):
        model = settled(self.name).train()
        model(torch.randn(2, 1, 48, 48)).square().mean().backward()
        for name, value in model.named_parameters():
            assert value.grad is not None and torch.isfinite(value.grad).all(), name
            assert (value.grad != 0).any(), name

    def test_untrained_it_calls_almost_nothing_a_target(self):
        torch.manual_seed(0)
        probability = create(self.name)(torch.randn(2, 1, 64, 64)).sigmoid()
        assert 0.005 < probability.mean() < 0.04

    def test_weights_come_from_the_global_generator(self):
        first, second, third = (settled(self.name, seed) for seed in (1, 1, 2))
        image = torch.randn(1, 1, 32, 32)
        assert torch.equal(first(image), second(image))
        assert not torch.equal(first(image), third(image))

    def test_weights_survive_a_file(self, tmp_path: Path):
        source, target = settled(self.name, 1), settled(self.name, 2)
        save_weights(tmp_path / "weights.safetensors", source, {})
        load_weights(tmp_path / "weights.safetensors", target)
        image = torch.randn(1, 1, 37, 61)
        assert torch.equal(source(image), target(image))

    def test_exports_with_free_height_and_width(self):
        model = settled(self.name)
        # Above one stride: the smallest maps of 1x1 have a memory layout of their own, which the exporter singles out.
        sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        program = torch.export.export(model, (torch.randn(1, 1, 52, 70),), dynamic_shapes=({**sides},)).module()
        for size in [(52, 70), (37, 61), (96, 64)]:
            image = torch.randn(1, 1, *size)
            torch.testing.assert_close(program(image), model(image), rtol=1e-4, atol=1e-4)

    def test_learns_a_small_target(self):
        torch.manual_seed(0)
        model = create(self.name).train()
        target = torch.zeros(2, 1, 48, 48)
        target[0, 0, 20:28, 30:37] = target[1, 0, 34:41, 9:17] = 1
        images, ones = torch.randn(2, 1, 48, 48) + 4 * target, torch.ones_like(target)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(60):
            logits = model(images)
            loss = bce(logits, target, ones) + soft_iou(logits, target, ones)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = model(images) > 0
        assert (found & (target > 0)).sum() / (found | (target > 0)).sum() > 0.6

    def test_bfloat16_stays_near_float32(self):
        model, image = settled(self.name), torch.randn(2, 1, 64, 64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(image).float()
        full = model(image)
        assert (half - full).square().mean() < 0.03 * full.var()

    def test_size_and_arithmetic(self):
        model = create(self.name)
        assert sum(value.numel() for value in model.parameters()) == self.parameters
        assert count_macs(model, 256, published=False) == self.macs
        if self.published:
            assert self.parameters == pytest.approx(self.published["parameters"], rel=0.02)
            assert count_macs(model, 256, published=True) == pytest.approx(self.published["macs"], rel=0.02)


class TestACM(StudentContract):
    name = "acm"
    parameters = 397_593
    macs = 343_294_592
    published: ClassVar = {"parameters": 0.398e6, "macs": 0.40e9}


class TestUNet(StudentContract):
    name = "unet"
    parameters = 203_329
    macs = 352_321_536


def test_create_names_the_students_there_are():
    with pytest.raises(RecipeError, match="'resnet'; choose one of acm, unet"):
        create("resnet")
    assert set(STUDENTS) == {"acm", "unet"}


def test_macs_of_known_layers():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1))
    assert count_macs(model, 8, published=False) == 4 * 4 * 4 * 9 + 4 * 4 * (4 * 2 * 16)
    assert count_macs(model, 8, published=True) == 4 * 4 * 4 * 9 + 8 * 8 * (4 * 2 * 16)


@pytest.mark.parametrize("name", sorted(STUDENTS))
def test_predict_gives_probabilities_and_leaves_the_mode(name: str):
    model = settled(name).train()
    image = np.random.default_rng(0).normal(size=(45, 70)).astype(np.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    probabilities = predict(model, image)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert probabilities.shape == (45, 70)
    assert probabilities.dtype == np.float32
    expected = F.sigmoid(model.eval()(torch.from_numpy(image)[None, None]))[0, 0].detach().numpy()
    np.testing.assert_array_equal(probabilities, expected)
    # A flipped view has negative strides.
    np.testing.assert_array_equal(predict(model, image[::-1]), predict(model, image[::-1].copy()))


def test_predict_refuses_what_is_not_a_plane():
    with pytest.raises(DataError, match=r"\(1, 4, 4\)"):
        predict(create("unet"), np.zeros((1, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"\(0, 4\)"):
        predict(create("unet"), np.zeros((0, 4), np.float32))

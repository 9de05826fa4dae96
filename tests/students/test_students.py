import copy
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.core.errors import DataError, RecipeError
from fewlabel.deploy.export import export_student
from fewlabel.deploy.runtime import OnnxStudent
from fewlabel.deploy.verify import RELATIVE
from fewlabel.students import STUDENTS, create
from fewlabel.students.alcnet import SHIFTS, local_contrast
from fewlabel.students.istdunet import GROUPS, RADIX, GlobalSkip, SplitAttention
from fewlabel.students.layers import ConvolutionalAttention, DeeplySupervised, enlarge, initialise
from fewlabel.students.predict import predict
from fewlabel.students.rdian import direction_attention
from fewlabel.training.checkpoint import load_weights, save_weights
from fewlabel.training.losses import bce, soft_iou

SIZES = [(1, 1), (2, 33), (37, 61), (64, 48), (96, 1)]


def count_macs(model: nn.Module, size: int, *, published: bool) -> int:
    """Multiply-accumulates of all convolutions of a network on the device "meta", where nothing is computed.

    ``published`` is how thop counts, the counter behind the published figures: a transposed convolution is charged its
    whole kernel at each output pixel, where the arithmetic really done is its whole kernel at each input pixel; and a
    batch normalisation four operations a value, although at inference it folds into the convolution before it.
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
        elif isinstance(module, nn.BatchNorm2d) and published:
            total += 4 * output.numel()

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    model.eval()(torch.zeros(1, 1, size, size, device="meta"))
    for handle in handles:
        handle.remove()
    return total


@cache
def _settled(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = create(name).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 1, 64, 64))
    return model.eval()


def settled(name: str) -> nn.Module:
    """A student of one's own, in eval mode, whose running statistics are no longer those of the start."""
    return copy.deepcopy(_settled(name))


def all_logits(model: nn.Module, images: Tensor) -> Tensor:
    """What is supervised in training (B, K, H, W)."""
    return model.head_logits(images) if isinstance(model, DeeplySupervised) else model(images)


class StudentContract:
    """What every student keeps to; a subclass names it and gives its figures."""

    name: str
    parameters: int
    macs: int
    published: ClassVar[dict[str, float]] = {}
    multiple = 16
    steps = 60

    @pytest.mark.parametrize("size", SIZES)
    def test_logits_have_the_size_of_the_image(self, size: tuple[int, int]):
        logits = settled(self.name)(torch.randn(2, 1, *size))
        assert logits.shape == (2, 1, *size)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()

    @pytest.mark.parametrize("size", SIZES[:3])
    def test_padding_repeats_the_border(self, size: tuple[int, int]):
        model, image = settled(self.name), torch.randn(1, 1, *size)
        rows = torch.arange(-(-size[0] // self.multiple) * self.multiple).clamp(max=size[0] - 1)
        columns = torch.arange(-(-size[1] // self.multiple) * self.multiple).clamp(max=size[1] - 1)
        whole = model(image[..., rows[:, None], columns])
        torch.testing.assert_close(model(image), whole[..., : size[0], : size[1]])

    def test_images_of_a_batch_do_not_touch_each_other(self):
        model, images = settled(self.name), torch.randn(3, 1, 40, 56)
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)

    def test_every_parameter_receives_a_gradient(self):
        model = settled(self.name).train()
        all_logits(model, torch.randn(2, 1, 48, 48)).square().mean().backward()
        for name, value in model.named_parameters():
            assert value.grad is not None and torch.isfinite(value.grad).all(), name
            assert (value.grad != 0).any(), name

    def test_untrained_it_calls_almost_nothing_a_target(self):
        torch.manual_seed(0)
        logits = all_logits(create(self.name), torch.randn(2, 1, 64, 64))
        assert (logits.sigmoid().mean((0, 2, 3)) > 0.005).all()
        assert (logits.sigmoid().mean((0, 2, 3)) < 0.04).all()

    def test_weights_come_from_the_global_generator(self):
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(create(self.name).state_dict())
        kernels = [name for name, value in states[0].items() if value.unique().numel() > 2]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert kernels and not any(torch.equal(states[0][name], states[2][name]) for name in kernels)

    def test_weights_survive_a_file(self, tmp_path: Path):
        source, target = settled(self.name), create(self.name).eval()
        save_weights(tmp_path / "weights.safetensors", source, {})
        load_weights(tmp_path / "weights.safetensors", target)
        image = torch.randn(1, 1, 37, 61)
        assert torch.equal(source(image), target(image))

    def test_learns_a_small_target(self):
        torch.manual_seed(0)
        model = create(self.name).train()
        target = torch.zeros(2, 1, 32, 32)
        target[0, 0, 12:20, 18:25] = target[1, 0, 20:27, 5:13] = 1
        images, ones = torch.randn(2, 1, 32, 32) + 4 * target, torch.ones_like(target)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(self.steps):
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
        with torch.device("meta"):
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


class TestALCNet(StudentContract):
    name = "alcnet"
    parameters = 426_223
    macs = 295_075_840
    published: ClassVar = {"parameters": 0.427e6, "macs": 0.38e9}
    steps = 12


class TestRDIAN(StudentContract):
    name = "rdian"
    parameters = 216_587
    macs = 3_677_389_056
    published: ClassVar = {"parameters": 0.217e6, "macs": 3.72e9}
    multiple = 2
    steps = 16


class TestISTDUNet(StudentContract):
    name = "istdunet"
    parameters = 2_750_401
    macs = 7_711_285_120
    published: ClassVar = {"parameters": 2.752e6, "macs": 7.94e9}
    multiple = 8
    steps = 8


class DeepContract(StudentContract):
    """A student with several heads in training."""

    heads: int

    @pytest.mark.parametrize("size", [(1, 1), (37, 61)])
    def test_first_of_its_heads_predicts(self, size: tuple[int, int]):
        model, images = settled(self.name), torch.randn(2, 1, *size)
        logits = model.head_logits(images)
        assert logits.shape == (2, self.heads, *size)
        assert torch.equal(logits[:, :1], model(images))
        assert all(not torch.equal(logits[:, :1], logits[:, k : k + 1]) for k in range(1, self.heads))


class TestDNANet(DeepContract):
    name = "dnanet"
    parameters = 4_692_120
    macs = 13_905_986_944
    published: ClassVar = {"parameters": 4.697e6, "macs": 14.26e9}
    steps = 8
    heads = 4


class TestMSHNet(DeepContract):
    name = "mshnet"
    parameters = 4_061_881
    macs = 5_999_442_048
    published: ClassVar = {"parameters": 4.066e6, "macs": 6.11e9}
    steps = 8
    heads = 5


def test_create_names_the_students_there_are():
    with pytest.raises(RecipeError, match="'resnet'; choose one of acm, alcnet, dnanet, istdunet, mshnet, rdian, unet"):
        create("resnet")
    assert set(STUDENTS) == {"acm", "alcnet", "dnanet", "istdunet", "mshnet", "rdian", "unet"}


@pytest.mark.slow  # ten seconds each; tests/deploy exports ACM and UNet every time
@pytest.mark.parametrize("name", sorted(set(STUDENTS) - {"acm", "unet"}))
def test_exports_to_onnx_with_free_batch_height_and_width(name: str, tmp_path: Path):
    model = settled(name)
    student = OnnxStudent(export_student(model, tmp_path / "student.onnx", name=name, metadata={}))
    for shape in [(2, 1, 72, 104), (1, 1, 135, 96), (3, 1, 50, 73), (1, 1, 1, 1), (1, 1, 17, 16)]:
        images = torch.randn(shape)
        with torch.no_grad():
            expected = model(images).numpy()
        got = student.logits(images.numpy())
        assert got.shape == shape
        np.testing.assert_allclose(got, expected, atol=1e-4 + RELATIVE * float(np.abs(expected).max()), rtol=0)


def test_macs_of_known_layers():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1),
    ).to("meta")
    assert count_macs(model, 8, published=False) == 4 * 4 * 4 * 9 + 4 * 4 * (4 * 2 * 16)
    assert count_macs(model, 8, published=True) == 4 * 4 * 4 * 9 + 4 * 4 * 4 * 4 + 8 * 8 * (4 * 2 * 16)


@pytest.mark.parametrize("name", ["mshnet", "unet"])
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


def test_local_contrast_agrees_with_a_loop():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 9, 7)).astype(np.float32))
    found = local_contrast(x)
    directions = [(-1, -1), (-1, 0), (-1, 1), (0, 1)]

    def value(channel: int, row: int, column: int) -> float:
        return x[0, channel, min(max(row, 0), 8), min(max(column, 0), 6)].item()

    for channel, r, c in np.ndindex(2, 9, 7):
        centre = value(channel, r, c)
        expected = max(
            min(
                (value(channel, r + d * i, c + d * j) - centre) * (value(channel, r - d * i, c - d * j) - centre)
                for i, j in directions
            )
            for d in SHIFTS
        )
        assert found[0, channel, r, c].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_local_contrast_finds_spots_and_refuses_edges():
    spot, edge = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    spot[0, 0, 8, 8] = 2
    edge[..., 8:] = 2
    assert local_contrast(spot)[0, 0, 8, 8] == 4
    assert (local_contrast(spot) > 0).sum() == 1
    assert (local_contrast(edge) <= 0).all()
    assert (local_contrast(torch.full((1, 1, 5, 5), 3.0)) == 0).all()


def test_direction_attention_agrees_with_fixed_kernels():
    """The published form: eight 5x5 kernels with 1 in the middle and -1 at the rim, opposite ones multiplied."""
    rim = [(0, 0), (0, 2), (0, 4), (2, 4), (4, 4), (4, 2), (4, 0), (2, 0)]
    kernels = torch.zeros(8, 1, 5, 5)
    kernels[:, 0, 2, 2] = 1
    for kernel, (row, column) in zip(kernels, rim, strict=True):
        kernel[0, row, column] = -1
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, 6, 8)).astype(np.float32))
    maps = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernels)
    expected = torch.sigmoid((maps[:, :4] * maps[:, 4:]).sum(1, keepdim=True))
    torch.testing.assert_close(direction_attention(images), expected)


def test_split_attention_weights_its_splits_per_channel():
    torch.manual_seed(0)
    layer = SplitAttention(16).eval()
    x = torch.randn(2, 16, 6, 5)
    maps = F.relu(layer.norm(layer.split(x))).reshape(2, RADIX, 16, 6, 5)
    scores = layer.weights(maps.sum(1).mean((2, 3), keepdim=True))
    expected = torch.zeros(2, 16, 6, 5)
    width = 16 // GROUPS
    for channel in range(16):
        group, place = divmod(channel, width)
        own = torch.stack([scores[:, (group * RADIX + split) * width + place] for split in range(RADIX)])
        for split, weight in enumerate(own.softmax(0)):
            expected[:, channel] += weight * maps[:, split, channel]
    torch.testing.assert_close(layer(x), expected)


def test_global_skip_normalises_over_pixels_then_units():
    torch.manual_seed(0)
    layer = GlobalSkip(8).eval()
    x = torch.randn(2, 8, 5, 6)
    shares = layer.keys(layer.before(x)).flatten(2).double().softmax(2)
    shares = (shares / shares.sum(1, keepdim=True)).float().reshape(2, -1, 5, 6)
    torch.testing.assert_close(layer(x), x + layer.after(layer.values(shares)))


def test_attention_only_weakens_and_follows_its_gates():
    torch.manual_seed(0)
    layer, x = ConvolutionalAttention(32), torch.randn(2, 32, 7, 9)
    out = layer(x)
    assert (out.abs() <= x.abs()).all() and (out * x >= 0).all()
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(layer(x), x / 4)


def test_enlarging_does_not_depend_on_the_size_of_the_image():
    x = torch.randn(1, 2, 12, 12)
    torch.testing.assert_close(enlarge(x, 4)[..., :32, :32], enlarge(x[..., :9, :9], 4)[..., :32, :32])


def test_a_head_needs_a_bias():
    head = nn.Conv2d(2, 1, 1, bias=False)
    with pytest.raises(ValueError, match="needs a bias"):
        initialise(nn.Sequential(head), head)

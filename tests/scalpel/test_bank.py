"""The operator bank: names, scale, export."""

import io

import numpy as np
import onnxruntime
import pytest
import torch

from fewlabel.core.errors import ModelError
from fewlabel.core.radiometry import standardise
from fewlabel.scalpel.bank import OPERATOR_NAMES, OperatorBank, compress, reference_target


def scene(size=48, height=60.0, seed=0):
    """A noisy sloped background of 14-bit values with one target in the middle."""
    rng = np.random.default_rng(seed)
    offsets = np.arange(size) - size // 2
    target = height * np.exp(-0.5 * (offsets[:, None] ** 2 + offsets[None] ** 2) / 1.5**2)
    pixels = 6000 + 2.0 * np.arange(size)[:, None] + rng.normal(0, 4, (size, size)) + target
    return torch.from_numpy(pixels.astype(np.float32))[None, None]


def test_names_and_shape():
    assert len(OPERATOR_NAMES) == 4
    assert OperatorBank()(torch.zeros(2, 1, 7, 5)).shape == (2, 4, 7, 5)


def test_reference_target_reads_its_height_in_every_channel():
    target = reference_target()
    middle = target.shape[-1] // 2
    assert target.max() == 5
    response = OperatorBank()(target)[0, :, middle, middle]
    torch.testing.assert_close(response, torch.full((4,), float(np.log(6.0))), rtol=1e-5, atol=1e-5)


def test_channels_are_comparable_and_peak_on_the_target():
    response = OperatorBank()(standardise(scene())).detach()
    peaks = response.amax(dim=(2, 3))[0]
    assert float(peaks.max() / peaks.min()) < 2
    for channel in range(4):
        row, column = divmod(int(response[0, channel].argmax()), 48)
        assert max(abs(row - 24), abs(column - 24)) <= 1


def test_gain_and_offset_of_the_raw_image_do_not_matter():
    bank, raw = OperatorBank(), scene()
    torch.testing.assert_close(bank(standardise(2.5 * raw + 300)), bank(standardise(raw)), atol=2e-2, rtol=2e-2)


def test_scale_is_saved_and_learnt_scalars_do_not_move_it():
    bank = OperatorBank()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.5)
    copy = OperatorBank()
    copy.load_state_dict(bank.state_dict())
    image = standardise(scene())
    assert torch.equal(copy(image), bank(image))
    assert torch.equal(copy.scale, OperatorBank().scale)


def test_compress_is_odd_and_has_slope_one_at_zero():
    values = torch.tensor([-9.0, -1e-3, 0.0, 1e-3, 9.0], requires_grad=True)
    compressed = compress(values)
    torch.testing.assert_close(compressed.detach().flip(0), -compressed.detach())
    compressed.sum().backward()
    assert torch.isfinite(values.grad).all()
    assert compressed[-1].item() == pytest.approx(np.log(10))


def test_colour_images_are_refused():
    with pytest.raises(ModelError, match="single-channel"):
        OperatorBank()(torch.zeros(1, 3, 8, 8))


@pytest.mark.filterwarnings("ignore")
def test_exports_to_onnx():
    bank = OperatorBank().eval()
    example = standardise(scene())
    buffer = io.BytesIO()
    torch.onnx.export(bank, (example,), buffer, dynamo=False, opset_version=17, input_names=["image"])
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": example.numpy()})
    np.testing.assert_allclose(got, bank(example).detach().numpy(), atol=1e-3)

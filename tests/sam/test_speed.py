"""Quickened encoders: the same interface, nearly the same features."""

import pytest
import torch

from fewlabel.core.errors import ModelError
from fewlabel.sam.families import load
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.sam.speed import quicken

FAMILIES = ("sam", "sam2")


def frozen(tiny_models, family: str) -> PromptableSegmenter:
    return PromptableSegmenter(tiny_models[family](), family, f"tiny {family}").eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_features_are_float32_and_within_its_rounding(tiny_models, family: str) -> None:
    plain, quick = frozen(tiny_models, family), frozen(tiny_models, family)
    quicken(quick, "bf16")
    assert {p.dtype for p in quick.model.vision_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in quick.model.mask_decoder.parameters()} == {torch.float32}
    images = torch.rand(2, 3, 50, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for exact, rounded in zip(plain.encode(images).features, quick.encode(images).features, strict=True):
            assert rounded.dtype == torch.float32
            # Eight bits of mantissa, a few layers: below 3 %, and not zero, or nothing was computed in bf16.
            assert 0 < (exact - rounded).norm() / exact.norm() < 0.03


def test_masks_of_nano_sam_agree() -> None:
    plain, quick = load("nano"), load("nano")
    quicken(quick, "bf16")
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    disc = ((rows - 70) ** 2 + (columns - 50) ** 2 < 20**2).float()
    image, point = (0.2 + 0.6 * disc)[None, None], torch.tensor([[[[50.5, 70.5]]]])
    with torch.no_grad():
        first, second = (s.decode(s.encode(image), point, multimask=False)[0][0, 0, 0] > 0 for s in (plain, quick))
    assert (first & second).sum() / (first | second).sum() > 0.99
    assert (first & (disc > 0)).sum() > 0.2 * disc.sum()  # not two equal masks of nothing


def test_what_is_left_alone(tiny_models) -> None:
    plain, same = frozen(tiny_models, "sam"), frozen(tiny_models, "sam")
    quicken(same)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(plain.encode(images).features[0], same.encode(images).features[0])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_features_agree(tiny_models, precision: str) -> None:
    plain, quick = frozen(tiny_models, "sam"), frozen(tiny_models, "sam")
    quicken(plain, precision)
    quicken(quick, precision, compile=True)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact, compiled = plain.encode(images).features[0], quick.encode(images).features[0]
    assert (exact - compiled).norm() / exact.norm() < (1e-5 if precision == "fp32" else 0.03)


def test_what_cannot_be_quickened_is_named(tiny_models) -> None:
    with pytest.raises(ModelError, match="choose fp32 or bf16"):
        quicken(frozen(tiny_models, "sam"), "fp8")
    trained = frozen(tiny_models, "sam").requires_grad_(True)
    with pytest.raises(ModelError, match="freeze it first"):
        quicken(trained, "bf16")

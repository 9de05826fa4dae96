"""Faster encoders: bfloat16 weights and `torch.compile`, chosen by name and undone by loading again."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter

Precision = Literal["fp32", "bf16"]


def quicken(segmenter: PromptableSegmenter, precision: Precision = "fp32", compile: bool = False) -> None:
    """Make a frozen encoder faster, in place; prompts and masks stay in float32.

    The encoder does nearly all the work of `encode`, and its features lose little in bfloat16 (8 bits of mantissa),
    whereas mask logits are compared with 0 at the end. Attention already runs in torch's fused kernels
    (`scaled_dot_product_attention`), which transformers chooses for every family.

    Args:
        segmenter: The model; features come out as float32 as before.
        precision: "bf16" stores the encoder's weights and computes it in bfloat16; "fp32" leaves it as it is.
        compile: Compile the encoder with torch.compile for the image sizes that it meets; the first call of each batch
            size takes minutes for a large model.

    Raises:
        ModelError: The precision has no such name, or the encoder is to be trained, whose small steps bfloat16 rounds
            away.
    """
    if precision not in ("fp32", "bf16"):
        raise ModelError(f"{precision!r} is no precision of an encoder; choose fp32 or bf16.")
    encoder: nn.Module = segmenter.model.vision_encoder
    if precision == "bf16":
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise ModelError(
                f"The encoder of {segmenter.name} is to be trained, which bfloat16 weights cannot; freeze it first, "
                "or train in autocast."
            )
        encoder.to(torch.bfloat16)
        encoder.register_forward_pre_hook(_to_half)
        encoder.register_forward_hook(_to_float)
    if compile:
        encoder.compile()


def _to_half(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pixels in the dtype of the weights."""
    return tuple(cast(value, torch.bfloat16) for value in inputs)


def _to_float(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    """Every tensor of an encoder's output in float32; the output keeps its class."""
    for name, value in output.items():
        output[name] = cast(value, torch.float32)
    return output


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in another dtype, also within tuples and lists; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(cast(item, dtype) for item in value)
    return value

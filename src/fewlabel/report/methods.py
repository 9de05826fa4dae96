"""Names that a reader sees in the place of the methods' short ones."""

from collections.abc import Mapping

METHODS: Mapping[str, str] = {
    "labels-only": "Labels only",
    "synthetic-pretrained": "Synthetic pre-training, then labels",
    "mean-teacher": "Mean teacher",
    "teacher": "Teacher (SAM + adapter)",
    "fewlabel": "fewlabel",
    "guided-distillation": "Guided distillation",
    "smaller": "Smaller student",
    "all-labels": "All labels",
}
"""Methods with a name of their own."""

ADAPTERS: Mapping[str, str] = {
    "none": "no adapter",
    "lora": "LoRA",
    "conv-lora": "Conv-LoRA",
    "sam-adapter": "SAM-Adapter",
    "conv-experts": "convolution experts",
}
"""What `adapter-…` puts in the place of the operator adapter."""


def method_name(method: str) -> str:
    """The name that a reader sees.

    Args:
        method: A key of `METHODS`, `adapter-…` (fewlabel with another adapter), `fewlabel-minus-…` (fewlabel without
            one of its parts), or anything else.

    Returns:
        The name; `method` itself where none is known.
    """
    if method in METHODS:
        return METHODS[method]
    for prefix, word in (("adapter-", "with"), ("fewlabel-minus-", "without")):
        if part := method.removeprefix(prefix) if method.startswith(prefix) else "":
            return f"fewlabel {word} {ADAPTERS.get(part, part.replace('-', ' '))}"
    return method

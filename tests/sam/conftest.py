"""The three models that every promise of the interface is tested on."""

import importlib.util
from pathlib import Path

import pytest

from fewlabel.sam.nano import build_nano
from fewlabel.sam.promptable import PromptableSegmenter

_SPEC = importlib.util.spec_from_file_location("tiny_sam", Path(__file__).with_name("tiny_sam.py"))
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)


@pytest.fixture(scope="session")
def tiny_models():
    """Builders of the tiny transformers models, by family."""
    return {"sam": tiny.tiny_sam, "sam2": tiny.tiny_sam2}


@pytest.fixture(scope="session")
def segmenters() -> dict[str, PromptableSegmenter]:
    """Frozen models in evaluation mode; tests must not change them."""
    models = {
        "sam": PromptableSegmenter(tiny.tiny_sam(), "sam", "tiny SAM"),
        "sam2": PromptableSegmenter(tiny.tiny_sam2(), "sam2", "tiny SAM 2"),
        "nano": build_nano(0),
    }
    return {name: model.eval().requires_grad_(False) for name, model in models.items()}

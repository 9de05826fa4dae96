"""The models that every promise of the interface is tested on: a tiny one of each family, and nano-SAM."""

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
    """Builders of the tiny models, by family."""
    return tiny.BUILDERS


@pytest.fixture(scope="session")
def segmenters() -> dict[str, PromptableSegmenter]:
    """Frozen models in evaluation mode; tests must not change them."""
    models = {name: PromptableSegmenter(build(), name, f"tiny {name}") for name, build in tiny.BUILDERS.items()}
    models["nano"] = build_nano(0)
    return {name: model.eval().requires_grad_(False) for name, model in models.items()}

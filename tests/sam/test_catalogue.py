"""The figures of `fewlabel sam list` are those of the networks, and nothing heavy is needed to print them."""

import subprocess
import sys

import pytest
import torch
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2Model,
    Sam2VisionConfig,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)

from fewlabel.sam.catalogue import ENTRIES, LICENCES, MODEL_TYPES, RESTRICTIONS, find
from fewlabel.sam.describe import _family_of, _variant
from fewlabel.sam.families import load
from fewlabel.sam.family import FAMILIES
from fewlabel.sam.mobile import MobileSamConfig, MobileSamModel
from fewlabel.sam.sizes import HIERA

GLOBAL_BLOCKS = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 32: [7, 15, 23, 31]}
DISTINCT = {(entry.family, entry.encoder): entry for entry in ENTRIES if entry.alias != "nano"}


def published(family, encoder):
    """The network of a published size on PyTorch's meta device, without weights."""
    channels, blocks = encoder
    if family == "mobile_sam":
        return MobileSamModel(MobileSamConfig())
    if family == "sam3_tracker":
        return Sam3TrackerModel(Sam3TrackerConfig())
    if family == "sam2":
        (_, depths), hiera = next(
            item for item in HIERA.items() if item[0][0] == channels and sum(item[0][1]) == blocks
        )
        widths = [channels * 2**stage for stage in range(4)]
        backbone = Sam2HieraDetConfig(
            hidden_size=channels,
            num_attention_heads=hiera.heads,
            blocks_per_stage=list(depths),
            embed_dim_per_stage=widths,
            num_attention_heads_per_stage=[hiera.heads * 2**stage for stage in range(4)],
            global_attention_blocks=list(hiera.global_blocks),
            window_size_per_stage=list(hiera.windows),
            window_positional_embedding_background_size=[14, 14] if channels == 112 else [7, 7],
        )
        vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=widths[::-1])
        return Sam2Model(Sam2Config(vision_config=vision))
    vision = {
        "hidden_size": channels,
        "num_hidden_layers": blocks,
        "num_attention_heads": 12 if blocks == 12 else 16,
        "global_attn_indexes": GLOBAL_BLOCKS[blocks],
    }
    if family == "sam":
        return SamModel(SamConfig(vision_config=vision))
    return SamHQModel(SamHQConfig(vision_config=vision, mask_decoder_config={"vit_dim": channels}))


@pytest.mark.parametrize("entry", DISTINCT.values(), ids=lambda entry: entry.alias)
def test_parameters_and_input_are_those_of_the_network(entry):
    with torch.device("meta"):
        model = published(entry.family, entry.encoder)
    alike = [other for other in ENTRIES if (other.family, other.encoder) == (entry.family, entry.encoder)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert {other.parameters for other in alike} == {parameters}
    assert {other.side for other in alike} == {model.prompt_encoder.input_image_size}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert _family_of(shapes) == entry.family
    assert _variant(entry.family, shapes) == (" or ".join(other.title for other in alike), entry.side)


def test_nano_is_what_the_list_says():
    entry, segmenter = find("nano"), load("nano")
    assert sum(parameter.numel() for parameter in segmenter.parameters()) == entry.parameters
    assert (segmenter.family, segmenter.frame) == (entry.family, entry.side)


def test_names_are_distinct_and_every_family_has_a_licence():
    aliases = [entry.alias for entry in ENTRIES]
    sources = [entry.source for entry in ENTRIES if entry.source]
    assert len(set(aliases + sources)) == len(aliases) + len(sources)
    assert set(LICENCES) == set(FAMILIES) == set(MODEL_TYPES.values()) == {entry.family for entry in ENTRIES}
    assert {family for family, licence in LICENCES.items() if licence != "Apache-2.0"} == set(RESTRICTIONS)
    assert find("sam2.1-tiny") is find("facebook/sam2.1-hiera-tiny") is not None
    assert find("sam4") is None


def test_list_needs_no_torch():
    code = "import sys, fewlabel.cli as c\ntry:\n    c.app(['sam', 'list'])\nexcept SystemExit:\n    pass\n"
    code += "print('HEAVY', sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in result.stdout, result.stderr
    for entry in ENTRIES:
        assert f" {entry.alias} " in result.stdout
    assert "93.7 M" in result.stdout and "1008 px" in result.stdout and "SAM License of 2025-11-19" in result.stdout

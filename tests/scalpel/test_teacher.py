import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from fewlabel.core.errors import ModelError
from fewlabel.core.files import write_json
from fewlabel.core.radiometry import to_unit
from fewlabel.data.tiles import TILE
from fewlabel.sam.nano import build_nano
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.adapter import AdapterConfig, choose_levels
from fewlabel.scalpel.teacher import CARD, ScalpelTeacher, TeacherConfig, load_teacher
from fewlabel.scalpel.transfer import predict
from fewlabel.training.checkpoint import save_weights, weights_sha256
from fewlabel.training.loop import WEIGHTS

_SPEC = importlib.util.spec_from_file_location("tiny_sam", Path(__file__).parents[1] / "sam" / "tiny_sam.py")
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

BUILDERS = {
    "sam": lambda: PromptableSegmenter(tiny.tiny_sam(), "sam", "tiny SAM"),
    "sam2": lambda: PromptableSegmenter(tiny.tiny_sam2(), "sam2", "tiny SAM 2"),
    "nano": lambda: build_nano(0),
}
SMALL = TeacherConfig(width=8, projected=4)


def stirred(teacher):
    """The teacher with every zero-initialised weight replaced, so that all its paths take part."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return teacher


def picture(side=64, count=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 1, side, side)).astype(np.float32))


@pytest.mark.parametrize("family", BUILDERS)
def test_logits_start_at_the_prior_and_have_the_images_size(family):
    teacher = ScalpelTeacher(SMALL, BUILDERS[family]()).eval()
    images = picture(count=2)
    with torch.no_grad():
        logits, coarse = teacher.both(images)
        assert logits.shape == images.shape
        assert coarse.shape[:2] == (2, 1)
        assert coarse.shape[2] == coarse.shape[3] == teacher.segmenter.mask_size
        assert logits.mean().item() == pytest.approx(-4, abs=0.5)
        torch.testing.assert_close(teacher(images), logits, rtol=0, atol=0)
        torch.testing.assert_close(teacher(images[1:]), logits[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", BUILDERS)
def test_what_trains_gets_a_gradient_and_the_rest_of_sam_none(family):
    teacher = stirred(ScalpelTeacher(SMALL, BUILDERS[family]())).train()
    assert not any(module.training for module in teacher.segmenter.modules())
    logits, coarse = teacher.both(picture(count=2))
    (logits.square().mean() + coarse.square().mean()).backward()
    decoder = "segmenter.model.mask_decoder."
    for name, parameter in teacher.named_parameters():
        if name.startswith("segmenter.") and not name.startswith(decoder):
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
    for part in (teacher.bank, teacher.adapter, teacher.head, teacher.coarse):
        missing = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing
    hyper = [p.grad for name, p in teacher.named_parameters() if name.startswith(decoder + "transformer")]
    assert hyper
    assert all(grad is not None and grad.isfinite().all() for grad in hyper)
    unused = [p for name, p in teacher.named_parameters() if "iou_prediction_head" in name]
    assert unused
    assert not any(p.requires_grad for p in unused)


def test_a_frozen_decoder_stays_frozen():
    teacher = ScalpelTeacher(TeacherConfig(width=8, train_decoder=False), BUILDERS["sam2"]())
    assert not any(parameter.requires_grad for parameter in teacher.segmenter.parameters())


def test_targets_of_two_by_two_pixels_are_found_to_the_pixel():
    """The full-resolution path can tell such a target from its neighbours: fit one image."""
    bare = SMALL.model_copy(update={"adapter": None, "train_decoder": False})
    teacher = ScalpelTeacher(bare, BUILDERS["sam2"]())
    images, target = 0.3 * picture(64, 1, 3), torch.zeros(1, 1, 64, 64)
    for row, column in ((10, 11), (40, 21), (33, 50)):
        target[..., row : row + 2, column : column + 2] = 1
    images = images + 5 * target
    optimiser = torch.optim.AdamW([p for p in teacher.parameters() if p.requires_grad], lr=1e-2)
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 60)
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(teacher(images), target, pos_weight=torch.tensor(20.0)).backward()
        optimiser.step()
    with torch.no_grad():
        found = teacher.eval()(images) > 0
    assert torch.equal(found, target > 0)


@pytest.mark.parametrize("changed", ["fine detail", "operator scalars", "adapter", "sam decoder"])
def test_every_part_has_a_say(changed):
    teacher = stirred(ScalpelTeacher(SMALL, BUILDERS["nano"]())).eval()
    images = picture(64)
    with torch.no_grad():
        before = teacher(images)
        if changed == "fine detail":
            images = images.clone()
            images[0, 0, 30, 30] += 1.0
        elif changed == "operator scalars":
            teacher.bank.operators[0].size_logits += torch.tensor([2.0, 0.0, -2.0])
        elif changed == "adapter":
            teacher.adapter.adapters[-1].up.weight += 0.1
        else:
            teacher.segmenter.model.mask_decoder.upscale_conv2.weight *= 2
        assert (teacher(images) - before).abs().max() > 1e-4


def test_auto_levels_leave_out_the_finest_grids():
    nano = BUILDERS["nano"]()
    levels = choose_levels(nano.block_channels)
    assert len(levels) == 4
    assert ScalpelTeacher(SMALL, nano).adapter.levels == levels[1:], "the grid of two-pixel cells is left out"
    explicit = TeacherConfig(width=8, adapter=AdapterConfig(levels=(0, 2)))
    assert ScalpelTeacher(explicit, BUILDERS["nano"]()).adapter.levels == (0, 2)
    assert ScalpelTeacher(SMALL, BUILDERS["sam"]()).adapter.levels == (0, 1)


def test_without_an_adapter_the_teacher_works_too():
    teacher = ScalpelTeacher(TeacherConfig(width=8, adapter=None), BUILDERS["sam2"]()).eval()
    assert teacher.adapter is None
    with torch.no_grad():
        assert teacher(picture()).isfinite().all()


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ({"operators": ("blob_response",)}, 2),
        ({"operators": ("patch_contrast", "ring_top_hat")}, 3),
        ({"experts": "convolutions"}, 5),
        ({"experts": "none", "adapter": None}, 1),
        ({"experts": "none", "adapter": AdapterConfig(kind="lora")}, 1),
        ({"adapter": AdapterConfig(kind="conv-lora")}, 5),
        ({"adapter": AdapterConfig(kind="sam-adapter")}, 5),
        ({"adapter": AdapterConfig(gate="random")}, 5),
    ],
    ids=str,
)
def test_the_controls_of_an_ablation_train_and_come_back(tmp_path, options, inputs):
    config = TeacherConfig(width=4, projected=4, **options)
    teacher = stirred(ScalpelTeacher(config, BUILDERS["sam2"]())).train()
    images = picture(count=2)
    logits, coarse, embedding = teacher.outputs(images, logits_of=1)
    assert teacher.head.full.first.weight.shape[1] == inputs
    assert (logits.shape[0], coarse.shape[0], embedding.shape[0]) == (1, 2, 2)
    (logits.square().mean() + coarse.square().mean()).backward()
    for part in (teacher.bank, teacher.head, teacher.adapter):
        wanted = [] if part is None else [p for p in part.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in wanted)
    if teacher.adapter is not None:
        assert teacher.adapter.balance_loss().isfinite()
    write(teacher, tmp_path)
    back = load_teacher(tmp_path, BUILDERS["sam2"]())
    assert back.config == config
    with torch.no_grad():
        torch.testing.assert_close(back(images), teacher.eval()(images), rtol=0, atol=0)


def test_outputs_hold_what_the_losses_need():
    teacher = stirred(ScalpelTeacher(SMALL, BUILDERS["sam2"]())).eval()
    images = picture(count=3)
    with torch.no_grad():
        whole, part = teacher.outputs(images), teacher.outputs(images, logits_of=2)
        torch.testing.assert_close(part.logits, whole.logits[:2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(part.coarse, whole.coarse, rtol=0, atol=0)
        unadapted = teacher.segmenter.encode(to_unit(images)).features[-1]
        assert whole.embedding.shape == unadapted.shape
        assert not torch.allclose(whole.embedding, unadapted, atol=1e-3), "it is the adapted one"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"operators": ()}, "at least one of ring_top_hat"),
        ({"operators": ("blob_response", "blob_response")}, "each at most once"),
        ({"operators": ("sobel",)}, "ring_top_hat, patch_contrast"),
        ({"experts": "none"}, "adapter of kind experts needs experts"),
        ({"experts": "forests"}, "operators"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_in_the_recipe(options, said):
    with pytest.raises(ValidationError, match=said):
        TeacherConfig(**options)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = ScalpelTeacher(SMALL, BUILDERS["nano"]())
    second = ScalpelTeacher(SMALL, BUILDERS["nano"]())
    other = ScalpelTeacher(SMALL.model_copy(update={"seed": 1}), BUILDERS["nano"]())
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_sha256(first) == weights_sha256(second) != weights_sha256(other)
    assert weights_sha256(first.head) != weights_sha256(other.head)


def write(teacher, folder):
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, teacher, {})
    write_json(folder / CARD, teacher.card())


def test_a_stored_teacher_comes_back_and_holds_little_of_sam(tmp_path):
    teacher = stirred(ScalpelTeacher(SMALL, BUILDERS["sam2"]())).eval()
    write(teacher, tmp_path)
    back = load_teacher(tmp_path, BUILDERS["sam2"]())
    assert not back.training
    images = picture(count=2)
    with torch.no_grad():
        torch.testing.assert_close(back(images), teacher(images), rtol=0, atol=0)
    from safetensors import safe_open

    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        names = list(file.keys())
    assert not [name for name in names if ".vision_encoder." in name and name.endswith((".weight", ".bias"))]
    assert [name for name in names if name.startswith("adapter.")]
    assert [name for name in names if ".mask_decoder." in name]


def test_another_sam_is_refused(tmp_path):
    write(ScalpelTeacher(SMALL, BUILDERS["nano"]()), tmp_path)
    with pytest.raises(
        ModelError, match=r"teacher\.json belongs to a SAM 'nano' with weights \w{12}, got weights \w{12};"
    ):
        load_teacher(tmp_path, build_nano(1))


def test_a_folder_without_a_teacher_is_named(tmp_path):
    with pytest.raises(ModelError, match="holds no trained teacher"):
        load_teacher(tmp_path)
    (tmp_path / CARD).write_text(json.dumps({"config": {"sam": "nano", "depth": 3}, "sam_sha256": ""}))
    with pytest.raises(ModelError, match="holds no trained teacher"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 1, 64, 32), (1, 1, 30, 30), (64, 64)])
def test_wrong_shapes_are_refused(shape):
    teacher = ScalpelTeacher(SMALL, BUILDERS["sam2"]())
    with pytest.raises(ModelError, match="expected \\(B, 1, S, S\\)"):
        teacher(torch.zeros(shape))


def test_images_of_any_size_through_tiles():
    teacher = stirred(ScalpelTeacher(SMALL, BUILDERS["sam2"]()))
    image = picture(300)[0, 0, :120].numpy()
    view = predict(teacher, image, views="flips")
    assert view.probability.shape == view.spread.shape == (120, 300)
    assert np.isfinite(view.probability).all()
    assert view.probability.min() >= 0
    assert view.probability.max() <= 1
    assert view.spread.max() > 0
    whole = picture(TILE, seed=2)
    with torch.no_grad():
        expected = torch.sigmoid(teacher.eval()(whole))[0, 0].numpy()
    np.testing.assert_allclose(predict(teacher, whole[0, 0].numpy(), "one").probability, expected, atol=1e-6)

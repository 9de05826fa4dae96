"""The network: shapes, the library's loss, awkward batches, norms, and pretrained backbones."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from fewlabel.core.errors import DataError, ModelError
from fewlabel.data.views import View
from fewlabel.s4m import backbone as backbones
from fewlabel.s4m.backbone import FrozenBatchNorm
from fewlabel.s4m.network import ARCHITECTURES, InstanceSegmenter, NetworkConfig, library_config
from fewlabel.training.checkpoint import load_weights, save_weights

NANO = NetworkConfig(name="nano")
SIZES = {"resnet-50": 44.0, "swin-t": 47.4, "resnet-18": 12.7, "tiny": 0.52, "nano": 0.12}  # million parameters


def network(config=NANO, classes=3, seed=0, **options):
    torch.manual_seed(seed)
    return InstanceSegmenter(config, classes, **options)


def views(*counts, size=(64, 96), classes=3, seed=0):
    """Images with so many rectangles each, brighter than the ground."""
    rng = np.random.default_rng(seed)
    made = []
    for count in counts:
        image = rng.uniform(0, 0.5, (3, *size)).astype(np.float32)
        masks = np.zeros((count, *size), bool)
        for mask in masks:
            y, x = (int(rng.integers(0, side - 8)) for side in size)
            mask[y : y + int(rng.integers(3, 24)), x : x + int(rng.integers(3, 24))] = True
            image[:, mask] += 0.3
        kinds = torch.from_numpy(rng.integers(0, classes, count))
        made.append(View(torch.from_numpy(image), torch.from_numpy(masks), kinds, content=size))
    return made


def stacked(batch):
    return torch.stack([view.image for view in batch])


def loss_of(model, batch, seed=1):
    outputs = model(stacked(batch))
    torch.manual_seed(seed)
    return model.loss_terms(outputs, batch)


@pytest.mark.parametrize("size", [(64, 96), (70, 41), (33, 128), (8, 9)])
def test_shapes_for_any_size(size):
    model = network().eval()
    outputs = model(torch.rand(2, 3, *size))
    h, w = -(-size[0] // 4), -(-size[1] // 4)
    assert outputs.class_logits.shape == (2, 10, 4)
    assert outputs.mask_logits.shape == (2, 10, h, w)
    assert outputs.mask_features.shape == (2, 32, h, w)
    assert [tuple(layer.mask_logits.shape) for layer in outputs.auxiliary] == [(2, 10, h, w)]
    assert [tuple(layer.class_logits.shape) for layer in outputs.auxiliary] == [(2, 10, 4)]
    terms = loss_of(model.train(), views(2, 0, size=size) if min(size) > 8 else views(0, 0, size=size))
    assert all(torch.isfinite(value) for value in terms.values())


def test_one_small_image_can_be_trained_on():
    batch = views(1, size=(20, 20))
    loss_of(network().train(), batch)["loss"].backward()


def test_the_network_sees_the_library_s_pixels():
    """Colours are normalised as ImageNet's; the rest is the library's network."""
    model, image = network().eval(), torch.rand(1, 3, 64, 96)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        ours = model(image)
        theirs = model.network((image - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
    assert torch.equal(ours.class_logits, theirs.class_queries_logits)
    assert torch.equal(ours.mask_logits, theirs.masks_queries_logits)
    assert torch.equal(ours.mask_features, theirs.pixel_decoder_last_hidden_state)


def test_sizes_between_multiples_of_32_see_the_mean_colour_beyond():
    model, image = network().eval(), torch.rand(1, 3, 70, 41)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    padded = F.pad(image - mean, (0, 64 - 41, 0, 96 - 70)) + mean
    with torch.inference_mode():
        small, large = model(image), model(padded)
    assert torch.allclose(small.mask_logits, large.mask_logits[..., :18, :11], atol=1e-5)
    assert torch.allclose(small.mask_features, large.mask_features[..., :18, :11], atol=1e-5)


def test_loss_equals_the_library_s():
    model, batch = network(NetworkConfig(name="tiny")).train(), views(3, 0, 5)
    terms = loss_of(model, batch)
    torch.manual_seed(1)
    theirs = model.network(
        pixel_values=(stacked(batch) - model.pixel_mean) / model.pixel_deviation,
        mask_labels=[view.masks.float() for view in batch],
        class_labels=[view.classes for view in batch],
    ).loss
    assert terms["loss"] == theirs
    assert set(terms) == {"loss", "class", "mask", "dice"}
    assert torch.isclose(terms["class"] + terms["mask"] + terms["dice"], terms["loss"])


def test_loss_where_sides_are_no_multiples_of_four_looks_at_the_same_pixels():
    """A mask over an image of 70 x 41 pixels, continued to 72 x 44, is what the maps' 18 x 11 cells cover."""
    model, (view,) = network().train(), views(4, size=(70, 41))
    outputs = model(view.image[None])
    wider = View(F.pad(view.image, (0, 3, 0, 2)), F.pad(view.masks, (0, 3, 0, 2)), view.classes, content=(70, 41))
    torch.manual_seed(1)
    first = model.loss_terms(outputs, [view])
    torch.manual_seed(1)
    assert model.loss_terms(outputs, [wider])["loss"] == first["loss"]


@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (400, 1), (11, 30)])
def test_awkward_batches_have_finite_loss_and_gradients_everywhere(counts):
    """Nothing at all, one empty image, 400 objects, more objects than queries; DDP needs every gradient to be there."""
    model = network().train()
    loss_of(model, views(*counts))["loss"].backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and torch.isfinite(value.grad).all(), name
    assert any(value.grad.abs().max() > 0 for value in model.parameters())


def test_training_lowers_the_loss_and_finds_the_object():
    model, batch = network(classes=1, seed=2).train(), views(1, 2, size=(64, 64), classes=1, seed=5)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = float(loss_of(model, batch)["loss"].detach())
    for step in range(60):
        terms = loss_of(model, batch, seed=step)
        optimiser.zero_grad()
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert terms["loss"] < first / 3
    with torch.inference_mode():
        outputs = model.eval()(stacked(batch))
    best = outputs.class_logits[0].softmax(-1)[:, 0].argmax()
    mask = F.interpolate(outputs.mask_logits[:1, best, None], scale_factor=4, mode="bilinear")[0, 0] > 0
    truth = batch[0].masks[0]
    assert (mask & truth).sum() / (mask | truth).sum() > 0.5


def test_the_loss_under_autocast_is_in_float32():
    model, batch = network().train(), views(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(stacked(batch))
        terms = model.loss_terms(outputs, batch)
    assert outputs.mask_logits.dtype == outputs.class_logits.dtype == outputs.mask_features.dtype == torch.float32
    assert terms["loss"].dtype == torch.float32 and torch.isfinite(terms["loss"])
    terms["loss"].backward()


def test_padding_is_background():
    """A view larger than its content is asked to say nothing beyond it: its loss has a gradient there."""
    model, (view,) = network().train(), views(1, size=(64, 64))
    masks = view.masks.clone()
    masks[:, :, 32:] = False
    masks[0, 5, 5] = True
    padded = View(view.image, masks, view.classes, content=(64, 32))
    outputs = model(padded.image[None])
    outputs.mask_logits.retain_grad()
    model.loss_terms(outputs, [padded])["loss"].backward()
    assert outputs.mask_logits.grad[..., 8:].abs().sum() > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_of_the_configurations(name):
    with torch.device("meta"):
        count = sum(value.numel() for value in InstanceSegmenter(NetworkConfig(name=name), 3).network.parameters())
    assert count / 1e6 == pytest.approx(SIZES[name], rel=0.01)


def test_the_largest_configuration_is_the_paper_s():
    config = library_config(NetworkConfig(), 8)
    paper = {
        "num_queries": 100, "hidden_dim": 256, "feature_size": 256, "mask_feature_size": 256, "num_attention_heads": 8,
        "dim_feedforward": 2048, "dropout": 0.0, "decoder_layers": 10, "encoder_layers": 6, "no_object_weight": 0.1,
        "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "train_num_points": 12544, "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75, "num_labels": 8,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in paper} == paper
    bottleneck = config.backbone_config
    assert (list(bottleneck.depths), bottleneck.layer_type, bottleneck.downsample_in_bottleneck) == (
        [3, 4, 6, 3], "bottleneck", False,
    )  # fmt: skip


def test_queries_can_be_chosen_and_the_seed_decides_the_weights():
    model = network(NetworkConfig(name="nano", queries=7))
    assert model(torch.rand(1, 3, 64, 64)).class_logits.shape == (1, 7, 4)
    first, second, third = network(seed=1), network(seed=1), network(seed=2)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True)]
    assert all(same) and not all(other)


def norms_of(model):
    kinds = (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm)
    return {type(module) for module in model.backbone.modules() if isinstance(module, kinds)}


def test_from_scratch_an_image_does_not_depend_on_its_batch():
    model = network().train()
    assert norms_of(model) == {nn.GroupNorm}
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        together, alone, asleep = model(images), model(images[:1]), model.eval()(images[:1])
    assert torch.allclose(together.mask_logits[:1], alone.mask_logits, atol=1e-5)
    assert torch.equal(alone.mask_logits, asleep.mask_logits)


def test_batch_norms_on_demand():
    model = network(NetworkConfig(name="nano", norm="batch")).train()
    assert norms_of(model) == {nn.BatchNorm2d}
    before = model.backbone.embedder.embedder.normalization.running_mean.clone()
    model(torch.rand(2, 3, 64, 64))
    assert not torch.equal(model.backbone.embedder.embedder.normalization.running_mean, before)


def test_settings_without_meaning_are_refused():
    for wrong, message in [
        ({"name": "nano", "norm": "frozen"}, "no statistics to keep"),
        ({"name": "nano", "norm": "group", "backbone_weights": "a/b"}, "which are of batch norms"),
        ({"name": "swin-t", "norm": "batch"}, "layer norms alone"),
        ({"name": "huge"}, "resnet-50"),
        ({"queries": 0}, "greater than or equal to 1"),
    ]:
        with pytest.raises(ValidationError, match=message):
            NetworkConfig(**wrong)


def save_resnet(folder, kind="ResNetForImageClassification", seed=7, **changes):
    """A checkpoint of nano's backbone as the library writes it, its statistics drawn too."""
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, kind)(
        transformers.ResNetConfig(**{**ARCHITECTURES["nano"]["backbone"], "num_labels": 5, **changes})
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value, std=0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["ResNetForImageClassification", "ResNetModel"])
def test_a_pretrained_backbone_gives_the_checkpoint_s_features_in_training_too(tmp_path, kind):
    saved = save_resnet(tmp_path / "backbone", kind)
    model = network(NetworkConfig(name="nano", backbone_weights=str(tmp_path / "backbone"))).train()
    assert norms_of(model) == {FrozenBatchNorm}
    pixels = torch.randn(2, 3, 64, 64)
    body = getattr(saved, "resnet", saved)
    with torch.inference_mode():
        expected = body(pixels, output_hidden_states=True).hidden_states[1:]
        found = model.backbone(pixels).feature_maps
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_frozen_norms_do_not_move_and_are_saved_with_the_weights(tmp_path):
    save_resnet(tmp_path / "backbone")
    config = NetworkConfig(name="nano", backbone_weights=str(tmp_path / "backbone"))
    model = network(config).train()
    before = copy.deepcopy({name: value for name, value in model.named_buffers() if "normalization" in name})
    assert before and not any("normalization" in name for name, _ in model.backbone.named_parameters())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss_of(model, views(2, 1))["loss"].backward()
    optimiser.step()
    after = dict(model.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    save_weights(tmp_path / "w.safetensors", model, {})
    config = config.model_copy(update={"backbone_weights": "not/there"})
    again = network(config, seed=9, pretrained=False)
    load_weights(tmp_path / "w.safetensors", again)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.eval()(image).mask_logits, again.eval()(image).mask_logits)


@pytest.mark.parametrize("kind", ["SwinForImageClassification", "SwinModel"])
def test_a_pretrained_swin(tmp_path, monkeypatch, kind):
    """Swin's backbone adds norms that no checkpoint of a classifier holds; a small one stands for swin-t."""
    import transformers

    small = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    monkeypatch.setitem(ARCHITECTURES, "swin-t", {"backbone": small, "head": ARCHITECTURES["nano"]["head"]})
    saved = getattr(transformers, kind)(transformers.SwinConfig(**small, num_labels=5))
    saved.save_pretrained(tmp_path)
    model = network(NetworkConfig(name="swin-t", backbone_weights=str(tmp_path)))
    expected = {name.removeprefix("swin."): value for name, value in saved.state_dict().items()}
    found = {name.removeprefix("swin."): value for name, value in model.backbone.state_dict().items()}
    common = {name for name in found if not name.startswith("hidden_states_norms.")}
    assert len(common) > 50 and all(torch.equal(found[name], expected[name]) for name in common)
    terms = loss_of(model.train(), views(2, 0, size=(50, 70)))
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])


def test_wrong_backbone_weights_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_resnet(tmp_path / "other", hidden_sizes=[8, 16, 32, 128])
    save_resnet(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    save_resnet(tmp_path / "lacking")
    config = json.loads((tmp_path / "lacking" / "config.json").read_text())
    (tmp_path / "lacking" / "config.json").write_text(json.dumps({**config, "depths": [1, 1, 1, 2]}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "swin").mkdir()
    (tmp_path / "swin" / "config.json").write_text('{"model_type": "swin"}')
    for source, message in [
        (tmp_path / "swin", "type 'swin', expected 'resnet'"),
        (tmp_path / "other", "are of another architecture: .* tensors are missing"),
        (tmp_path / "damaged", "cannot be loaded"),
        (tmp_path / "lacking", "lack .* tensors that their config.json asks for"),
        (tmp_path / "empty", "cannot be loaded .it has no config.json"),
        (tmp_path / "missing", "neither a folder .* nor a hub id"),
        (tmp_path / "damaged" / "model.safetensors", "neither a folder .* nor a hub id"),
    ]:
        with pytest.raises(ModelError, match=message) as caught:
            network(NetworkConfig(name="nano", backbone_weights=str(source)))
        assert str(source) in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_id_that_cannot_be_fetched_is_one_sentence(monkeypatch):
    def unreachable(self, repository, **options):
        raise OSError(f"no route to {repository}")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(ModelError, match="fewlabel-tests/none cannot be loaded .*no route") as caught:
        network(NetworkConfig(name="nano", backbone_weights="fewlabel-tests/none"))
    assert "\n" not in str(caught.value)


def test_group_norms_have_at_least_four_channels_in_a_group():
    assert [backbones.group_norm(channels).num_groups for channels in (8, 64, 256, 2048)] == [2, 16, 32, 32]


def test_bad_input_is_refused():
    model = network()
    with pytest.raises(DataError, match="0 classes"):
        InstanceSegmenter(NANO, 0)
    for shape in ((3, 64, 64), (1, 1, 64, 64), (0, 3, 64, 64)):
        with pytest.raises(DataError, match=r"expected \(B, 3, H, W\)"):
            model(torch.zeros(shape))
    batch = views(1, 1)
    outputs = model(stacked(batch))
    with pytest.raises(DataError, match="1 views for 2 images"):
        model.loss_terms(outputs, batch[:1])
    with pytest.raises(DataError, match="48 x 96 pixels but the network's maps are 16 x 24 cells"):
        model.loss_terms(outputs, [batch[0], views(1, size=(48, 96))[0]])
    with pytest.raises(DataError, match="holds classes 3 to 3, expected 0 to 2"):
        model.loss_terms(outputs, [batch[0], View(batch[1].image, batch[1].masks, torch.tensor([3]), (64, 96))])

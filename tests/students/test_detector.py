import copy
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.loss.loss_d_fine import DFineLoss

from fewlabel.core.errors import DataError, ModelError
from fewlabel.students.detector.boxes import CropBoxes
from fewlabel.students.detector.loss import IgnoringLoss, detection_loss, in_regions, target_of
from fewlabel.students.detector.network import CHECKS_OFF, LAYERS, QUERIES, Detector, detector_config, exportable
from fewlabel.training.checkpoint import load_weights, save_weights

FRAME = 48


@cache
def _settled() -> Detector:
    torch.manual_seed(0)
    model = Detector(FRAME).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # heads that start at zero would hide what depends on them
                parameter += 0.02 * torch.randn_like(parameter)
        for _ in range(3):
            model(torch.randn(2, 1, FRAME, FRAME))
    return model.eval()


def settled() -> Detector:
    """A detector of one's own, in eval mode, whose zeros and running statistics are no longer those of the start."""
    return copy.deepcopy(_settled())


def known(*boxes: tuple[float, float, float, float], ignored: bool = False) -> CropBoxes:
    return CropBoxes(np.array(boxes, np.float32).reshape(-1, 4), np.full((FRAME, FRAME), ignored))


TRUTH = [known((3, 4, 6, 8), (30, 20, 41, 26)), known((10, 40, 12, 43))]


def test_candidates_of_a_batch():
    model, images = settled(), torch.randn(3, 1, FRAME, FRAME)
    with torch.no_grad():
        boxes, logits = model(images)
        alone = [model(image[None]) for image in images]
    assert boxes.shape == (3, QUERIES, 4) and logits.shape == (3, QUERIES)
    assert boxes.dtype == logits.dtype == torch.float32
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    centres = (boxes[..., 2:] + boxes[..., :2]) / 2
    assert (centres > -FRAME).all() and (centres < 2 * FRAME).all() and centres.std() > FRAME / 10
    for k, (box, logit) in enumerate(alone):
        order, own = logits[k].argsort(), logit[0].argsort()
        torch.testing.assert_close(logits[k][order], logit[0][own], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(boxes[k][order], box[0][own], rtol=1e-3, atol=1e-3)


def test_untrained_boxes_are_as_small_as_targets_and_hardly_sure():
    torch.manual_seed(0)
    model = Detector(128)
    with torch.no_grad():
        boxes, logits = model(torch.randn(2, 1, 128, 128))
    sides = (boxes[..., 2:] - boxes[..., :2]).flatten()
    assert sides.median() == pytest.approx(6.4, rel=0.3)
    assert logits.sigmoid().max() < 0.1


def test_size():
    assert sum(value.numel() for value in Detector().parameters()) == 536_327


def test_other_sizes_are_refused():
    with pytest.raises(DataError, match="choose a multiple of 16"):
        Detector(100)
    model = settled()
    for shape in [(1, 1, 64, 64), (1, 3, FRAME, FRAME)]:
        with pytest.raises(DataError, match=r"expected \(B, 1, 48, 48\)"):
            model(torch.zeros(shape))
        with pytest.raises(DataError, match="cut frames out"):
            model.loss(torch.zeros(shape), [known()])


def test_weights_come_from_the_global_generator():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(Detector(FRAME).state_dict())
    kernels = [name for name, value in states[0].items() if name.endswith("weight") and value.unique().numel() > 2]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert len(kernels) > 50 and not any(torch.equal(states[0][name], states[2][name]) for name in kernels)


def test_weights_survive_a_file(tmp_path: Path):
    source, target = settled(), Detector(FRAME).eval()
    save_weights(tmp_path / "weights.safetensors", source, {})
    load_weights(tmp_path / "weights.safetensors", target)
    image = torch.randn(1, 1, FRAME, FRAME)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(source(image), target(image), strict=True))
    with pytest.raises(ModelError):
        load_weights(tmp_path / "weights.safetensors", nn.Linear(1, 1))


def test_every_parameter_receives_a_gradient():
    model = settled().train()
    torch.manual_seed(3)
    terms = model.loss(torch.randn(2, 1, FRAME, FRAME), TRUTH)
    assert set(terms) == {"loss", "vfl", "bbox", "giou", "fgl", "ddf"}
    assert all(torch.isfinite(value) and value > 0 for value in terms.values())
    assert terms["loss"].item() == pytest.approx(sum(terms[k].item() for k in terms if k != "loss"), rel=1e-5)
    terms["loss"].backward()
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None and torch.isfinite(value.grad).all(), name
            # All keys may move together without any effect.
            assert (value.grad != 0).any() or name.endswith("k_proj.bias"), name


def test_frames_without_targets_ask_for_silence():
    model = settled().train()
    terms = model.loss(torch.randn(2, 1, FRAME, FRAME), [known(), known()])
    assert terms["vfl"] > 0
    assert terms["bbox"] == terms["giou"] == terms["fgl"] == 0
    terms["loss"].backward()
    assert all(value.grad is None or torch.isfinite(value.grad).all() for value in model.parameters())


def test_ignored_frames_do_not_ask_for_silence():
    model = settled().train()
    terms = model.loss(torch.randn(2, 1, FRAME, FRAME), [known(ignored=True), known(ignored=True)])
    assert terms["vfl"].item() == 0
    terms["vfl"].backward()
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())


def test_bfloat16_training_is_finite():
    model = settled().train()
    torch.manual_seed(3)
    images = torch.randn(2, 1, FRAME, FRAME)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model.loss(images, TRUTH)
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])
    torch.manual_seed(3)
    assert terms["loss"].item() == pytest.approx(model.loss(images, TRUTH)["loss"].item(), rel=0.1)


def test_targets_are_fractions_of_the_frame():
    target = target_of(known((3, 4, 6, 8), (0, 0, 48, 48)), torch.device("cpu"))
    expected = [[4.5 / 48, 6 / 48, 3 / 48, 4 / 48], [0.5, 0.5, 1, 1]]
    torch.testing.assert_close(target["boxes"], torch.tensor(expected))
    assert target["class_labels"].tolist() == [0, 0]


def test_centres_are_looked_up_in_their_own_frame():
    rng = np.random.default_rng(0)
    boxes, regions = torch.from_numpy(rng.random((3, 9, 4))), torch.from_numpy(rng.random((3, 8, 8)) < 0.4)
    boxes[0, 0, :2] = 1.0  # the last pixel, not the one after it
    found = in_regions(boxes, regions)
    for frame, query in np.ndindex(3, 9):
        column, row = (min(int(value * 8), 7) for value in boxes[frame, query, :2].tolist())
        assert found[frame, query] == regions[frame, row, column]


def test_only_unmatched_queries_in_ignored_regions_are_left_out():
    torch.manual_seed(0)
    boxes = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    boxes = torch.cat([boxes, torch.full((4, 2), 0.1)], 1)[None]
    ignored = torch.zeros(1, FRAME, FRAME, dtype=torch.bool)
    ignored[:, :24] = True  # queries 0 and 1
    target = {"class_labels": torch.zeros(1, dtype=torch.int64), "boxes": boxes[0, :1] + 0.01, "ignored": ignored[0]}
    matched = [(torch.tensor([0]), torch.tensor([0]))]
    values, gradients = [], []
    for kind in (DFineLoss, IgnoringLoss):
        logits = torch.linspace(-1, 1, 4).reshape(1, 4, 1).requires_grad_()
        outputs = {"logits": logits, "pred_boxes": boxes}
        value = kind(detector_config()).loss_labels_vfl(outputs, [target], matched, 1.0)["loss_vfl"]
        value.backward()
        values.append(value.item())
        gradients.append(logits.grad[0, :, 0])
    assert gradients[1][1] == 0 and gradients[0][1] > 0
    torch.testing.assert_close(gradients[1][[0, 2, 3]], gradients[0][[0, 2, 3]])
    assert 0 < values[1] < values[0]


def test_every_layer_is_supervised_with_its_own_boxes_and_corners():
    """The library's own function leaves out the last layer's corners and the boxes of the last noised layer."""
    torch.manual_seed(0)
    queries, noised, bins = 6, 8, 33
    total = queries + noised
    centres = torch.rand(2, LAYERS + 1, total, 2) * 0.1 + 0.45  # large boxes, which all overlap the true ones
    output = SimpleNamespace(
        intermediate_logits=torch.randn(2, LAYERS + 1, total, 1, requires_grad=True),
        intermediate_reference_points=torch.cat([centres, torch.full_like(centres, 0.85)], -1).requires_grad_(),
        intermediate_predicted_corners=torch.randn(2, LAYERS, total, 4 * bins, requires_grad=True),
        initial_reference_points=torch.full((2, LAYERS, total, 4), 0.3),
        enc_topk_logits=torch.randn(2, queries, 1, requires_grad=True),
        enc_topk_bboxes=torch.full((2, queries, 4), 0.4, requires_grad=True),
        denoising_meta_values={
            "dn_positive_idx": (torch.tensor([0, 1, 4, 5]), torch.tensor([0, 4])),
            "dn_num_group": 2,
            "dn_num_split": [noised, queries],
        },
    )
    targets = [target_of(known, torch.device("cpu")) for known in TRUTH]
    detection_loss(output, targets, detector_config())["loss"].backward()
    for name in ("intermediate_logits", "intermediate_reference_points", "intermediate_predicted_corners"):
        gradient = getattr(output, name).grad
        for part in (gradient[:, :, :noised], gradient[:, :, noised:]):
            reached = part.flatten(2).abs().sum(-1) > 0
            assert reached.all(), name
    assert output.enc_topk_logits.grad.any() and output.enc_topk_bboxes.grad.any()
    # The right box of each noised query is known: the others of its group are negative and have no box.
    moved = output.intermediate_reference_points.grad[0, :, :noised].abs().sum(-1) > 0
    assert moved.sum(-1).tolist() == [4] * (LAYERS + 1)


@pytest.mark.slow  # most of a minute
def test_exports_to_onnx_with_a_free_batch():
    import onnxruntime

    model = settled()
    with exportable():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 1, FRAME, FRAME),),
            dynamo=True,
            input_names=["image"],
            output_names=["boxes", "logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=18,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [axis if isinstance(axis, int) else "free" for axis in session.get_inputs()[0].shape] == ["free", 1, 48, 48]
    for batch in (2, 1, 5):
        images = torch.randn(batch, 1, FRAME, FRAME)
        with torch.no_grad():
            expected = model(images)
        for wanted, got in zip(expected, session.run(None, {"image": images.numpy()}), strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), atol=1e-3, rtol=0)
    assert CHECKS_OFF not in os.environ

"""Both stages with the smallest network and a tiny SAM: what is off changes nothing, what is on reaches the loss."""

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from tests.sam import tiny_sam as tiny

from fewlabel.core.types import Instances
from fewlabel.data.instance_crops import CropConfig, Record, RecordPool
from fewlabel.data.synth.objects import ObjectsConfig, render
from fewlabel.metrics.instances import InstanceMetric
from fewlabel.s4m.batches import Ahead, draw_views, seed_of, stacked
from fewlabel.s4m.guidance import CollapseAlarm, Guidance
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig
from fewlabel.s4m.predict import find_objects
from fewlabel.s4m.refine_gate import RefineStats
from fewlabel.s4m.similarity_targets import SimilarityCache
from fewlabel.s4m.student import StudentConfig, Unlabelled, teacher_outputs, train_student
from fewlabel.s4m.teacher import TeachConfig, slow_parts, teach
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.training.checkpoint import weights_sha256
from fewlabel.training.ema import BurnInEma
from fewlabel.training.log import LOG, read_log
from fewlabel.training.loop import WEIGHTS

CROPS = CropConfig(crop=64)
SHORT = {"steps": 3, "batch": 2, "lr": 1e-3, "clip": 1.0, "checkpoint_seconds": 1000, "log_every": 1}
ANYTHING = {"class_threshold": 0.0, "min_mass": 0.0}


def network(seed: int = 0) -> InstanceSegmenter:
    torch.manual_seed(seed)
    return InstanceSegmenter(NetworkConfig(name="nano"), 2)


@pytest.fixture(scope="module")
def sam() -> PromptableSegmenter:
    return PromptableSegmenter(tiny.tiny_sam2(), "sam2", "tiny SAM 2").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pool() -> RecordPool:
    rng = np.random.default_rng(0)
    records = []
    for number in range(4):
        pixels = rng.integers(0, 60, (3, 80, 72)).astype(np.uint8)
        masks = np.zeros((3, 80, 72), bool)
        for mask in masks:
            y, x = rng.integers(0, 56), rng.integers(0, 50)
            mask[y : y + 20, x : x + 18] = True
            pixels[:, mask] += 90
        records.append(Record(pixels, Instances.from_masks(masks, classes=[0, 1, 0]), f"image {number}"))
    return RecordPool([lambda record=record: record for record in records])


def trained(pool: RecordPool, folder: Path, sam=None, guided: bool = True, **changes) -> tuple[dict, list[dict]]:
    config = StudentConfig.model_validate({**SHORT, "burn_in": 1, "ema": 0.5, "filter": ANYTHING, **changes})
    unlabelled = Unlabelled(pool.draw, len(pool), network(1), sam) if guided else None
    student = network()
    train_student(student, pool.draw, config, CROPS, folder, seed=5, label="s", unlabelled=unlabelled)
    return student.state_dict(), read_log(folder / LOG)


def equal(one: dict, two: dict) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_weight_0_is_supervised_training_bit_for_bit(pool, tmp_path, sam):
    plain, log = trained(pool, tmp_path / "plain", guided=False, refine=None, paste=None)
    off, other = trained(pool, tmp_path / "off", sam=sam, unlabelled_weight=0.0)
    assert equal(plain, off)
    assert [line["loss"] for line in log] == [line["loss"] for line in other]
    on, _ = trained(pool, tmp_path / "on", refine=None, paste=None)
    assert not equal(plain, on)


def test_parts_that_are_off_do_not_move_the_labelled_batches(pool, tmp_path, sam):
    logs = [
        trained(pool, tmp_path / str(number), sam=sam, steps=1, **changes)[1][0]
        for number, changes in enumerate([{}, {"paste": None}, {"refine": None, "paste": None}])
    ]
    for name in ("class", "mask", "dice", "pseudo"):
        assert len({log[name] for log in logs}) == 1


def test_all_three_parts_train_and_say_what_they_did(pool, tmp_path, sam):
    _, log = trained(pool, tmp_path / "all", sam=sam)
    assert all(line["pseudo"] > 0 and line["unlabelled"] > 0 for line in log)
    assert all(0 <= line["accepted"] <= line["pseudo"] for line in log)
    assert any(line["agreement"] > 0 for line in log)


def test_the_same_seed_gives_the_same_student_and_a_finished_one_is_loaded(pool, tmp_path, sam):
    one, _ = trained(pool, tmp_path / "one", sam=sam)
    two, _ = trained(pool, tmp_path / "two", sam=sam)
    assert equal(one, two)
    again, _ = trained(pool, tmp_path / "one", sam=sam)
    assert equal(one, again)


def test_a_refinement_needs_a_sam(pool, tmp_path):
    with pytest.raises(ValueError, match="SAM"):
        trained(pool, tmp_path / "none")


def test_the_teacher_is_the_guide_and_then_the_students_average():
    student, guide = network(0), network(1)
    ema = BurnInEma(student, 0.9, burn_in=2)
    images = torch.rand(1, 3, 64, 64)
    student.train()
    guide.eval()
    assert torch.equal(teacher_outputs(student, ema, guide, images).class_logits, guide(images).class_logits)
    for _ in range(2):
        ema.update(student)
    said = teacher_outputs(student, ema, guide, images)
    assert student.training
    assert not said.class_logits.requires_grad
    student.eval()
    assert torch.equal(said.class_logits, student(images).class_logits)


def test_structural_distillation_adds_its_term_and_needs_a_sam(pool, tmp_path, sam):
    config = TeachConfig.model_validate({**SHORT, "points": 4})
    with_structure, without = network(), network()
    teach(with_structure, pool.draw, config, CROPS, tmp_path / "with", seed=1, sam=sam)
    plain = config.model_copy(update={"similarity_weight": 0.0})
    teach(without, pool.draw, plain, CROPS, tmp_path / "without", seed=1)
    log, plain_log = (read_log(tmp_path / name / LOG) for name in ("with", "without"))
    assert all(0 < line["similarity"] < 1 for line in log)
    assert log[0]["mask"] == plain_log[0]["mask"]
    assert log[0]["loss"] == pytest.approx(plain_log[0]["loss"] + log[0]["similarity"], rel=1e-5)
    assert not equal(with_structure.state_dict(), without.state_dict())
    assert all(parameter.grad is None for parameter in sam.parameters())
    with pytest.raises(ValueError, match="SAM"):
        teach(network(), pool.draw, config, CROPS, tmp_path / "none", seed=1)


def test_supervised_student_equals_supervised_teacher_but_for_the_average(pool, tmp_path):
    trained(pool, tmp_path / "student", guided=False, refine=None, paste=None)
    config = TeachConfig.model_validate({**SHORT, "similarity_weight": 0.0, "ema": 0.5})
    teach(network(), pool.draw, config, CROPS, tmp_path / "teacher", seed=5)
    losses = [[line["loss"] for line in read_log(tmp_path / name / LOG)] for name in ("student", "teacher")]
    assert losses[0] == losses[1]


def test_a_smaller_student_learns_from_a_larger_guide(pool, tmp_path):
    torch.manual_seed(0)
    guide = InstanceSegmenter(NetworkConfig(name="tiny"), 2)
    config = StudentConfig.model_validate(
        {**SHORT, "burn_in": 3, "filter": ANYTHING, "refine": None, "paste": None, "unlabelled_weight": 1.0}
    )
    student = network()
    train_student(
        student, pool.draw, config, CROPS, tmp_path, seed=0, label="s", unlabelled=Unlabelled(pool.draw, 4, guide)
    )
    assert (tmp_path / WEIGHTS).is_file()


def test_views_depend_on_seed_step_and_stream(pool):
    one, two, other = (
        stacked(draw_views(pool.draw, 2, CROPS, 3, step, stream))
        for step, stream in [(4, "labelled"), (4, "labelled"), (4, "unlabelled")]
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    seeds = {seed_of(*args) for args in [(0, 0, "points"), (0, 1, "points"), (1, 0, "points"), (0, 0, "paste")]}
    assert len(seeds | {seed_of(0, 0, "points", 1)}) == 5


def test_what_is_made_ahead_is_what_is_asked_for():
    made = []

    def make(step):
        made.append(step)
        return step * 10

    for depth in (1, 3):
        made.clear()
        ahead = Ahead(make, depth)
        assert [ahead(step) for step in (0, 1, 2, 7, 8, 1)] == [0, 10, 20, 70, 80, 10]
        assert made.count(1) == 2  # the second time after a jump
        assert made.count(8) == 1

    def broken(step):
        raise ValueError(step)

    with pytest.raises(ValueError, match="4"):
        Ahead(broken)(4)


def test_the_alarm_sounds_once_after_a_silent_epoch(capsys):
    view = Guidance([None, None], 0, RefineStats())
    alarm = CollapseAlarm(5)
    alarm.see(view)
    alarm.see(replace(view, proposed=1))
    for _ in range(2):
        alarm.see(view)
    assert capsys.readouterr().err == ""
    for _ in range(5):
        alarm.see(view)
    assert capsys.readouterr().err.count("proposed no object in the last 6 unlabelled images") == 1


def test_a_pretrained_backbone_is_trained_more_slowly(tmp_path):
    net = network()
    assert slow_parts(net) == {}
    net.config = NetworkConfig.model_construct(name="nano", backbone_weights="somewhere", norm=None, queries=None)
    ((start, factor),) = slow_parts(net).items()
    named = [name for name, _ in net.named_parameters() if name.startswith(start)]
    assert factor == 0.1
    assert len(named) == len(list(net.backbone.parameters()))


def test_a_cache_gives_the_same_teacher_whether_it_is_full_or_empty(pool, tmp_path, sam):
    config = TeachConfig.model_validate({**SHORT, "points": 4})
    still = CropConfig(crop=96, scale_low=1, scale_high=1, flips=False)
    states = []
    for number in range(2):
        net, cache = network(), SimilarityCache(tmp_path / "cache", 0.1)
        teach(net, pool.draw, config, still, tmp_path / str(number), seed=1, sam=sam, cache=cache)
        states.append(net.state_dict())
    assert equal(*states)
    kept = cache.similarity(sam, 4, weights_sha256(sam))
    views = draw_views(pool.draw, 2, still, 1, 0, "labelled")
    kept.targets(views, [seed_of(1, 0, "points", crc32(view.id.encode())) for view in views])
    assert (kept.rows.hits, kept.rows.misses) == (len({view.id for view in views}), 0)
    kept.targets(views, [7, 8])
    assert kept.rows.misses == 2
    assert kept.embeddings.misses == 0


@pytest.mark.slow
def test_four_scenes_are_learnt_by_heart(tmp_path):
    """Crops, masks, loss and prediction mean the same pixels: half a pixel of shift would cost AP at high IoU."""
    config = ObjectsConfig(styles=(1, 0, 0, 0), objects=(3, 6), radius=(10, 25), parts=0)
    scenes = [render(np.random.default_rng(k), 128, config) for k in range(4)]
    records = [
        Record(scene.pixels, Instances.from_components(scene.labels, np.arange(1, int(scene.labels.max()) + 1)), "x")
        for scene in scenes
    ]
    pool = RecordPool([lambda record=record: record for record in records])
    torch.manual_seed(0)
    net = InstanceSegmenter(NetworkConfig(name="tiny"), 1)
    options = TeachConfig(steps=400, batch=4, lr=1e-3, clip=1.0, similarity_weight=0.0, weight_decay=0.01, ema=0.9)
    still = CropConfig(crop=128, scale_low=1, scale_high=1, flips=False)
    teach(net, pool.draw, options, still, tmp_path, seed=0)
    metric = InstanceMetric(1)
    for record in records:
        metric.update(find_objects(net, torch.from_numpy(record.pixels.astype(np.float32) / 255)), record.instances)
    scores = metric.compute()
    assert scores["AP75"] > 95
    assert scores["AP"] > 90

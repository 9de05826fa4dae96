import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError, RunError
from fewlabel.core.masks import encode, encode_many
from fewlabel.core.types import Instances
from fewlabel.labels.store import SHARD, LabelStore, PseudoLabel, target_and_weight


def make_label(number, size=(12, 15)):
    """A label that depends on its number alone: some accepted, ignored and rejected squares, and a band."""
    rng = np.random.default_rng(number)
    masks = np.zeros((6, *size), dtype=bool)
    for mask in masks:
        row, column = rng.integers(0, size[0] - 3), rng.integers(0, size[1] - 3)
        mask[row : row + 3, column : column + 3] = True
    accepted, ignored, rejected = np.split(masks[:5], sorted(rng.integers(0, 6, 2)))
    return PseudoLabel(
        id=f"image-{number:04d}",
        size=size,
        accepted=Instances.from_masks(accepted, scores=rng.uniform(0.5, 1, len(accepted)), source="teacher", round=1),
        ignored=(*encode_many(ignored), encode(masks[5])),
        rejected=Instances.from_masks(rejected, scores=rng.uniform(0, 0.5, len(rejected)), source="teacher", round=1),
        reasons=("confident",) * len(accepted) + ("unsure",) * len(ignored) + ("large",) * len(rejected),
    )


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def filled(folder, count):
    store = LabelStore(folder)
    for number in range(count):
        store.add(make_label(number))
    store.flush()
    return store


def test_labels_come_back_equal_and_in_order(tmp_path):
    filled(tmp_path, 2 * SHARD + 5)
    store = LabelStore(tmp_path)
    assert [label.to_json() for label in store] == [make_label(n).to_json() for n in range(2 * SHARD + 5)]
    assert store.ids() == tuple(f"image-{n:04d}" for n in range(2 * SHARD + 5))
    assert store.get("image-0040").to_json() == make_label(40).to_json()
    assert [len(data.splitlines()) for data in bytes_of(tmp_path).values()] == [SHARD, SHARD, 5]


def test_labels_are_readable_before_they_are_written(tmp_path):
    store = LabelStore(tmp_path)
    store.add(make_label(3))
    assert list(tmp_path.iterdir()) == []
    assert store.get("image-0003").to_json() == make_label(3).to_json()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["add", "flush", "reopen"]), max_size=90))
def test_bytes_do_not_depend_on_flushes_and_reopening(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("steps")
    store, count = LabelStore(folder), 0
    for step in steps:
        if step == "add":
            store.add(make_label(count))
            count += 1
        elif step == "flush":
            store.flush()
        else:  # what was not flushed is lost, as by a kill, and is added again
            store = LabelStore(folder)
            for number in range(len(store), count):
                store.add(make_label(number))
    store.flush()
    plain = tmp_path_factory.mktemp("plain")
    filled(plain, count)
    assert bytes_of(folder) == bytes_of(plain)


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_store import make_label
from fewlabel.labels.store import LabelStore
store = LabelStore(Path({folder!r}))
for number in range(len(store), 300):
    store.add(make_label(number))
    store.flush()
    print(number, flush=True)
"""


def test_a_killed_writer_is_resumed_to_the_same_bytes(tmp_path):
    folder = tmp_path / "killed"
    script = WRITER.format(tests=str(Path(__file__).parent), folder=str(folder))
    for after in (20, 75):  # the kill falls anywhere in the writes that follow
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        while int(process.stdout.readline()) < after:
            pass
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the writer was to be killed in the middle"
        kept = LabelStore(folder)
        assert after < len(kept) < 300
        assert [label.id for label in kept] == [f"image-{n:04d}" for n in range(len(kept))]
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    filled(tmp_path / "whole", 300)
    written = {name: data for name, data in bytes_of(folder).items() if not name.startswith(".")}
    assert written == bytes_of(tmp_path / "whole")


def test_target_and_weight_against_a_loop_over_pixels():
    for number in range(8):
        label = make_label(number)
        target, weight = target_and_weight(label)
        assert target.dtype == bool
        assert weight.dtype == np.float32
        accepted = label.accepted.masks()
        unsure = Instances(
            label.size,
            label.ignored,
            np.zeros(len(label.ignored), np.int64),
            np.zeros(len(label.ignored), np.float32),
            np.zeros((len(label.ignored), 4), np.float32),
        ).masks()
        for row, column in np.ndindex(*label.size):
            is_target = any(mask[row, column] for mask in accepted)
            is_unsure = any(mask[row, column] for mask in unsure)
            assert target[row, column] == is_target
            assert weight[row, column] == (0.0 if (is_unsure and not is_target) or label.unsure else 1.0)


def square(row, size=(12, 15)):
    mask = np.zeros(size, bool)
    mask[row : row + 2, 3:6] = True
    return mask


def label_with(accepted=(), ignored=(), rejected=(), band=None):
    """A label with a square in each of the given rows, and a band."""
    band = np.zeros((12, 15), bool) if band is None else band
    groups = [np.array([square(row) for row in rows]).reshape(-1, 12, 15) for rows in (accepted, ignored, rejected)]
    return PseudoLabel(
        id="a",
        size=(12, 15),
        accepted=Instances.from_masks(groups[0], size=(12, 15), source="teacher", round=1),
        ignored=(*encode_many(groups[1]), encode(band)),
        rejected=Instances.from_masks(groups[2], size=(12, 15), source="teacher", round=1),
        reasons=("confident",) * len(accepted) + ("unsure",) * len(ignored) + ("large",) * len(rejected),
    )


def test_an_unsure_image_teaches_nothing_but_an_empty_one_teaches_background():
    unsure = label_with(ignored=[2], rejected=[8])
    assert unsure.unsure
    target, weight = target_and_weight(unsure)
    assert not target.any() and not weight.any()
    assert weight.dtype == np.float32
    for label in (label_with(accepted=[5], ignored=[2]), label_with(rejected=[8]), label_with(band=square(4))):
        assert not label.unsure
        _, weight = target_and_weight(label)
        assert weight[0, 0] == 1 and weight[11, 14] == 1
    _, weight = target_and_weight(label_with(band=square(4)))
    np.testing.assert_array_equal(weight == 0, square(4))
    assert label_with().proposals == 0 and unsure.proposals == 2


def test_the_summary_tells_unsure_from_silent_images(tmp_path):
    store = LabelStore(tmp_path)
    labels = [label_with(accepted=[5], ignored=[2]), label_with(ignored=[2]), label_with(rejected=[8]), label_with()]
    for number, label in enumerate(labels):
        store.add(replace(label, id=f"i{number}"))
    summary = store.summary()
    assert (summary["empty"], summary["unsure"], summary["silent"]) == (3, 1, 1)
    assert summary["ignored_share"] == pytest.approx((6 + 12 * 15) / (4 * 12 * 15))


def test_summary_counts(tmp_path):
    store = filled(tmp_path, 10)
    labels = [make_label(n) for n in range(10)]
    summary = store.summary()
    accepted = sum(len(label.accepted) for label in labels)
    assert summary["images"] == 10
    assert summary["proposed"] == 50
    assert summary["accepted"] == accepted == summary["reasons"]["confident"]
    assert summary["rejected"] == summary["reasons"]["large"]
    assert summary["accepted"] + summary["ignored"] + summary["rejected"] == 50
    assert summary["coverage"] == pytest.approx(accepted / 50)
    assert summary["empty"] == sum(len(label.accepted) == 0 for label in labels)
    assert LabelStore(tmp_path / "new").summary()["coverage"] is None


def test_wrong_use_is_refused_with_a_sentence(tmp_path):
    store = filled(tmp_path, 2)
    with pytest.raises(DataError, match="already has a pseudo-label of image 'image-0001'"):
        store.add(make_label(1))
    with pytest.raises(DataError, match="no pseudo-label of image 'other'"):
        store.get("other")
    with pytest.raises(DataError, match="one word per proposal"):
        PseudoLabel("a", (4, 4), Instances((4, 4)), (encode(np.zeros((4, 4), bool)),), Instances((4, 4)), ("unsure",))
    shard = tmp_path / "labels-00000.jsonl"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"labels-00000.jsonl, line 2 is not a pseudo-label"):
        LabelStore(tmp_path)


def test_labels_of_another_teacher_are_not_mixed(tmp_path):
    LabelStore(tmp_path, made_by="teacher-a")
    LabelStore(tmp_path, made_by="teacher-a")
    LabelStore(tmp_path)
    with pytest.raises(RunError, match="made by 'teacher-a', expected 'teacher-b'"):
        LabelStore(tmp_path, made_by="teacher-b")


def test_a_removed_shard_is_not_overwritten(tmp_path):
    filled(tmp_path, 2 * SHARD + 1)
    (tmp_path / "labels-00000.jsonl").unlink()
    store = LabelStore(tmp_path)
    for number in range(SHARD):
        store.add(make_label(number))
    store.flush()
    assert sorted(LabelStore(tmp_path).ids()) == [f"image-{n:04d}" for n in range(2 * SHARD + 1)]

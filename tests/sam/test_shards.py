"""The store of tensors: bounded, least recently used first out, shared by processes, whole after any kill."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch

from fewlabel.core import files
from fewlabel.core.errors import RunError
from fewlabel.sam import shards
from fewlabel.sam.shards import INDEX, ShardStore

WATCHED = {shards.__file__, files.__file__}


def tensors(key: str, count: int = 500) -> list[torch.Tensor]:
    """What is stored under a key in these tests: two tensors that follow from it."""
    rng = np.random.default_rng(list(key.encode()))
    return [torch.from_numpy(rng.random((count, 2), np.float32)).half(), torch.from_numpy(rng.integers(0, 9, 3))]


def right(found: list[torch.Tensor] | None, key: str, count: int = 500) -> bool:
    return found is not None and all(map(torch.equal, found, tensors(key, count)))


def child(work: Callable[[], None]) -> int:
    """Process id of a copy of this process that does `work` alone; exit status 1 if it raises."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def ended(pid: int) -> int:
    """Exit status of a child, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def one_shard(tmp_path: Path) -> int:
    """Bytes of a shard of one key."""
    store = ShardStore(tmp_path / "measure", 10**9)
    store.write({"k": tensors("k")})
    return store.bytes


def test_what_was_written_is_read(tmp_path):
    store = ShardStore(tmp_path / "cache", 10**6)
    assert store.read("a") is None
    store.write({key: tensors(key) for key in "abc"})
    store.write({"d": tensors("d")})
    for reader in (store, ShardStore(tmp_path / "cache", 10**6)):
        assert all(right(reader.read(key), key) for key in "abcd")
        assert "a" in reader
        assert "e" not in reader
        assert reader.read("e") is None
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    assert store.bytes == sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.safetensors"))


def test_another_store_on_the_folder_sees_what_is_written_later(tmp_path):
    one, other = (ShardStore(tmp_path, 10**6) for _ in range(2))
    one.write({"a": tensors("a")})
    assert right(other.read("a"), "a")
    other.write({"a": tensors("b"), "b": tensors("b")})  # the first one counts
    assert right(one.read("a"), "a")
    assert right(one.read("b"), "b")


def test_what_went_and_was_written_anew_elsewhere_is_found_by_the_other_store(tmp_path):
    one, other = (ShardStore(tmp_path, 10**6) for _ in range(2))
    one.write({"a": tensors("a")})
    assert right(other.read("a"), "a")
    for path in tmp_path.glob("*.safetensors"):  # as when room was made
        path.unlink()
    one.write({"a": tensors("a"), "b": tensors("b")})
    assert right(other.read("a"), "a")
    other.write({"a": tensors("a")})
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("name", ["model.safetensors", ".bashrc", INDEX])
def test_folder_of_other_files_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="holds other files, not a cache; give a new or an empty folder"):
        ShardStore(tmp_path, 10**6)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_hidden_files_of_others_stay_in_a_cache(tmp_path):
    ShardStore(tmp_path, 10**6).write({"a": tensors("a")})
    (tmp_path / ".gitignore").write_text("*")
    assert right(ShardStore(tmp_path, 10**6).read("a"), "a")
    assert (tmp_path / ".gitignore").read_text() == "*"


def test_longest_unused_shards_make_room(tmp_path):
    size = one_shard(tmp_path)
    store = ShardStore(tmp_path / "cache", 3 * size + 10)
    for key in "abc":
        store.write({key: tensors(key)})
        time.sleep(0.01)  # more than a tick of the file system's clock
    assert right(store.read("a"), "a")  # now "b" was not used for longest
    time.sleep(0.01)
    store.write({"d": tensors("d")})
    assert store.bytes <= 3 * size + 10
    assert [key in store for key in "abcd"] == [True, False, True, True]
    assert store.read("b") is None
    store.write({"b": tensors("b")})
    assert right(store.read("b"), "b")
    assert [key in store for key in "abcd"] == [True, True, False, True]


def test_shard_above_the_bound_is_refused_and_costs_nothing(tmp_path):
    store = ShardStore(tmp_path, 5000)
    store.write({"a": tensors("a")})
    with pytest.raises(RunError, match=r"bounded to 5e-06 GB, less than the features of one image .* give it more"):
        store.write({"b": tensors("b", 5000)})
    assert right(store.read("a"), "a")


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/cache cannot hold a cache"):
        ShardStore(tmp_path / "file" / "cache", 5000)


@pytest.mark.parametrize("damage", ["half", "empty", "noise"])
def test_damaged_shard_is_a_miss_and_goes(tmp_path, damage):
    store = ShardStore(tmp_path, 10**6)
    store.write({"a": tensors("a")})
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "noise": whole[::-1]}[damage])
    for reader in (ShardStore(tmp_path, 10**6), store):
        assert reader.read("a") is None
        assert "a" not in reader
    store.write({"a": tensors("a")})
    assert right(store.read("a"), "a")


def test_index_is_made_again_from_the_shards(tmp_path):
    store = ShardStore(tmp_path, 10**6)
    for key in "abc":
        store.write({key: tensors(key)})
    lines = (tmp_path / INDEX).read_bytes().splitlines(keepends=True)
    for broken in (b"", b"".join(lines[:1]), b"".join(lines)[:-7], b"\x00\xff{]\n[]\n3\n" + lines[2]):
        (tmp_path / INDEX).write_bytes(broken)
        again = ShardStore(tmp_path, 10**6)
        assert all(right(again.read(key), key) for key in "abc")
        assert len((tmp_path / INDEX).read_bytes().splitlines()) == 3
    (tmp_path / INDEX).unlink()
    assert right(ShardStore(tmp_path, 10**6).read("c"), "c")


def test_line_after_a_torn_one_is_read(tmp_path):
    store, other = (ShardStore(tmp_path, 10**6) for _ in range(2))
    store.write({"a": tensors("a")})
    with (tmp_path / INDEX).open("ab") as index:
        index.write(b'{"shard": "to')
    store.write({"b": tensors("b")})
    assert all(right(reader.read(key), key) for key in "ab" for reader in (store, other))


def test_index_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SPARE_LINES", 10)
    store = ShardStore(tmp_path / "cache", 2 * one_shard(tmp_path))
    reader = ShardStore(tmp_path / "cache", 10**6)
    for number in range(60):
        store.write({f"k{number}": tensors(f"k{number}")})
        assert right(reader.read(f"k{number}"), f"k{number}")
    assert len((tmp_path / "cache" / INDEX).read_bytes().splitlines()) <= 2 * 2 + 10


def killed_at(number: int) -> Callable[[FrameType, str, object], object]:
    """Trace function that kills the process with SIGKILL when it reaches that many lines of the store's code anew."""
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> object:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(seen) > number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def test_kill_at_every_line_of_a_write_leaves_whole_shards(tmp_path, monkeypatch):
    """The write makes room first, so that every part of the store's work is interrupted."""
    monkeypatch.setattr(files, "_sync", lambda path: None)  # a kill loses nothing that the system was given; too slow
    bound = 2 * one_shard(tmp_path) + 10
    full = ShardStore(tmp_path / "full", bound)
    for number, key in enumerate("ab"):
        full.write({key: tensors(key)})
        os.utime(full.folder / full._shards[key], ns=(number, number))
    status, line = -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        folder = shutil.copytree(full.folder, tmp_path / f"line{line}")
        store = ShardStore(folder, bound)

        def interrupted(store: ShardStore = store, line: int = line) -> None:
            sys.settrace(killed_at(line))
            store.write({"c": tensors("c")})

        status = ended(child(interrupted))
        after = ShardStore(folder, bound)
        assert not list(folder.glob(".*"))
        assert after.bytes <= bound
        assert right(after.read("b"), "b")  # never had to go
        for key in "ac":
            found = after.read(key)
            assert found is None or right(found, key)
        after.write({"c": tensors("c")})
        assert right(after.read("c"), "c")
        assert right(store.read("c"), "c")
        line += 1
    assert status == 0
    assert line > 40


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_half_written_file_is_never_read(tmp_path, share):
    """A kill within the one call that writes the bytes, of the shard and of the index."""
    store = ShardStore(tmp_path, 10**6)
    store.write({"a": tensors("a")})

    def torn_shard() -> None:
        def part(path: Path, data: bytes) -> None:
            with path.open("wb", buffering=0) as stream:
                stream.write(data[: int(len(data) * share)])
            os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes = part
        store.write({"b": tensors("b")})

    def torn_index() -> None:
        whole = shards._line
        shards._line = lambda name, keys: whole(name, keys)[: int(len(whole(name, keys)) * share)]
        refresh = ShardStore._refresh
        calls = []

        def kill_after_the_line(self: ShardStore) -> None:
            calls.append(0)
            refresh(self)
            if (self.folder / shards.INDEX).stat().st_size != size or share == 0 and len(calls) > 1:
                os.kill(os.getpid(), signal.SIGKILL)

        size = (tmp_path / INDEX).stat().st_size
        ShardStore._refresh = kill_after_the_line
        store.write({"c": tensors("c")})

    assert ended(child(torn_shard)) == -signal.SIGKILL
    assert store.read("b") is None
    assert right(store.read("a"), "a")
    assert ended(child(torn_index)) == -signal.SIGKILL
    again = ShardStore(tmp_path, 10**6)
    assert right(again.read("c"), "c")
    assert again.read("b") is None
    store.write({"d": tensors("d")})
    assert all(right(again.read(key), key) for key in "acd")


def test_a_shard_that_goes_between_the_two_openings_is_a_miss(tmp_path, monkeypatch):
    """safetensors opens a file for its header and torch opens it again for the tensors."""
    store = ShardStore(tmp_path, 10**6)
    store.write({"a": tensors("a")})
    whole = torch.UntypedStorage.from_file

    def late(path, *arguments, **options):
        Path(path).unlink()
        return whole(path, *arguments, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", late)
    assert store.read("a") is None
    monkeypatch.undo()
    store.write({"a": tensors("a")})
    assert right(store.read("a"), "a")


def test_two_processes_and_a_killed_third_share_a_bounded_folder(tmp_path):
    """Nothing wrong is ever read, the bound holds at every look, and both find what the other wrote."""
    bound = 5 * one_shard(tmp_path) + 100  # names of two letters take a few bytes more
    folder = tmp_path / "cache"
    ShardStore(folder, bound)

    def work(seed: int, steps: int) -> None:
        store, rng, hits = ShardStore(folder, bound), np.random.default_rng(seed), 0
        for _ in range(steps):
            key = f"k{rng.integers(9)}"
            found = store.read(key)
            hits += found is not None
            if found is None:
                store.write({key: tensors(key)})
            elif not right(found, key):
                os._exit(3)
        (tmp_path / f"hits{seed}").write_text(json.dumps(hits))

    workers = [child(lambda seed=seed: work(seed, 150)) for seed in (1, 2)]
    observer = ShardStore(folder, bound)
    for seed in range(3, 9):
        victim = child(lambda seed=seed: work(seed, 10**6))
        time.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
        assert ended(victim) == -signal.SIGKILL
        with observer._locked():
            assert observer.bytes <= bound
    assert [ended(pid) for pid in workers] == [0, 0]
    hits = [json.loads((tmp_path / f"hits{seed}").read_text()) for seed in (1, 2)]
    assert all(30 < count < 150 for count in hits)
    last = ShardStore(folder, bound)
    assert last.bytes <= bound
    held = [key for key in (f"k{number}" for number in range(9)) if key in last]
    assert 0 < len(held) <= 5  # each kill may have come between making room and filling it
    assert all(right(last.read(key), key) for key in held)
    for number in range(9):
        last.write({f"k{number}": tensors(f"k{number}")})
    assert sum(f"k{number}" in last for number in range(9)) == 5  # no room was lost

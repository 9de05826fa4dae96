"""Which of the parts train, val and test is held out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.data.readers.lists import find_lists, folder_parts, held_out, listed_parts, prefixed_lists, stray_list


def lists(folder, **parts: str):
    folder.mkdir(exist_ok=True)
    for part, ids in parts.items():
        (folder / f"{part}.txt").write_text("\n".join(ids))
    return folder


@pytest.mark.parametrize(
    ("train", "val", "test", "labelled", "wanted"),
    [
        ("ab", "c", "d", "abcd", ("abc", "d")),  # the test part has labels
        ("ab", "c", "de", "abce", ("abc", "de")),  # one is enough
        ("ab", "c", "d", "abc", ("ab", "c")),  # its labels are kept back
        ("ab", "", "d", "ab", ("ab", "d")),
        ("ab", "c", "", "", ("ab", "c")),
        ("ab", "", "", "ab", ("ab", "")),
    ],
)
def test_held_out(train, val, test, labelled, wanted):
    assert held_out(train, val, test, labelled) == tuple(tuple(part) for part in wanted)


def test_the_first_folder_with_a_list_counts(tmp_path):
    empty, first = tmp_path / "none", lists(tmp_path / "a", val="c")
    second = lists(tmp_path / "b", train="ab", test="d")
    names = [[entry.id for entry in part] for part in find_lists(empty, first, second)]
    assert names == [[], ["c"], []]
    assert [len(part) for part in find_lists(second, first)] == [2, 0, 1]
    assert find_lists(empty).all() == []
    (first / "val.txt").write_text("")
    with pytest.raises(DataError, match="names no image"):
        find_lists(first)
    (first / "val.txt").write_text("c\n" + "0 " * 9000)
    with pytest.raises(DataError, match="val.txt, line 2, has 17999 characters"):
        find_lists(first)


def test_trainval_stands_in_for_train(tmp_path):
    def named(**parts):
        folder = lists(tmp_path / "-".join(parts), **parts)
        return ["".join(entry.id for entry in part) for part in find_lists(folder)]

    assert named(train="a", val="b", trainval="ab") == ["a", "b", ""]
    assert named(trainval="ab", test="c") == ["ab", "", "c"]
    assert named(val="b", trainval="ab") == ["ab", "", ""]  # one of the two names b already
    assert named(train="a", trainval="ab") == ["ab", "", ""]


def test_parts_by_the_beginning_of_names(tmp_path):
    lists(tmp_path, train_x="a", train_val_x="b", valid="c", trainvaltest_x="d", x_test="e", test="f", test_full="g")
    with pytest.raises(DataError, match=r"several test lists \(test.txt, test_full.txt\)"):
        prefixed_lists(tmp_path)
    found = {part: path.stem for part, path in prefixed_lists(tmp_path, "_full").items()}
    assert found == {"train": "train_x", "trainval": "train_val_x", "val": "valid", "test": "test_full"}
    assert prefixed_lists(tmp_path / "none") == {}


def test_a_list_that_nothing_reads(tmp_path):
    deep = tmp_path / "1/2/3"
    deep.mkdir(parents=True)
    assert stray_list(tmp_path, "abc") is None
    lists(deep, some="abx")
    assert stray_list(tmp_path, "abc") == deep / "some.txt"
    lists(deep, some="axx")  # most lines name no image
    assert stray_list(tmp_path, "abc") is None
    lists(deep, some="cxba")  # all images, which is no split
    assert stray_list(tmp_path, "abc") is None


def test_without_a_training_list_the_rest_trains(tmp_path):
    found = find_lists(lists(tmp_path / "a", val="b", test="d"))
    assert listed_parts(found, "edcba", "ab") == (("a", "c", "e"), ("b",))
    assert listed_parts(found, "edcba", "abd") == (("a", "c", "e", "b"), ("d",))
    assert listed_parts(find_lists(tmp_path), "cab", "a") == (("a", "b", "c"), ())


def test_folders(tmp_path):
    folders = {"d": "Validation", "c": "TEST", "b": "training", "a": "night"}
    assert folder_parts(folders, "d") == (("a", "b"), ("d",))
    assert folder_parts(folders, "c") == (("a", "b", "d"), ("c",))


@given(*[st.sets(st.integers(0, 30)) for _ in range(4)])
def test_no_id_is_in_both_parts_and_none_of_train_is_lost(train, val, test, labelled):
    val, test = val - train, test - train - val
    trained, tested = held_out(train, val, test, labelled)
    assert train <= set(trained) and not set(trained) & set(tested)
    assert set(trained) | set(tested) <= train | val | test
    if labelled & (val | test):
        assert labelled & set(tested)

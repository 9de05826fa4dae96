"""The text of run-length codes against pycocotools, and texts that are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as oracle

from fewlabel.core import rle
from fewlabel.core.errors import DataError
from fewlabel.core.rle_text import read_counts, write_counts

quick = settings(max_examples=60, deadline=None)


@quick
@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9), max_size=4))
def test_round_trip_of_many_codes(codes):
    bounds = np.cumsum([0, *map(len, codes)])
    flat = np.array([count for code in codes for count in code], dtype=np.int64)
    texts = write_counts(flat, bounds)
    assert [read_counts(text).tolist() for text in texts] == codes


@quick
@given(st.lists(st.integers(0, 2**24), min_size=1, max_size=9))
def test_counts_of_any_size_are_written_as_coco_writes_them(counts):
    counts = [counts[0], *(count + 1 for count in counts[1:])]
    theirs = oracle.frPyObjects({"size": [sum(counts), 1], "counts": counts}, sum(counts), 1)
    if sum(counts):
        assert rle.from_spans(rle.spans(theirs), (sum(counts), 1))["counts"] == theirs["counts"]


def test_texts_that_are_none_are_refused():
    for text in (b"", b"\xff", b"P", b"!", b"o" * 12 + b"0"):
        with pytest.raises(DataError, match="none of COCO's"):
            read_counts(text)


@quick
@given(st.binary(max_size=12))
def test_any_bytes_are_read_or_refused(text):
    try:
        runs = rle.spans({"size": [3, 4], "counts": text})
    except DataError:
        return
    assert runs.area <= 12 and (runs.stops > runs.starts).all()

"""The text of COCO's run-length codes.

As in COCO's `maskApi`: counts of zeros and ones in turn; from the fourth on, the difference to the count before the
last; each in groups of five bits from the lowest, with the sign in the last group and "more" as the sixth bit, plus 48.
"""

import numpy as np

from fewlabel.core.errors import DataError

MOST_GROUPS = 7  # of five bits: a signed difference of two 32-bit counts, which is what COCO's code holds


def read_counts(text: bytes) -> np.ndarray:
    """Read the text of one code.

    Args:
        text: COCO's compressed counts.

    Returns:
        int64 counts, zeros and ones in turn; those of a damaged text may be anything.

    Raises:
        DataError: The text is none that COCO writes.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 32) == 0)  # the last group of each count has no "more" bit
    widths = np.diff(last, prepend=-1)
    whole = len(last) > 0 and last[-1] == len(codes) - 1 and codes.min() >= 0 and codes.max() <= 63
    if not whole or widths.max() > MOST_GROUPS:
        raise DataError(f"A run-length code reads {text[:40]!r}, which is none of COCO's; write the mask again.")
    groups = np.arange(len(codes)) - np.repeat(last + 1 - widths, widths)
    deltas = np.add.reduceat((codes & 31) << (5 * groups), last + 1 - widths)
    deltas -= ((codes[last] & 16) << 1) << (5 * (widths - 1))  # the sign
    deltas[1::2] = np.cumsum(deltas[1::2])
    deltas[2::2] = np.cumsum(deltas[2::2])
    return deltas


def write_counts(counts: np.ndarray, bounds: np.ndarray) -> list[bytes]:
    """Write the texts of many codes in one pass.

    Args:
        counts: int64, the counts of all codes, one code after the other.
        bounds: int64 `(N + 1,)`: code `i` has the counts `bounds[i]` to `bounds[i + 1]`.

    Returns:
        N texts.
    """
    if not len(counts):
        return [b""] * (len(bounds) - 1)
    lengths = np.diff(bounds)
    position = np.arange(len(counts)) - np.repeat(bounds[:-1], lengths)
    deltas = counts.copy()
    deltas[2:] -= np.where(position[2:] > 2, counts[:-2], 0)
    columns, used, more = [], [], np.ones(len(deltas), dtype=bool)
    while more.any():
        used.append(more)
        group, deltas = deltas & 31, deltas >> 5
        more = more & np.where(group & 16, deltas != -1, deltas != 0)
        columns.append(group + np.where(more, 32 + 48, 48))
    held = np.stack(used, axis=1)
    text = np.stack(columns, axis=1).astype(np.uint8)[held].tobytes()
    ends = np.concatenate([[0], np.cumsum(held.sum(axis=1))])[bounds]
    return [text[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]

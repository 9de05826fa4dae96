"""Pseudo-labels on disk: JSON-lines shards that are whole or absent, so that a killed run goes on where it stopped.

One line per image, in the order of addition, a fixed number of lines per shard. The last shard may be shorter; it is
written again, atomically, as it grows. The same labels in the same order give the same bytes, however often the work
was interrupted in between.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewlabel.core.errors import DataError, RunError
from fewlabel.core.files import read_json, write_bytes, write_json
from fewlabel.core.masks import Rle, areas, decode
from fewlabel.core.types import Instances

SHARD = 32  # images per file
MADE_BY = "made_by.json"


@dataclass(frozen=True)
class PseudoLabel:
    """What a teacher says about one image.

    Attributes:
        id: Image id.
        size: Image rows and columns.
        accepted: Targets to learn from; their scores are their quality.
        ignored: Masks of the ignored targets, then of the band of unsure pixels (last; may be empty).
        rejected: Proposals to be taken as background.
        reasons: One word per proposal: of the accepted, then the ignored, then the rejected ones.
    """

    id: str
    size: tuple[int, int]
    accepted: Instances
    ignored: tuple[Rle, ...]
    rejected: Instances
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        proposals = len(self.accepted) + len(self.ignored) - 1 + len(self.rejected)
        if not self.ignored or len(self.reasons) != proposals:
            raise DataError(
                f"The pseudo-label of image {self.id!r} has {len(self.reasons)} reasons for {proposals} proposals;"
                " give one word per proposal, and the unsure band as the last of the ignored masks."
            )

    @property
    def proposals(self) -> int:
        """Number of proposed targets of any verdict."""
        return len(self.reasons)

    @property
    def unsure(self) -> bool:
        """Whether the teacher sees something but is sure of nothing: ignored targets, and no accepted one.

        Such an image teaches nothing. Its ignored targets do not count anyway, and to call the rest of it background
        would be to trust the teacher on exactly the images where it has shown that it cannot be trusted. An image on
        which it proposes nothing at all is another matter: most frames of a real camera show no target, a student that
        never sees one learns to invent them, and what the teacher half sees there lies in the band that is left out.
        """
        return not len(self.accepted) and len(self.ignored) > 1

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` turns back into an equal label."""
        return {
            "id": self.id,
            "size": list(self.size),
            "accepted": self.accepted.to_json(),
            "ignored": [rle["counts"].decode("ascii") for rle in self.ignored],
            "rejected": self.rejected.to_json(),
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "PseudoLabel":
        """Read what `to_json` wrote.

        Raises:
            DataError: A key is missing, or lengths do not agree.
        """
        try:
            size = (int(value["size"][0]), int(value["size"][1]))
            return cls(
                id=value["id"],
                size=size,
                accepted=Instances.from_json(value["accepted"]),
                ignored=tuple({"size": list(size), "counts": text.encode("ascii")} for text in value["ignored"]),
                rejected=Instances.from_json(value["rejected"]),
                reasons=tuple(value["reasons"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"A stored pseudo-label cannot be read ({error!r}); label the images again.") from None


def target_and_weight(label: PseudoLabel) -> tuple[np.ndarray, np.ndarray]:
    """What a student is trained on.

    Args:
        label: The pseudo-label of one image.

    Returns:
        The target, bool `(H, W)`, True on accepted targets; and the weight of each pixel in the loss, float32
        `(H, W)`: 0 where an ignored target or the unsure band lies outside every accepted target, and everywhere in an
        image that is `PseudoLabel.unsure` as a whole; else 1.
    """
    target = label.accepted.semantic()
    if label.unsure:
        return target, np.zeros(label.size, np.float32)
    unsure = np.zeros(label.size, dtype=bool)
    for rle in label.ignored:
        unsure |= decode(rle)
    return target, np.where(unsure & ~target, 0.0, 1.0).astype(np.float32)


class LabelStore:
    """A folder of pseudo-labels, appended to by one process at a time.

    Args:
        folder: Where the shards are; made when missing.
        made_by: Fingerprint of the teacher and settings behind the labels; kept with them.

    Raises:
        RunError: The folder holds labels of another `made_by`.
        DataError: A shard cannot be read.
    """

    def __init__(self, folder: Path, made_by: str | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._check_maker(made_by)
        self._places: dict[str, tuple[Path, int]] = {}  # id -> shard and byte offset of its line
        self._pending: dict[str, bytes] = {}  # lines of the last, shorter shard, written or not
        self._unwritten = 0
        shards = sorted(folder.glob("labels-*.jsonl"))
        for path in shards:
            lines = path.read_bytes().splitlines(keepends=True)
            offset = 0
            for number, line in enumerate(lines, start=1):
                self._places[_id_of(line, path, number)] = (path, offset)
                offset += len(line)
            if path == shards[-1] and len(lines) < SHARD:
                self._pending = {_id_of(line, path, 0): line for line in lines}
        self._next = _number(shards[-1]) + (not self._pending) if shards else 0

    def _check_maker(self, made_by: str | None) -> None:
        """Keep `made_by` in the folder, or compare it with what is there."""
        if made_by is None:
            return
        path = self.folder / MADE_BY
        if not path.exists():
            write_json(path, {"made_by": made_by})
            return
        found = read_json(path).get("made_by")
        if found != made_by:
            raise RunError(
                f"{self.folder} holds pseudo-labels made by {found!r}, expected {made_by!r}; use another folder, or"
                " delete this one to label again."
            )

    def add(self, label: PseudoLabel) -> None:
        """Append one label; it is on disk once its shard is full or `flush` was called.

        Raises:
            DataError: The store has a label of this image.
        """
        if label.id in self._places:
            raise DataError(f"{self.folder} already has a pseudo-label of image {label.id!r}; add each image once.")
        line = json.dumps(label.to_json(), ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"
        self._places[label.id] = (self._shard(), sum(map(len, self._pending.values())))
        self._pending[label.id] = line
        self._unwritten += 1
        if len(self._pending) == SHARD:
            self.flush()
            self._pending, self._next = {}, self._next + 1

    def flush(self) -> None:
        """Write the labels that are not on disk yet."""
        if self._unwritten:
            write_bytes(self._shard(), b"".join(self._pending.values()))
            self._unwritten = 0

    def _shard(self) -> Path:
        """The shard that is being filled."""
        return self.folder / f"labels-{self._next:05d}.jsonl"

    def ids(self) -> tuple[str, ...]:
        """Ids of all images with a label, in the order of addition."""
        return tuple(self._places)

    def __contains__(self, id: str) -> bool:
        return id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, id: str) -> PseudoLabel:
        """The label of one image.

        Raises:
            DataError: There is none, or its line is damaged.
        """
        if id not in self._places:
            raise DataError(f"{self.folder} has no pseudo-label of image {id!r}; label that image first.")
        path, offset = self._places[id]
        if id in self._pending:
            line = self._pending[id]
        else:
            with path.open("rb") as stream:
                stream.seek(offset)
                line = stream.readline()
        return PseudoLabel.from_json(json.loads(line))

    def __iter__(self) -> Iterator[PseudoLabel]:
        return (self.get(id) for id in self._places)

    def summary(self) -> dict[str, Any]:
        """Counts over all labels.

        Returns:
            `images`, `proposed`, `accepted`, `ignored`, `rejected` (targets); `coverage` = accepted ÷ proposed (None
            when nothing was proposed); `empty` (images without an accepted target), of these `unsure` (left out as a
            whole, see `PseudoLabel.unsure`) and `silent` (nothing was proposed); `ignored_share` (share of all pixels
            that do not count); `reasons` (count of each word).
        """
        accepted = ignored = rejected = empty = unsure = silent = pixels = left_out = 0
        reasons: Counter[str] = Counter()
        for label in self:
            accepted += len(label.accepted)
            ignored += len(label.ignored) - 1
            rejected += len(label.rejected)
            empty += not len(label.accepted)
            unsure += label.unsure
            silent += not label.proposals
            area = label.size[0] * label.size[1]
            pixels += area
            left_out += area if label.unsure else int(areas(label.ignored).sum())
            reasons.update(label.reasons)
        proposed = accepted + ignored + rejected
        return {
            "images": len(self),
            "proposed": proposed,
            "accepted": accepted,
            "ignored": ignored,
            "rejected": rejected,
            "coverage": accepted / proposed if proposed else None,
            "empty": empty,
            "unsure": unsure,
            "silent": silent,
            "ignored_share": left_out / pixels if pixels else 0.0,
            "reasons": dict(sorted(reasons.items())),
        }


def _number(shard: Path) -> int:
    """Number in a shard's name."""
    return int(shard.stem.removeprefix("labels-"))


def _id_of(line: bytes, path: Path, number: int) -> str:
    """Image id of a stored line.

    Raises:
        DataError: The line is damaged.
    """
    try:
        return str(json.loads(line)["id"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise DataError(
            f"{path}, line {number} is not a pseudo-label; delete the file to label its images again."
        ) from None

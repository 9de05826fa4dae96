"""Looking at every file of a data set once, before anything is trained on it.

Errors, which keep an image from being used: a listed id without an image, listed twice, or with two files of one stem;
a file that cannot be read (empty, truncated, no image, NaN); an image of less than 8 pixels in a direction; a mask of
another size; a class that the data set does not have; an image of one value (such as all black); a missing mask where
one is demanded.
Only counted, because it is legal: an image without targets, a target that covers more than half of its image, equal and
nearly equal images, equal masks, equal targets.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from sys import intern

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.files import write_rejected
from fewlabel.core.progress import track
from fewlabel.core.types import Image, Instances
from fewlabel.data.check_count import AREA_EDGES, Finding, LabelFinding, area_bins, make_report
from fewlabel.data.check_report import CheckReport
from fewlabel.data.dataset import Dataset, Problem, first_of
from fewlabel.data.fingerprints import label_digest, perceptual_hash, pixel_digest
from fewlabel.data.pixels import FileError

__all__ = ["AREA_EDGES", "MIN_SIDE", "CheckReport", "check"]

MIN_SIDE = 8
"""Smallest height and width that training and evaluation take."""


def check(
    dataset: Dataset,
    *,
    keep_going: bool = False,
    require_masks: Collection[str] = (),
    rejected_csv: Path | None = None,
) -> CheckReport:
    """Decode every listed image and mask once.

    Args:
        dataset: The data set; a reader opened with ``strict=False`` also reports what is wrong with its lists.
        keep_going: False: the first problem (after counting all) is raised. True: problems are listed as rejected.
        require_masks: Ids that have to have a mask, for example those that are to be labelled or tested.
        rejected_csv: Where to write the rejected list (columns id, file, reason), also when it is empty.

    Returns:
        The report.

    Raises:
        DataError: There is a problem and ``keep_going`` is False; or, with it, no image is left.
    """
    ids = list(dict.fromkeys((*dataset.train_ids, *dataset.test_ids)))
    known = {problem.id for problem in dataset.problems}
    todo = [id for id in ids if id not in known]
    problems, good = list(dataset.problems), []
    look = partial(_look, dataset, frozenset(require_masks))
    for found in track(_in_parallel(look, todo), f"checking {dataset.name}", total=len(todo)):
        if isinstance(found, Problem):
            problems.append(found)
        else:
            good.append(found)
    if rejected_csv is not None:
        write_rejected(rejected_csv, ((problem.id, problem.file, problem.reason) for problem in problems))
    if problems and not keep_going:
        raise DataError(first_of(dataset.name, problems))
    if not good:
        first = f"; the first problem: {problems[0].reason}" if problems else ": add images or exclude fewer."
        raise DataError(f"{dataset.name} has no usable image among the {len(ids)} that it lists{first}")
    return make_report(dataset, good, problems)


def _in_parallel(look: Callable[[str], Finding | Problem], ids: Sequence[str]) -> Iterator[Finding | Problem]:
    """What is found for each id, in order; a few are worked on ahead, so what waits is bounded."""
    workers = min(8, os.cpu_count() or 1)
    todo, ahead = iter(ids), deque[Future[Finding | Problem]]()
    # Decoders release the interpreter lock, so threads are enough; only small findings are kept, never pixels.
    with ThreadPoolExecutor(max_workers=workers) as threads:
        try:
            ahead.extend(threads.submit(look, id) for id in islice(todo, 4 * workers))
            while ahead:
                found = ahead.popleft().result()
                ahead.extend(threads.submit(look, id) for id in islice(todo, 1))
                yield found
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _look(dataset: Dataset, require_masks: frozenset[str], id: str) -> Finding | Problem:
    """Decode one image, and its mask if there is one."""
    instances = None
    try:
        if dataset.has_mask(id):
            labelled = dataset.labelled(id)
            image, instances = labelled.image, labelled.instances
        else:
            image = dataset.image(id)
    except DataError as error:
        file = error.file if isinstance(error, FileError) else Path(id)
        return Problem(id, file, str(error))
    path = image.path or Path(id)
    if min(image.height, image.width) < MIN_SIDE:
        return Problem(
            id,
            path,
            f"{path} is {image.height} x {image.width} pixels, expected at least {MIN_SIDE} x {MIN_SIDE}: remove it.",
        )
    if instances is None and id in require_masks:
        return Problem(
            id,
            path,
            f"{path} has no mask, but test images are scored against theirs, or the split draws the labelled share from"
            f" all training images: add the mask of '{id}' or remove the image.",
        )
    if instances is not None and (reason := _strange_class(path, instances, dataset.classes)):
        return Problem(id, path, reason)
    low = image.pixels.min(axis=(1, 2))
    if (low == image.pixels.max(axis=(1, 2))).all():
        reason = f"{path} holds one value only ({low[0]:g}), so there is nothing to learn or to find in it: remove it."
        return Problem(id, path, reason)
    labels = None if instances is None else _labels(instances)
    return Finding(
        id, _shared_size(image.size), _stored(image), perceptual_hash(image.grey()), pixel_digest(image), labels
    )


def _strange_class(path: Path, instances: Instances, classes: Sequence[str]) -> str:
    """What is wrong with the class ids of an image's labels; empty if nothing is."""
    strange = sorted({int(number) for number in instances.classes if not 0 <= number < len(classes)})
    if not strange:
        return ""
    return (
        f"the labels of {path} hold class {', '.join(map(str, strange[:5]))}, but the data set has {len(classes)}"
        f" class{'' if len(classes) == 1 else 'es'}, 0 to {len(classes) - 1} ({', '.join(classes[:5])}"
        f"{', ...' if len(classes) > 5 else ''}): correct the labels or name the class."
    )


def _labels(instances: Instances) -> LabelFinding:
    """What is kept of the labels of one image."""
    areas = instances.areas()
    drawn = [rle["counts"] for rle, area in zip(instances.rles, areas, strict=True) if area]
    return LabelFinding(
        areas=area_bins(areas),
        median=float(np.median(areas)) if len(areas) else 0.0,
        largest=int(areas.max(initial=0)),
        classes=tuple(sorted(Counter(instances.classes.tolist()).items())),
        digest=label_digest(instances),
        repeated=len(drawn) - len(set(drawn)),
        hollow=len(areas) - len(drawn),
    )


@lru_cache(maxsize=1024)
def _shared_size(size: tuple[int, int]) -> tuple[int, int]:
    """One pair for all images of a size."""
    return size


def _stored(image: Image) -> str:
    channels = "1 channel" if image.channels == 1 else f"{image.channels} channels"
    return intern(f"{image.dtype}, {image.bit_depth} bit, {channels}")  # one text for all images that say so

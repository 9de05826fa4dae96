"""The SIRST folder layouts of infrared small target sets (NUAA-SIRST, NUDT-SIRST, IRSTD-1k, SIRST-v2).

::

    root/images/ID.png      one file per image: .png .bmp .jpg .jpeg .tif .tiff .npy
    root/masks/ID.png       one file per labelled image, nonzero = target; any of the same endings; ID_pixels0.png too
    root/img_idx/train*.txt one id per line (a file ending is allowed); likewise val*.txt, trainval*.txt and test*.txt;
                            optional

Image and mask folders may also be mixed/ and annotations/masks/ (SIRST-v2) or IRSTD1k_Img/ and IRSTD1k_Label/
(IRSTD-1k). The lists may also lie in idx_427/ (NUAA-SIRST), in splits/ (SIRST-v2, whose lists PART_full.txt count and
not those of its smaller protocols) or in the root (IRSTD-1k; there the names are train.txt, val.txt, trainval.txt and
test.txt).

A validation list trains where the test part has masks (see `lists.held_out`), and trainval is a training list. Without
a training list every image that no other list names is a training image, in sorted order; without a test list the
validation part is held out, if there is one. Images that no list names are left alone when a training list exists. A
list somewhere else is an error: were it overlooked, its test images would train.
"""

from __future__ import annotations

from pathlib import Path

from fewlabel.core.errors import DataError
from fewlabel.data.dataset import Canvas
from fewlabel.data.pixels import read_mask
from fewlabel.data.readers.base import (
    ENDINGS,
    FolderDataset,
    Index,
    Labels,
    by_stem,
    list_problems,
    only,
    refuse_size,
    twins,
)
from fewlabel.data.readers.lists import Lists, exact_lists, listed_parts, prefixed_lists, read_lists, refuse_stray
from fewlabel.data.readers.maps import from_mask

FOLDERS = (("images", "masks"), ("mixed", "annotations/masks"), ("IRSTD1k_Img", "IRSTD1k_Label"))
"""Folders of images and masks."""

LISTS = {"img_idx": "", "idx_427": "", "splits": "_full"}
"""Folders of lists, and how the names of those end that count before others of their part (see `prefixed_lists`)."""

PIXELS = "_pixels0"  # how NUAA-SIRST and SIRST-v2 end the names of masks


class SirstDataset(FolderDataset):
    """A data set in the SIRST layout; its targets are the masks' 8-connected components."""

    format = "sirst"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        name, masks = _folders(root)
        if name != FOLDERS[0][0]:
            return f"it holds {name}/ and {masks}/" if by_stem(root / name) and (root / masks).is_dir() else None
        images = root / name
        if not by_stem(images) or (root / "instances").is_dir():
            return None
        if any((root / f"{part}.txt").is_file() for part in ("train", "val", "trainval", "test")):
            return None  # the lists of the layout `masks`, which must not be overlooked: test images would train
        if any((root / "img_idx").glob("*.txt")):
            return "it holds images/ and id lists in img_idx/"
        return "it holds images/ and masks/" if (root / "masks").is_dir() else None

    def _index(self) -> Index:
        images, masks = (self.root / name for name in _folders(self.root))
        if not images.is_dir():
            raise DataError(f"{self.root} has no folder 'images': expected the layout images/ masks/ img_idx/.")
        files = by_stem(images)
        if not files:
            raise DataError(f"{images} holds no image: expected files that end with {', '.join(ENDINGS)}.")
        named = {**by_stem(masks, suffix=PIXELS), **by_stem(masks)}
        self._masks = {id: paths for id, paths in named.items() if id in files}
        if named and not self._masks:
            raise DataError(f"no mask in {masks} (such as '{next(iter(named))}') is named like an image: rename them.")
        lists = _lists(self.root)
        if not lists.all():
            folders = ", ".join(f"{name}/" for name in LISTS)
            refuse_stray(
                self.root, files, f"{folders} as train*.txt and test*.txt and in the root as train.txt and test.txt"
            )
        problems = (*twins(self._masks), *list_problems(lists.all(), files, images))
        return Index(files, frozenset(self._masks), *listed_parts(lists, files, self._masks), problems=problems)

    def _labels(self, id: str, image: Canvas) -> Labels:
        path = only(self._masks[id])
        mask = read_mask(path, max_pixels=self.max_pixels)
        refuse_size(path, "mask", (mask.shape[0], mask.shape[1]), image)
        return Labels(from_mask(mask))


def _folders(root: Path) -> tuple[str, str]:
    """The folders of images and masks: the first pair whose images are there."""
    return next((pair for pair in FOLDERS if (root / pair[0]).is_dir()), FOLDERS[0])


def _lists(root: Path) -> Lists:
    """The lists of the one folder that holds some; DataError if several do."""
    found = {root / name: files for name, full in LISTS.items() if (files := prefixed_lists(root / name, full))}
    if files := exact_lists(root):
        found[root] = files
    if len(found) > 1:
        raise DataError(
            f"id lists lie in {' and in '.join(str(folder) for folder in found)}: keep those of one folder, because"
            " published splits must not be mixed."
        )
    return read_lists(next(iter(found.values()), {}))

"""The SIRST folder layout of infrared small target sets (NUAA-SIRST, NUDT-SIRST, IRSTD-1k, SIRST-v2).

::

    root/images/ID.png      one file per image: .png .bmp .jpg .jpeg .tif .tiff .npy
    root/masks/ID.png       one file per labelled image, nonzero = target; any of the same endings; ID_pixels0.png too
    root/img_idx/train*.txt one id per line (a file ending is allowed); optional
    root/img_idx/test*.txt  likewise; optional

Without a training list every image that the test list does not name is a training image, in sorted order; without
a test list the test part is empty. Images that no list names are left alone when a training list exists.
"""

from __future__ import annotations

from pathlib import Path

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image, Instances
from fewlabel.data.pixels import read_mask
from fewlabel.data.readers.base import (
    ENDINGS,
    FolderDataset,
    Index,
    Labels,
    Listed,
    by_stem,
    list_problems,
    only,
    parts,
    read_list,
    refuse_size,
    twins,
)

PIXELS = "_pixels0"  # how SIRST-v2 and some copies of NUAA-SIRST end the names of masks


class SirstDataset(FolderDataset):
    """A data set in the SIRST layout; its targets are the masks' 8-connected components."""

    format = "sirst"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        images = root / "images"
        if not by_stem(images) or (root / "instances").is_dir():
            return None
        if any((root / f"{part}.txt").is_file() for part in ("train", "val", "trainval", "test")):
            return None  # the lists of the layout `masks`, which must not be overlooked: test images would train
        if any((root / "img_idx").glob("*.txt")):
            return "it holds images/ and id lists in img_idx/"
        return "it holds images/ and masks/" if (root / "masks").is_dir() else None

    def _index(self) -> Index:
        images, masks = self.root / "images", self.root / "masks"
        if not images.is_dir():
            raise DataError(f"{self.root} has no folder 'images': expected the layout images/ masks/ img_idx/.")
        files = by_stem(images)
        if not files:
            raise DataError(f"{images} holds no image: expected files that end with {', '.join(ENDINGS)}.")
        named = {**by_stem(masks, suffix=PIXELS), **by_stem(masks)}
        self._masks = {id: paths for id, paths in named.items() if id in files}
        if named and not self._masks:
            raise DataError(f"no mask in {masks} (such as '{next(iter(named))}') is named like an image: rename them.")
        train, test = (_list(self.root / "img_idx", part) for part in ("train", "test"))
        problems = (*twins(self._masks), *list_problems((*train, *test), files, images))
        return Index(files, frozenset(self._masks), *parts(files, train, test), problems=problems)

    def _labels(self, id: str, image: Image) -> Labels:
        path = only(self._masks[id])
        mask = read_mask(path, max_pixels=self.max_pixels)
        refuse_size(path, "mask", (mask.shape[0], mask.shape[1]), image)
        return Labels(Instances.from_semantic(mask, source="human"))


def _list(folder: Path, part: str) -> list[Listed]:
    """The ids of ``folder/part*.txt``; empty if there is no such list."""
    lists = sorted(folder.glob(f"{part}*.txt"))
    if len(lists) > 1:
        names = ", ".join(path.name for path in lists)
        raise DataError(
            f"{folder} holds several {part} lists ({names}): keep one, because published splits must not be mixed."
        )
    return read_list(lists[0]) if lists else []

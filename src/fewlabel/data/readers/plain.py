"""A folder of images without labels, with any folders in it.

Every image is a training image. Images of one folder within the root are a group: a recording, most often. Folders of
masks beside folders of images, in a place where no layout has them, are an error: the masks would train as images.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fewlabel.core.errors import DataError
from fewlabel.data.dataset import Canvas
from fewlabel.data.readers.base import ENDINGS, FolderDataset, Index, Labels, below
from fewlabel.data.readers.masks import BINARY, IMAGES, INDEXES, NUMBERS


class PlainDataset(FolderDataset):
    """Images without labels."""

    format = "plain"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        return "it holds images and no labels that fewlabel knows" if root.is_dir() and below(root) else None

    def _index(self) -> Index:
        images = below(self.root)
        if not images:
            raise DataError(f"{self.root} holds no image: expected files that end with {', '.join(ENDINGS)}.")
        _refuse_masks(self.root, [path for paths in images.values() for path in paths])
        return Index(images, frozenset(), tuple(sorted(images)))

    def _labels(self, id: str, image: Canvas) -> Labels:
        raise DataError(f"{self.name} has no labels, so none can be read for '{id}': use it unlabelled.")

    def group(self, id: str) -> str:
        """The folder within the root; an image that lies in the root itself is alone."""
        folder = self._file(id).parent
        return id if folder == self.root else str(folder.relative_to(self.root))


def _refuse_masks(root: Path, files: Collection[Path]) -> None:
    """Raise a DataError if a folder of masks lies beside one of images that has files of the same names."""
    folders = {path.parent for path in files}
    for images in sorted(folder for folder in folders if folder.name == IMAGES):
        for masks in (images.with_name(name) for name in (NUMBERS, *INDEXES, BINARY)):
            if masks not in folders:
                continue
            named, others = ({path.stem for path in files if path.parent == folder} for folder in (images, masks))
            if named & others:
                raise DataError(
                    f"{root} holds masks in {masks.relative_to(root)}/, which would count as images here: for a data"
                    f" set of one part give {images.parent}; for several move the images of each to {IMAGES}/PART and"
                    f" its masks to {NUMBERS}/PART (a number for each object) or {BINARY}/PART; without labels give"
                    f" {images}."
                )

"""A folder of images without labels, with any folders in it.

Every image is a training image. Images of one folder within the root are a group: a recording, most often.
"""

from __future__ import annotations

from pathlib import Path

from fewlabel.core.errors import DataError
from fewlabel.data.dataset import Canvas
from fewlabel.data.readers.base import ENDINGS, FolderDataset, Index, Labels, below


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
        return Index(images, frozenset(), tuple(sorted(images)))

    def _labels(self, id: str, image: Canvas) -> Labels:
        raise DataError(f"{self.name} has no labels, so none can be read for '{id}': use it unlabelled.")

    def group(self, id: str) -> str:
        """The folder within the root; an image that lies in the root itself is alone."""
        folder = self._file(id).parent
        return id if folder == self.root else str(folder.relative_to(self.root))

"""Sequences in one file: videos, TIFF files of several pages, and .npy stacks (N, H, W); all without labels.

Frame K of the file FOLDER/NAME.mp4 is the image ``FOLDER__NAME__00000K``, K from 0 in six digits. The frames of one
file are a group. Images that are alone in their file are taken as in the format ``plain``. Frames are decoded when they
are asked for: opening a data set reads headers and lists of pages, and videos once without decoding them.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image
from fewlabel.data.dataset import Canvas, Problem
from fewlabel.data.film import ENDINGS as FILMS
from fewlabel.data.film import Film
from fewlabel.data.pixels import count_pages, read_page
from fewlabel.data.readers.base import ENDINGS, FolderDataset, Index, Labels, below, id_of

_STACKS = (".tif", ".tiff", ".npy")  # endings of files that may hold several frames
_ANIMATIONS = (".gif", ".apng")  # of files whose frames can only be reached one after the other
_LOOKED_AT = 16  # files that are opened to recognise a folder without videos


class VideoDataset(FolderDataset):
    """Frames of videos and stacks, and the images beside them."""

    format = "video"

    @classmethod
    def recognise(cls, root: Path) -> str | None:
        """See `FolderDataset.recognise`."""
        files = _files(root)
        if any(path.suffix.lower() in FILMS for path in files):
            return "it holds video files"
        if files and all(path.suffix.lower() in _ANIMATIONS for path in files):
            return "it holds animations"  # which are refused in a sentence of their own
        stacks = [path for path in files if path.suffix.lower() in _STACKS][:_LOOKED_AT]
        return "it holds files of several frames" if any(_pages(path) > 1 for path in stacks) else None

    def _index(self) -> Index:
        files = _files(self.root)
        if not files:
            raise DataError(
                f"{self.root} holds no video and no image: expected files that end with {', '.join(FILMS + ENDINGS)}."
            )
        self._films: dict[Path, Film] = {}
        self._playing: Film | None = None
        self._lock = Lock()
        self._frames: dict[str, int] = {}  # number in its file of each image that is not alone there
        images: dict[str, tuple[Path, ...]] = {}
        problems: list[Problem] = []
        for path in files:
            name = path.relative_to(self.root) if path != self.root else Path(path.name)
            id = id_of(name.with_suffix("") if path.suffix.lower() in FILMS else name)
            try:
                if path.suffix.lower() in _ANIMATIONS:
                    raise DataError(
                        f"{path} is an animation, which is not read: save it as a video or as single images."
                    )
                count = self._count(path)
            except DataError as error:
                problems.append(Problem(id, path, str(error)))
                continue
            if count == 1 and path not in self._films:
                images[id] = (*images.get(id, ()), path)
                continue
            for number in range(count):
                frame = f"{id}__{number:06d}"
                images[frame] = (*images.get(frame, ()), path)
                self._frames[frame] = number
        return Index(images, frozenset(), tuple(sorted(images)), problems=tuple(problems))

    def _count(self, path: Path) -> int:
        """Frames of a file."""
        if path.suffix.lower() not in FILMS:
            return count_pages(path) if path.suffix.lower() in _STACKS else 1
        self._films[path] = Film(path, self.max_pixels)
        return self._films[path].count

    def _labels(self, id: str, image: Canvas) -> Labels:
        raise DataError(f"{self.name} has no labels, so none can be read for '{id}': use it unlabelled.")

    def group(self, id: str) -> str:
        """The file of a frame; of an image that is alone in its file, its folder as in the format ``plain``."""
        path = self._file(id)
        if id in self._frames:
            return str(path.relative_to(self.root)) if path != self.root else path.name
        return id if path.parent == self.root or path == self.root else str(path.parent.relative_to(self.root))

    def _is_alone(self, id: str) -> bool:
        return id not in self._frames

    def _image(self, id: str) -> Image:
        path = self._file(id)
        if id not in self._frames:
            return super()._image(id)
        number = self._frames[id]
        if path not in self._films:
            return read_page(path, number, id, max_pixels=self.max_pixels)
        with self._lock:  # a film goes from frame to frame
            film = self._films[path]
            if self._playing is not None and self._playing is not film:
                self._playing.close()
            self._playing = film
            values = film.frame(number)
        pixels = np.ascontiguousarray(np.atleast_3d(values).transpose(2, 0, 1), dtype=np.float32)
        return Image(id, pixels, str(values.dtype), 8 * values.dtype.itemsize, path)


def _files(root: Path) -> list[Path]:
    """Video and image files below a folder, or the root itself where it is such a file."""
    endings = FILMS + _ANIMATIONS + ENDINGS
    if root.is_file():
        return [root] if root.suffix.lower() in endings else []
    return sorted(path for paths in below(root, endings).values() for path in paths)


def _pages(path: Path) -> int:
    """Pages of a file; 0 if it is damaged, which is for `_index` to say."""
    try:
        return count_pages(path)
    except DataError:
        return 0

"""The SIRST folder layout of infrared small target sets (NUAA-SIRST, NUDT-SIRST, IRSTD-1k).

::

    root/images/ID.png      one file per image: .png .bmp .jpg .jpeg .tif .tiff
    root/masks/ID.png       one file per labelled image, nonzero = target; any of the same endings
    root/img_idx/train*.txt one id per line (a file ending is allowed); optional
    root/img_idx/test*.txt  likewise; optional
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image, Instances, Labelled, Unlabelled
from fewlabel.data.dataset import Problem, first_of
from fewlabel.data.pixels import FileError, read_image, read_mask

ENDINGS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")


class SirstDataset:
    """A data set in the SIRST layout; satisfies `fewlabel.data.dataset.Dataset`.

    Without a training list every image that the test list does not name is a training image, in sorted order; without
    a test list the test part is empty. Images that no list names are left alone when a training list exists.

    Args:
        root: The folder that holds ``images``.
        exclude: Ids to leave out of both parts, for example those that a check rejected; nothing that is wrong with
            them is reported.
        strict: True: the first problem of lists and folders is raised. False: all are kept in ``problems`` and using
            such an id raises.

    Attributes:
        name: The folder's name.
        train_ids: Ids of the training part.
        test_ids: Ids of the test part.
        problems: What is wrong with single ids (empty if strict): an id without an image, twice in a list or in both
            lists, two files for one id.

    Raises:
        DataError: The folder or its ``images`` is missing or holds no image; several training or test lists; a list
            that cannot be read; with ``strict`` also the first of the problems above.
    """

    def __init__(self, root: Path | str, exclude: frozenset[str] = frozenset(), *, strict: bool = True) -> None:
        self.root = Path(root)
        self.name = self.root.resolve().name
        images = self.root / "images"
        if not self.root.is_dir():
            raise DataError(f"The data folder {self.root} does not exist; set data.root to the folder of the images.")
        if not images.is_dir():
            raise DataError(f"{self.root} has no folder 'images': expected the layout images/ masks/ img_idx/.")
        self._images = _by_stem(images)
        self._masks = _by_stem(self.root / "masks")
        if not self._images:
            raise DataError(f"{images} holds no image: expected files that end with {', '.join(ENDINGS)}.")
        if self._masks and not self._masks.keys() & self._images.keys():
            example = next(iter(self._masks))
            raise DataError(
                f"no mask in {self.root / 'masks'} (such as '{example}') is named like an image: rename them."
            )
        train, test = (_read_list(self.root / "img_idx", part) for part in ("train", "test"))
        problems = [problem for problem in self._find_problems(train, test) if problem.id not in exclude]
        if strict and problems:
            raise DataError(first_of(self.name, problems))
        self.problems = tuple(problems)
        tested = [id for id, _, _ in test]
        trained = [id for id, _, _ in train] if train else sorted(set(self._images) - set(tested))
        self.train_ids = tuple(id for id in dict.fromkeys(trained) if id not in exclude)
        self.test_ids = tuple(id for id in dict.fromkeys(tested) if id not in exclude)

    def has_mask(self, id: str) -> bool:
        """Whether ``masks`` holds a file for this id; the file is not opened."""
        return id in self._masks

    def image(self, id: str) -> Image:
        """Read the image of ``id``; DataError if it has no file, two files or a broken one."""
        if id not in self._images:
            raise DataError(f"{self.name} has no image '{id}' in {self.root / 'images'}: check the id or add the file.")
        return read_image(_only(self._images[id]), id)

    def labelled(self, id: str) -> Labelled:
        """Read image and mask; the targets are the mask's 8-connected components.

        Raises:
            DataError: No mask, a broken file, or a mask of another size than its image.
        """
        image = self.image(id)
        if id not in self._masks:
            raise DataError(
                f"image '{id}' of {self.name} has no mask in {self.root / 'masks'}: add the mask or use it unlabelled."
            )
        path = _only(self._masks[id])
        mask = read_mask(path)
        if mask.shape != (image.height, image.width):
            raise FileError(
                path,
                f"mask {path} is {mask.shape[0]} x {mask.shape[1]} pixels (height x width), but its image is "
                f"{image.height} x {image.width}: export the mask again at the size of the image.",
            )
        return Labelled(image, Instances.from_semantic(mask, source="human"))

    def unlabelled(self, id: str) -> Unlabelled:
        """Read the image alone; DataError as `image`."""
        return Unlabelled(self.image(id))

    def _find_problems(
        self, train: list[tuple[str, Path, int]], test: list[tuple[str, Path, int]]
    ) -> Iterator[Problem]:
        """Everything wrong with single ids, without opening an image."""
        for files in (self._images, self._masks):
            for id, paths in files.items():
                if len(paths) > 1:
                    yield Problem(id, paths[1], _two_files(paths))
        first: dict[str, tuple[Path, int]] = {}
        for id, path, line in (*train, *test):
            where = f"{path}, line {line}"
            if id not in self._images:
                folder = self.root / "images"
                yield Problem(id, path, f"{where}: '{id}' has no file in {folder}: add it or remove the line.")
            if id in first:
                other, before = first[id]
                there = f"line {before}" if other == path else f"{other}, line {before}"
                yield Problem(id, path, f"{where}: '{id}' is listed already in {there}: remove one of them.")
            else:
                first[id] = (path, line)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Image files of a folder (not of folders in it) by stem, sorted; hidden files are passed over."""
    found: dict[str, list[Path]] = defaultdict(list)
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in ENDINGS and not path.name.startswith("."):
                found[path.stem].append(path)
    return dict(found)


def _only(paths: list[Path]) -> Path:
    """The one file of an id."""
    if len(paths) > 1:
        raise FileError(paths[1], _two_files(paths))
    return paths[0]


def _two_files(paths: list[Path]) -> str:
    names = " and ".join(path.name for path in paths)
    return f"{paths[0].parent} holds {names} for the same id '{paths[0].stem}': keep one of them."


def _read_list(folder: Path, part: str) -> list[tuple[str, Path, int]]:
    """The ids of ``folder/part*.txt`` with file and line number; empty if there is no such list."""
    lists = sorted(folder.glob(f"{part}*.txt"))
    if not lists:
        return []
    if len(lists) > 1:
        names = ", ".join(path.name for path in lists)
        raise DataError(
            f"{folder} holds several {part} lists ({names}): keep one, because published splits must not be mixed."
        )
    path = lists[0]
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: a byte order mark is no part of the first id
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"id list {path} cannot be read as UTF-8 text: save it as plain text, one id per line."
        ) from error
    entries = [(line.strip(), path, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not entries:
        raise DataError(f"id list {path} names no image: put one id on each line or remove the file.")
    return [(_without_ending(entry), path, number) for entry, path, number in entries]


def _without_ending(entry: str) -> str:
    """``Misc_1.png`` and ``Misc_1`` name the same image; other dots belong to the id."""
    for ending in ENDINGS:
        if entry.lower().endswith(ending):
            return entry[: -len(ending)]
    return entry

"""Writing synthetic object scenes as a data set on disk in COCO's instance format."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewlabel.core.errors import DataError
from fewlabel.core.files import replace_folder, write_json
from fewlabel.core.masks import boxes, encode
from fewlabel.data.synth.objects import ObjectScene, ObjectsConfig, catalogue_for, render

ANNOTATIONS = "annotations.json"


def write_coco_dataset(
    folder: Path,
    images: int,
    seed: int,
    *,
    style: str = "generic",
    classes: int = 6,
    size: tuple[int, int] | int = 256,
    config: ObjectsConfig | None = None,
) -> Path:
    """Render scenes of one catalogue of classes and write `images/scene_NNNNN.png` and `annotations.json`.

    The classes depend on `seed`, `style` and `classes`, image k on these and k: a longer data set starts with the same
    images, and the same call writes the same bytes. The folder appears complete or not at all.

    Args:
        folder: where to write; must not exist yet or be empty.
        images: number of images, at least 1.
        seed: non-negative seed.
        style: one of `objects_kinds.STYLES`.
        classes: number of classes, 1 to 20.
        size: (height, width) or one side, in pixels.
        config: ranges of the renderer.

    Returns:
        The folder. Masks are COCO run-length codes of what is seen of each object; boxes are xywh in pixel edges;
        category k + 1 is class k of the catalogue, with the outline as its supercategory.

    Raises:
        DataError: the folder holds something already, or a number is out of range.
    """
    folder = Path(folder)
    if images < 1 or seed < 0:
        raise DataError(f"A synthetic COCO data set needs images >= 1 and seed >= 0; got {images} and {seed}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already; name a new folder for the synthetic data set or remove this one.")
    config = config or ObjectsConfig()
    catalogue = catalogue_for(np.random.default_rng([seed, 0, 1]), style, config, classes)
    content: dict[str, Any] = {
        "info": {"description": f"fewlabel synthetic objects, {style}, seed {seed}"},
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": kind.name, "supercategory": kind.outline}
            for number, kind in enumerate(catalogue.kinds, 1)
        ],
    }
    with replace_folder(folder) as fresh:
        (fresh / "images").mkdir()
        for k in range(images):
            scene = render(np.random.default_rng([seed, k, 2]), size, config, catalogue)
            name = f"scene_{k:05d}.png"
            Image.fromarray(np.ascontiguousarray(scene.pixels.transpose(1, 2, 0))).save(
                fresh / "images" / name, compress_level=1
            )
            height, width = scene.labels.shape
            content["images"].append({"id": k + 1, "file_name": name, "height": height, "width": width})
            content["annotations"] += coco_annotations(scene, k + 1, len(content["annotations"]) + 1)
        write_json(fresh / ANNOTATIONS, content)
    return folder


def coco_annotations(scene: ObjectScene, image: int, first: int) -> list[dict[str, Any]]:
    """The objects of a scene as COCO annotations, in the order of their labels.

    Args:
        scene: a rendered scene.
        image: `image_id` of the annotations.
        first: `id` of the first of them; the others follow.
    """
    found = []
    for number, kind in enumerate(scene.classes):
        mask = scene.labels == number + 1
        code = encode(mask)
        x0, y0, x1, y1 = (float(v) for v in boxes(mask[None])[0])
        found.append(
            {
                "id": first + number,
                "image_id": image,
                "category_id": int(kind) + 1,
                "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
            }
        )
    return found

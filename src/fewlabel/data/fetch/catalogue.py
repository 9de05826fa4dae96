"""The public data sets that can be fetched by name: where they are, how large, under which licence, and their hashes.

An archive is listed only when its SHA-256 is known for sure, that is published alike in at least two independent
places; hashes published as MD5 alone are not enough, and a set without a known hash is not listed. Nothing heavy is
imported.
"""

from dataclasses import dataclass

from fewlabel.core.errors import RunError

CC0 = "CC0 1.0 (public domain)"


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Attributes:
        file: Its name on disk.
        sha256: SHA-256 of its bytes, lower-case hexadecimal.
        size: Its bytes; None where the exact number is not known.
        urls: Places that offer these very bytes, the best first.
        into: Folder below the data set's folder that it is unpacked into; empty for the folder itself.
    """

    file: str
    sha256: str
    size: int | None
    urls: tuple[str, ...]
    into: str = ""


@dataclass(frozen=True)
class PublicSet:
    """A public data set.

    Attributes:
        name: The name that `fewlabel data get` takes.
        title: What it is.
        home: Page of its authors.
        images: Number of images.
        licence: Licence, or whose terms hold.
        citation: What its authors ask to cite.
        layout: Files after unpacking, relative to the folder.
        archives: What is downloaded, in the order of unpacking.
    """

    name: str
    title: str
    home: str
    images: int
    licence: str
    citation: str
    layout: str
    archives: tuple[Archive, ...]

    @property
    def size(self) -> int | None:
        """Bytes to download in all; None where they are not known exactly."""
        sizes = [archive.size for archive in self.archives]
        return None if None in sizes else sum(size for size in sizes if size is not None)


_BROAD = "https://data.broadinstitute.org/bbbc"
_COCO = ("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org")
_PETS = ("https://www.robots.ox.ac.uk/~vgg/data/pets/data", "https://thor.robots.ox.ac.uk/~vgg/data/pets")
_VOC = ("https://thor.robots.ox.ac.uk/pascal/VOC/voc2012", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012")
_BOWL = (
    "Caicedo et al.: Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl. "
    "Nature Methods 16 (2019) 1247-1253"
)


def _on(places: tuple[str, ...], path: str) -> tuple[str, ...]:
    """The file's address at each place."""
    return tuple(f"{place}/{path}" for place in places)


SETS = (
    PublicSet(
        name="bbbc038",
        title="cell nuclei in many kinds of microscopy (2018 Data Science Bowl, stage 1)",
        home="https://bbbc.broadinstitute.org/BBBC038",
        images=670,
        licence=CC0,
        citation=f"{_BOWL}; image set BBBC038v1, Ljosa et al., Nature Methods 9 (2012) 637",
        layout="stage1_train/ID/images/ID.png, stage1_train/ID/masks/*.png with one nucleus in each",
        archives=(
            Archive(
                "stage1_train.zip",
                "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
                None,
                (f"{_BROAD}/BBBC038/stage1_train.zip",),
                into="stage1_train",
            ),
        ),
    ),
    PublicSet(
        name="bbbc039",
        title="nuclei of U2OS cells, fluorescence, 16 bit, 520 x 696 px",
        home="https://bbbc.broadinstitute.org/BBBC039",
        images=200,
        licence=CC0,
        citation="Caicedo et al.: Evaluation of deep learning strategies for nucleus segmentation in fluorescence "
        "images. Cytometry A 95 (2019) 952-965; image set BBBC039v1, Ljosa et al., Nature Methods 9 (2012) 637",
        layout="images/NAME.tif, masks/NAME.png, metadata/training.txt, validation.txt and test.txt with names",
        archives=(
            Archive(
                "images.zip",
                "6f30a5d4fe38c928ded972704f085975f8dc0d65d9aa366df00e5a9d449fddd7",
                77_915_748,
                (f"{_BROAD}/BBBC039/images.zip",),
            ),
            Archive(
                "masks.zip",
                "f9e6043d8ca56344a4886f96a700d804d6ee982f31e2b2cd3194af2a053c2710",
                2_753_811,
                (f"{_BROAD}/BBBC039/masks.zip",),
            ),
            Archive(
                "metadata.zip",
                "a2c1f900bed9ba92a99553efd4c2ae98598433691c7401d818653ab61110deb2",
                17_816,
                (f"{_BROAD}/BBBC039/metadata.zip",),
            ),
        ),
    ),
    PublicSet(
        name="coco-val2017",
        title="everyday photographs, 80 kinds of objects, instance masks (COCO 2017, validation)",
        home="https://cocodataset.org",
        images=5000,
        licence="annotations CC BY 4.0; images belong to their owners, under Flickr's terms of use",
        citation="Lin et al.: Microsoft COCO: Common Objects in Context. ECCV 2014",
        layout="val2017/ID.jpg, annotations/instances_val2017.json (and the other annotations of 2017)",
        archives=(
            Archive(
                "val2017.zip",
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                815_585_330,
                _on(_COCO, "zips/val2017.zip"),
            ),
            Archive(
                "annotations_trainval2017.zip",
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                252_907_541,
                _on(_COCO, "annotations/annotations_trainval2017.zip"),
            ),
        ),
    ),
    PublicSet(
        name="dsb2018-stardist",
        title="fluorescence nuclei of the 2018 Data Science Bowl as label maps, 447 for training and 50 for testing",
        home="https://github.com/stardist/stardist",
        images=497,
        licence=CC0,
        citation=f"{_BOWL}; Schmidt, Weigert, Broaddus, Myers: Cell Detection with Star-convex Polygons. MICCAI 2018",
        layout="dsb2018/train/images/ID.tif, dsb2018/train/masks/ID.tif with label maps, dsb2018/test likewise",
        archives=(
            Archive(
                "dsb2018.zip",
                "e44921950edce378063aa4457e625581ba35b4c2dbd9a07c19d48900129f386f",
                None,
                ("https://github.com/stardist/stardist/releases/download/0.1.0/dsb2018.zip",),
            ),
        ),
    ),
    PublicSet(
        name="oxford-pets",
        title="cats and dogs of 37 breeds with trimaps (Oxford-IIIT Pet)",
        home="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        images=7390,
        licence="CC BY-SA 4.0; the images' copyright remains with their owners",
        citation="Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs. CVPR 2012",
        layout="images/NAME.jpg, annotations/trimaps/NAME.png (1 pet, 2 background, 3 border), "
        "annotations/trainval.txt and test.txt",
        archives=(
            Archive(
                "images.tar.gz",
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
                791_918_971,
                _on(_PETS, "images.tar.gz"),
            ),
            Archive(
                "annotations.tar.gz",
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
                19_173_078,
                _on(_PETS, "annotations.tar.gz"),
            ),
        ),
    ),
    PublicSet(
        name="voc2012",
        title="photographs, 20 kinds of objects, 2913 with masks (Pascal VOC 2012, training and validation)",
        home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        images=17_125,
        licence="no licence is given; the images are under Flickr's terms of use",
        citation="Everingham, Van Gool, Williams, Winn, Zisserman: The PASCAL Visual Object Classes Challenge 2012 "
        "(VOC2012) Results",
        layout="VOCdevkit/VOC2012/JPEGImages/ID.jpg, SegmentationClass/ID.png, SegmentationObject/ID.png, "
        "ImageSets/Segmentation/train.txt and val.txt",
        archives=(
            Archive(
                "VOCtrainval_11-May-2012.tar",
                "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                1_999_639_040,
                _on(_VOC, "VOCtrainval_11-May-2012.tar"),
            ),
        ),
    ),
)


def find_set(name: str) -> PublicSet:
    """The public data set of this name.

    Raises:
        RunError: There is none.
    """
    for entry in SETS:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in SETS)
    raise RunError(f"There is no public data set {name!r} in the list: choose one of {known}.")

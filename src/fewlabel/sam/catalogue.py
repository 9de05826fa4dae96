"""The checkpoints known by a short name: what they are, how large, under which licence, and where they come from.

Nothing heavy is imported here, so that the list is printed at once.
"""

from dataclasses import dataclass

APACHE = "Apache-2.0"
SAM3_LICENCE = "SAM License of 2025-11-19"
LICENCES = {"sam": APACHE, "sam_hq": APACHE, "sam2": APACHE, "mobile_sam": APACHE, "sam3_tracker": SAM3_LICENCE}

# `model_type` of a checkpoint -> family. The official checkpoints of SAM 2 and 3 are stored as models for videos, which
# hold the image model's weights; its class finds them.
MODEL_TYPES = {
    "sam": "sam",
    "sam_hq": "sam_hq",
    "sam2": "sam2",
    "sam2_video": "sam2",
    "sam3_tracker": "sam3_tracker",
    "sam3_tracker_video": "sam3_tracker",
    "sam3_video": "sam3_tracker",
    "mobile_sam": "mobile_sam",
}

# What a user must have agreed to before a family is loaded; families that are not named here ask for nothing.
RESTRICTIONS = {
    "sam3_tracker": f"SAM 3 is under the {SAM3_LICENCE}: derivatives stay under it, and military, warfare and ITAR use "
    "is forbidden"
}


@dataclass(frozen=True)
class Entry:
    """A checkpoint with a short name.

    Attributes:
        alias: The short name.
        title: The model's own name.
        family: A key of `fewlabel.sam.family.FAMILIES`.
        source: Id on the Hugging Face hub; None where the weights are not there in a form that can be loaded.
        parameters: Number of parameters of the image model, without the memory of SAM 2 and 3 for videos.
        encoder: Channels of the encoder's first block, and number of its blocks with a perceptron, which tell it apart.
        side: Side of the network's square input in pixels.
        origin: Where the weights come from.
    """

    alias: str
    title: str
    family: str
    source: str | None
    parameters: int
    encoder: tuple[int, int]
    side: int
    origin: str

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        return LICENCES[self.family]


def _hub(
    alias: str, title: str, family: str, source: str, parameters: int, encoder: tuple[int, int], side: int = 1024
) -> Entry:
    """An entry whose weights are fetched from the hub."""
    return Entry(alias, title, family, source, parameters, encoder, side, f"hub: {source}")


ENTRIES = (
    Entry("nano", "nano-SAM", "sam2", None, 2_472_945, (16, 11), 256, "inside this package"),
    _hub("sam-vit-b", "SAM ViT-B", "sam", "facebook/sam-vit-base", 93_735_728, (768, 12)),
    _hub("sam-vit-l", "SAM ViT-L", "sam", "facebook/sam-vit-large", 312_343_088, (1024, 24)),
    _hub("sam-vit-h", "SAM ViT-H", "sam", "facebook/sam-vit-huge", 641_090_864, (1280, 32)),
    _hub("sam-hq-vit-b", "SAM-HQ ViT-B", "sam_hq", "syscv-community/sam-hq-vit-base", 94_806_832, (768, 12)),
    _hub("sam-hq-vit-l", "SAM-HQ ViT-L", "sam_hq", "syscv-community/sam-hq-vit-large", 313_676_336, (1024, 24)),
    _hub("sam-hq-vit-h", "SAM-HQ ViT-H", "sam_hq", "syscv-community/sam-hq-vit-huge", 642_686_256, (1280, 32)),
    _hub("sam2-tiny", "SAM 2 Hiera-T", "sam2", "facebook/sam2-hiera-tiny", 31_440_721, (96, 12)),
    _hub("sam2-small", "SAM 2 Hiera-S", "sam2", "facebook/sam2-hiera-small", 38_538_577, (96, 16)),
    _hub("sam2-base-plus", "SAM 2 Hiera-B+", "sam2", "facebook/sam2-hiera-base-plus", 73_328_401, (112, 24)),
    _hub("sam2-large", "SAM 2 Hiera-L", "sam2", "facebook/sam2-hiera-large", 216_924_865, (144, 48)),
    _hub("sam2.1-tiny", "SAM 2.1 Hiera-T", "sam2", "facebook/sam2.1-hiera-tiny", 31_440_721, (96, 12)),
    _hub("sam2.1-small", "SAM 2.1 Hiera-S", "sam2", "facebook/sam2.1-hiera-small", 38_538_577, (96, 16)),
    _hub("sam2.1-base-plus", "SAM 2.1 Hiera-B+", "sam2", "facebook/sam2.1-hiera-base-plus", 73_328_401, (112, 24)),
    _hub("sam2.1-large", "SAM 2.1 Hiera-L", "sam2", "facebook/sam2.1-hiera-large", 216_924_865, (144, 48)),
    _hub("sam3", "SAM 3 tracker", "sam3_tracker", "facebook/sam3", 458_260_369, (1024, 32), 1008),
    Entry(
        "mobile-sam",
        "MobileSAM TinyViT",
        "mobile_sam",
        None,
        9_808_708,
        (64, 10),
        1024,
        "mobile_sam.pt of ChaoningZhang/MobileSAM, then `fewlabel sam convert`",
    ),
)


def find(name: str) -> Entry | None:
    """The entry of a short name or a hub id."""
    return next((entry for entry in ENTRIES if name in (entry.alias, entry.source)), None)

"""Small networks that ship: one module per architecture, the map of their names, their training and prediction."""

from torch import nn

from fewlabel.core.errors import RecipeError
from fewlabel.students.acm import ACM
from fewlabel.students.alcnet import ALCNet
from fewlabel.students.dnanet import DNANet
from fewlabel.students.istdunet import ISTDUNet
from fewlabel.students.mshnet import MSHNet
from fewlabel.students.rdian import RDIAN
from fewlabel.students.unet import UNet

STUDENTS: dict[str, type[nn.Module]] = {
    "acm": ACM,
    "alcnet": ALCNet,
    "dnanet": DNANet,
    "istdunet": ISTDUNet,
    "mshnet": MSHNet,
    "rdian": RDIAN,
    "unet": UNet,
}


def create(name: str) -> nn.Module:
    """Make an untrained student; torch's global generator draws its weights.

    Args:
        name: a key of `STUDENTS`.

    Returns:
        A network from float32 (B, 1, H, W) standardised images of any size to (B, 1, H, W) logits.

    Raises:
        RecipeError: there is no such student.
    """
    if name not in STUDENTS:
        raise RecipeError(f"student: there is no {name!r}; choose one of {', '.join(sorted(STUDENTS))}")
    return STUDENTS[name]()

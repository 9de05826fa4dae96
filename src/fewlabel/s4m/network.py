"""The network of teachers and students: Mask2Former in instance mode, from 0.1 to 47 million parameters.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022, as transformers'
`Mask2FormerForUniversalSegmentation`: nothing to compile, the same code on CPU and GPU.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from fewlabel.core.errors import DataError
from fewlabel.data.views import View
from fewlabel.s4m.backbone import STAGES, load_backbone, replace_norms
from fewlabel.s4m.start import load_start
from fewlabel.sam.families import quiet

Name = Literal["resnet-50", "swin-t", "resnet-18", "tiny", "nano"]
Norm = Literal["frozen", "batch", "group"]

CELL = 4  # pixels along a side of one cell of mask logits and mask features
STRIDE = 32  # pixels per cell of the coarsest feature map; images are padded to multiples of it
LEAST = 2 * STRIDE  # side to which smaller images are padded: group norms need more than one value
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's colours in [0, 1]
RESNETS = ("resnet-50", "resnet-18", "tiny", "nano")
KINDS = {"cross_entropy": "class", "mask": "mask", "dice": "dice"}  # of the library's terms, and what ours are called

ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    # Backbone as the library's ResNet or Swin; head as its Mask2Former, whose defaults are the paper's.
    "resnet-50": {"backbone": {}, "head": {}},
    "swin-t": {"backbone": {"depths": [2, 2, 6, 2], "drop_path_rate": 0.3}, "head": {}},
    "resnet-18": {
        "backbone": {
            "embedding_size": 64,
            "hidden_sizes": [64, 128, 256, 512],
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
        },
        "head": {
            "feature_size": 128,
            "mask_feature_size": 128,
            "hidden_dim": 128,
            "encoder_feedforward_dim": 256,
            "dim_feedforward": 512,
            "encoder_layers": 3,
            "decoder_layers": 4,
            "num_queries": 50,
        },
    },
    "tiny": {
        "backbone": {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64, 128],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        },
        "head": {
            "feature_size": 64,
            "mask_feature_size": 64,
            "hidden_dim": 64,
            "encoder_feedforward_dim": 128,
            "dim_feedforward": 128,
            "num_attention_heads": 4,
            "encoder_layers": 1,
            "decoder_layers": 3,
            "num_queries": 20,
            "train_num_points": 1024,
        },
    },
    "nano": {
        "backbone": {
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 32, 64],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        },
        "head": {
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 64,
            "dim_feedforward": 64,
            "num_attention_heads": 4,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_queries": 10,
            "train_num_points": 256,
        },
    },
}


class NetworkConfig(BaseModel):
    """Which network, and what it starts from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(default="resnet-50", description="Size; tiny and nano are for CPUs.")
    backbone_weights: str | None = Field(
        default=None,
        description="Folder or hub id of a pretrained backbone, such as microsoft/resnet-50; none: from scratch.",
    )
    start: str | None = Field(
        default=None,
        description="Begin as a network that fewlabel trained: its folder, or its run's. The class head begins anew"
        " where the classes differ.",
    )
    norm: Norm | None = Field(
        default=None,
        description="Norms of a ResNet: frozen (as pretrained), batch (for batches of 4 and more), group (for any"
        " batch); by default frozen with pretrained weights and group from scratch. With a start, those that it has.",
    )
    queries: int | None = Field(
        default=None, ge=1, description="Most objects that are found in an image; by default what the size sets."
    )

    @model_validator(mode="after")
    def _norm_has_statistics(self) -> "NetworkConfig":
        if self.norm and self.name not in RESNETS:
            raise ValueError(f"norm is {self.norm!r}, but {self.name} has layer norms alone: leave it out")
        if self.norm == "frozen" and self.backbone_weights is None and self.start is None:
            raise ValueError(
                "norm is 'frozen' without backbone_weights or start: there are no statistics to keep, use 'group'"
            )
        if self.norm == "group" and self.backbone_weights is not None:
            raise ValueError("norm is 'group' with backbone_weights, which are of batch norms: use 'frozen' or 'batch'")
        if self.start is not None and self.backbone_weights is not None:
            raise ValueError("start and backbone_weights are both given, but start brings a backbone: leave one out")
        return self

    @property
    def norms(self) -> Norm:
        """The norms of a ResNet that this asks for.

        Batch norms measure their statistics on the batch: on two images these are noise, and the teacher that labels
        with their running means is another network than the one that was trained. Pretrained ones are therefore kept
        as they are (the paper's choice for COCO), and a network from scratch has group norms, which see one image.
        `batch` is the paper's choice for Cityscapes.
        """
        return self.norm or ("frozen" if self.backbone_weights else "group")


class Layer(NamedTuple):
    """What one decoder layer says: `class_logits` float32 `(B, Q, K + 1)`, `mask_logits` float32 `(B, Q, h, w)`."""

    class_logits: Tensor
    mask_logits: Tensor


class Outputs(NamedTuple):
    """What the network says of B images of `(H, W)` pixels.

    A cell of the maps is always 4 x 4 pixels: row r covers pixel rows 4r to 4r + 3. There are h = ceil(H / 4) rows and
    w = ceil(W / 4) columns, so that the last ones reach over the image's border where its sides are no multiples of 4.

    Attributes:
        class_logits: float32 `(B, Q, K + 1)`; the last class is "no object".
        mask_logits: float32 `(B, Q, h, w)`, one mask for each query.
        mask_features: float32 `(B, C, h, w)`, the per-pixel embedding that masks are made from.
        auxiliary: The same two logits of the learnt queries and of every layer but the last.
    """

    class_logits: Tensor
    mask_logits: Tensor
    mask_features: Tensor
    auxiliary: tuple[Layer, ...]


class InstanceSegmenter(nn.Module):
    """Mask2Former on colours in [0, 1], with its loss.

    Attributes:
        config: what it was made from.
        classes: K, number of classes without "no object".
        network: the library's model; its `criterion` draws points from torch's global generator.
    """

    pixel_mean: Tensor
    pixel_deviation: Tensor

    def __init__(self, config: NetworkConfig, classes: int, *, pretrained: bool = True) -> None:
        """Make a network; torch's global generator draws what is not pretrained.

        Args:
            config: which network.
            classes: K >= 1.
            pretrained: whether to read `config.backbone_weights` and `config.start`; not needed where a checkpoint of
                the whole network is loaded next.

        Raises:
            DataError: There is no class.
            ModelError: The weights to begin with are missing or of another architecture.
        """
        from transformers import Mask2FormerForUniversalSegmentation

        super().__init__()
        if classes < 1:
            raise DataError(f"A network for {classes} classes was asked for, expected 1 or more; name the classes.")
        self.config = config
        self.classes = classes
        with quiet():  # the library remarks that it has not tried ResNets
            self.network: Any = Mask2FormerForUniversalSegmentation(library_config(config, classes))
        _initialise(self.network)
        if pretrained and config.backbone_weights is not None:
            load_backbone(self.backbone, config.backbone_weights)
        replace_norms(self.backbone, config.norms)
        for name, values in (("pixel_mean", MEAN), ("pixel_deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        if pretrained and config.start is not None:
            load_start(self, config.start)

    @property
    def backbone(self) -> nn.Module:
        """The part that pretrained weights fill, and that is trained at a lower rate after them."""
        backbone: nn.Module = self.network.model.pixel_level_module.encoder
        return backbone

    def forward(self, images: Tensor) -> Outputs:
        """Find objects.

        Images are padded with the mean colour on the right and below, to multiples of the coarsest stride, so that the
        cells of all maps meet; what is returned is cut to the images again.

        Args:
            images: float `(B, 3, H, W)` in [0, 1], RGB; grey images have three equal channels. Sides of any length.

        Returns:
            Logits and features, in float32 under any autocast.

        Raises:
            DataError: The images are of another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            raise DataError(
                f"A network got images of shape {tuple(images.shape)}, expected (B, 3, H, W); repeat a grey channel."
            )
        height, width = images.shape[-2:]
        rows, columns = (max(LEAST, -(-side // STRIDE) * STRIDE) for side in (height, width))
        pixels = F.pad((images - self.pixel_mean) / self.pixel_deviation, (0, columns - width, 0, rows - height))
        found = self.network(pixel_values=pixels, output_auxiliary_logits=True)
        h, w = -(-height // CELL), -(-width // CELL)

        def cut(cells: Tensor) -> Tensor:
            return cells.float()[..., :h, :w]

        return Outputs(
            found.class_queries_logits.float(),
            cut(found.masks_queries_logits),
            cut(found.pixel_decoder_last_hidden_state),
            tuple(
                Layer(layer["class_queries_logits"].float(), cut(layer["masks_queries_logits"]))
                for layer in found.auxiliary_logits
            ),
        )

    def loss_terms(self, outputs: Outputs, views: Sequence[View]) -> dict[str, Tensor]:
        """The supervised loss: 2 · cross-entropy + 5 · BCE + 5 · dice of matched queries, over all decoder layers.

        Matching and mask terms look at random points, drawn from torch's global generator. Padding is background. The
        number of objects by which mask terms are divided is that of the whole batch.

        Args:
            outputs: of the views' images, stacked.
            views: one per image, with any number of objects.

        Returns:
            Scalars: `loss`, the sum, and its weighted parts `class`, `mask` and `dice`, summed over the layers.

        Raises:
            DataError: There are not as many views as images, or their size or a class is not the outputs'.
        """
        if len(views) != len(outputs.class_logits):
            raise DataError(f"A loss got {len(views)} views for {len(outputs.class_logits)} images; give one for each.")
        device = outputs.mask_logits.device
        masks = [_over_cells(view, outputs.mask_logits).to(device) for view in views]
        classes = [self._known(view).to(device) for view in views]
        auxiliary = [
            {"class_queries_logits": layer.class_logits, "masks_queries_logits": layer.mask_logits}
            for layer in outputs.auxiliary
        ]
        with torch.autocast(device.type, enabled=False):
            terms: dict[str, Tensor] = self.network.get_loss_dict(
                outputs.mask_logits, outputs.class_logits, masks, classes, auxiliary
            )
            parts = {
                kind: torch.stack([term for name, term in terms.items() if f"loss_{key}" in name]).sum()
                for key, kind in KINDS.items()
            }
            return {"loss": self.network.get_loss(terms), **parts}

    def _known(self, view: View) -> Tensor:
        """A view's classes, if the network has them all."""
        if len(view) and not 0 <= int(view.classes.min()) <= int(view.classes.max()) < self.classes:
            raise DataError(
                f"View of {view.id!r} holds classes {int(view.classes.min())} to {int(view.classes.max())}, expected 0"
                f" to {self.classes - 1}; make a network for all classes of the data."
            )
        return view.classes


def library_config(config: NetworkConfig, classes: int) -> Any:
    """The library's `Mask2FormerConfig` of a network.

    Args:
        config: which network.
        classes: K.

    Returns:
        Its configuration; sizes that are not in `ARCHITECTURES` are the library's defaults, which are the paper's.
    """
    from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

    parts = ARCHITECTURES[config.name]
    kind = ResNetConfig if config.name in RESNETS else SwinConfig
    head = {**parts["head"], **({} if config.queries is None else {"num_queries": config.queries})}
    with quiet():
        return Mask2FormerConfig(
            backbone_config=kind(out_features=list(STAGES), **parts["backbone"]), num_labels=classes, **head
        )


def _over_cells(view: View, logits: Tensor) -> Tensor:
    """A view's masks, float32 `(N, 4h, 4w)`, continued to the last cells' far borders.

    The library's loss looks logits and masks up at fractions of their sides, so both have to cover the same pixels.
    """
    height, width = view.size
    h, w = logits.shape[-2:]
    if (-(-height // CELL), -(-width // CELL)) != (h, w):
        raise DataError(
            f"View of {view.id!r} is {height} x {width} pixels but the network's maps are {h} x {w} cells of {CELL}"
            " pixels; give the views whose images the network saw."
        )
    return F.pad(view.masks.float(), (0, CELL * w - width, 0, CELL * h - height))


@torch.no_grad()
def _initialise(network: Any) -> None:
    """Draw the weights as Mask2Former's authors do where the library draws from a deviation of 0.02.

    That suits weights that a checkpoint replaces; without one, masks and classes would start almost equal for all
    pixels and queries.
    """
    decoder = network.model.pixel_level_module.decoder
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
    for layer in decoder.encoder.layers:
        nn.init.xavier_uniform_(layer.fc1.weight)
        nn.init.xavier_uniform_(layer.fc2.weight)
    network.class_predictor.reset_parameters()

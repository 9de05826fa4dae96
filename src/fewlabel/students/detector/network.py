"""A small D-FINE for targets of a few pixels, on square frames of one size."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewlabel.core.errors import DataError
from fewlabel.students.detector.boxes import CropBoxes

DETECTOR = "dfine"  # what recipes call it
FRAME = 128  # side of the frame in pixels
STRIDE = 4  # pixels per cell of the finest of three feature levels
WIDTHS = (32, 64, 96, 128)  # channels of the backbone's stem and of its stages
HIDDEN = 64  # channels of the feature pyramid and of the decoder
LAYERS = 2  # of the decoder
QUERIES = 30
NOISED = 30  # noised copies of true boxes in each training frame
PRIOR = 0.01  # probability of "target" that an untrained query has
CHECKS_OFF = "TRANSFORMERS_DISABLE_TORCH_CHECK"  # the library's own switch, read at every check


def detector_config() -> Any:
    """The `DFineConfig` of the detector."""
    from transformers import DFineConfig, HGNetV2Config

    stages = list(WIDTHS[1:])
    backbone = HGNetV2Config(
        num_channels=1,
        stem_channels=[1, WIDTHS[0], WIDTHS[0]],
        stem_strides=(2, 1, 1, STRIDE // 2, 1),
        stage_in_channels=list(WIDTHS[:-1]),
        stage_mid_channels=[16, 24, 32],
        stage_out_channels=stages,
        stage_num_blocks=[1, 1, 1],
        stage_downsample=[False, True, True],
        stage_downsample_strides=(2, 2, 2),
        stage_light_block=[False, False, True],
        stage_kernel_size=[3, 3, 5],
        stage_numb_of_layers=[3, 3, 3],
        depths=[1, 1, 1],
        hidden_sizes=stages,
        out_indices=[1, 2, 3],
    )
    return DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # they hold no statistics yet
        num_labels=1,
        initializer_bias_prior_prob=PRIOR,
        encoder_in_channels=stages,
        feat_strides=[STRIDE, 2 * STRIDE, 4 * STRIDE],
        encode_proj_layers=[2],
        encoder_hidden_dim=HIDDEN,
        encoder_ffn_dim=4 * HIDDEN,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        depth_mult=0.34,  # one block for each of the pyramid's three
        d_model=HIDDEN,
        decoder_in_channels=[HIDDEN] * 3,
        decoder_ffn_dim=2 * HIDDEN,
        decoder_layers=LAYERS,
        decoder_attention_heads=4,
        decoder_n_points=4,
        num_queries=QUERIES,
        num_denoising=NOISED,
        label_noise_ratio=0.0,  # there is one class
    )


class Detector(nn.Module):
    """D-FINE on frames: (B, 1, F, F) standardised images to boxes and scores of `QUERIES` candidates each.

    The library's network with narrow layers, a finest feature level of stride 4, where the published D-FINE-N has 16,
    and initial weights of variance 1 / fan-in. Boxes are fractions of the frame: its side belongs to what is learnt.

    Size: 0.536 M parameters. Anchors are 6.4 pixels wide at stride 4 of the default frame.

    Source: Peng et al., "D-FINE", ICLR 2025, as transformers' `DFineForObjectDetection`.

    Attributes:
        frame: side F of the frame in pixels, a multiple of 16.
    """

    def __init__(self, frame: int = FRAME) -> None:
        """Make an untrained network; torch's global generator draws its weights.

        Args:
            frame: side of the frame in pixels.

        Raises:
            DataError: the side is no multiple of the coarsest stride.
        """
        from transformers import DFineForObjectDetection

        super().__init__()
        if frame < 4 * STRIDE or frame % (4 * STRIDE):
            raise DataError(f"the detector's frame is {frame} pixels wide; choose a multiple of {4 * STRIDE}")
        self.frame = frame
        # The outer model's heads are those of the decoder under a second name, and its loss is not used.
        self.network = DFineForObjectDetection(detector_config()).model
        _initialise(self.network)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates in each frame, in no order.

        Args:
            images: float32 (B, 1, F, F), standardised over the whole image.

        Returns:
            boxes float32 (B, Q, 4), xyxy in pixel edges of the frame, and logits float32 (B, Q) of "target".

        Raises:
            DataError: the images are of another size.
        """
        self._check(images)
        output = self.network(images)
        centres, sizes = output.intermediate_reference_points[:, -1].float().split(2, -1)
        boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], -1) * self.frame
        return boxes, output.intermediate_logits[:, -1, :, 0].float()

    def loss(self, images: Tensor, truth: Sequence[CropBoxes]) -> dict[str, Tensor]:
        """Loss of a batch in training mode; torch's global generator draws the noise of denoising.

        Args:
            images: float32 (B, 1, F, F).
            truth: boxes and ignored regions of each.

        Returns:
            Scalars: `loss` and its parts; see `fewlabel.students.detector.loss.detection_loss`.

        Raises:
            DataError: the images are of another size.
        """
        from fewlabel.students.detector.loss import detection_loss, target_of

        self._check(images)
        targets = [target_of(known, images.device) for known in truth]
        return detection_loss(self.network(images, labels=targets), targets, self.network.config)

    def _check(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != (1, self.frame, self.frame):
            raise DataError(
                f"a detector on frames of {self.frame} pixels got images of shape {tuple(images.shape)}, expected"
                f" (B, 1, {self.frame}, {self.frame}); cut frames out, as fewlabel.students.detector.predict does"
            )


@contextmanager
def exportable() -> Iterator[None]:
    """Within the block the library checks no tensor's shape: `torch.onnx.export` has no translation for its checks."""
    before = os.environ.get(CHECKS_OFF)
    os.environ[CHECKS_OFF] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CHECKS_OFF]
        else:
            os.environ[CHECKS_OFF] = before


@torch.no_grad()
def _initialise(network: Any) -> None:
    """Draw weights of variance 1 / fan-in from the global generator; what the library sets to zero stays so.

    Its own deviation of 0.01 suits weights that a checkpoint replaces; in layers of 64 channels it would shrink the
    signal tenfold wherever no norm follows.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.any():
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5, a=-2.0, b=2.0)
    for head in (network.enc_bbox_head, network.decoder.pre_bbox_head):
        nn.init.zeros_(head.layers[-1].weight)  # boxes start as their anchors
    nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)  # a sixth faster on a CPU

"""ACM: a small U-Net whose skips are fused by asymmetric contextual modulation."""

from torch import Tensor, nn

from fewlabel.students.layers import Student, conv_norm, enlarge, initialise, residual_stage, stem, widen

WIDTHS = (16, 32, 64)  # channels at strides 4, 8 and 16
STEM = 8
BLOCKS = 3
REDUCTION = 4


class Modulation(nn.Module):
    """Asymmetric contextual modulation of a low-level by a high-level feature map and the reverse.

    ``Z = 2 G(Y) * X + 2 L(X) * Y`` with X the fine low-level and Y the coarse high-level features, both (B, C, H, W);
    G is a global (pooled) channel attention from top to bottom, L a point-wise channel attention from bottom to top.
    The factor 2 makes both gates, which start near one half, start as the identity. A 3x3 convolution follows.

    Source: Dai et al., "Asymmetric Contextual Modulation for Infrared Small Target Detection", WACV 2021, sec. 3.
    """

    def __init__(self, channels: int) -> None:
        """Make the two bottleneck attentions of ``channels // 4`` hidden units, and the convolution."""
        super().__init__()
        hidden = channels // REDUCTION
        # No batch normalisation behind the pooling: it would see one value per image and be noise in small batches.
        self.down = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )
        self.up = nn.Sequential(
            conv_norm(channels, hidden, kernel=1),
            nn.ReLU(inplace=True),
            conv_norm(hidden, channels, kernel=1),
            nn.Sigmoid(),
        )
        self.post = nn.Sequential(conv_norm(channels, channels), nn.ReLU(inplace=True))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Fuse; both and the result are (B, C, H, W)."""
        return self.post(2 * self.down(high) * low + 2 * self.up(low) * high)


class ACM(Student):
    """ACM U-Net: (B, 1, H, W) standardised images to (B, 1, H, W) logits of "target".

    A stem of stride 4, three residual stages of 16, 32 and 64 channels at strides 4, 8 and 16, two up-sampling steps
    fused with the encoder by `Modulation`, a head at stride 4 and bilinear up-sampling to full resolution.

    Size: 0.398 M parameters, as published. 0.40 G multiply-accumulates on 256x256 when, as in the published figures, a
    transposed convolution is charged its whole kernel at each output pixel and a batch normalisation 4 operations a
    value; the convolutions' arithmetic really done is 0.34 G.

    Source: Dai et al., WACV 2021 (figures: BasicIRSTD toolbox's table, made with the counter thop).
    """

    def __init__(self) -> None:
        """Make an untrained network; torch's global generator draws its weights."""
        super().__init__()
        first, second, third = WIDTHS
        self.stem = stem(STEM, first)
        self.stage1 = residual_stage(first, first, 1, BLOCKS)
        self.stage2 = residual_stage(first, second, 2, BLOCKS)
        self.stage3 = residual_stage(second, third, 2, BLOCKS)
        self.widen2, self.fuse2 = widen(third, second), Modulation(second)
        self.decode2 = residual_stage(second, second, 1, BLOCKS)
        self.widen1, self.fuse1 = widen(second, first), Modulation(first)
        self.decode1 = residual_stage(first, first, 1, BLOCKS)
        last = nn.Conv2d(first // 4, 1, 1)
        self.head = nn.Sequential(conv_norm(first, first // 4), nn.ReLU(inplace=True), last)
        initialise(self, last)

    def _forward(self, images: Tensor) -> Tensor:
        """The network proper; sides are multiples of 16."""
        low1 = self.stage1(self.stem(images))
        low2 = self.stage2(low1)
        high = self.stage3(low2)
        high = self.decode2(self.fuse2(self.widen2(high), low2))
        high = self.decode1(self.fuse1(self.widen1(high), low1))
        return enlarge(self.head(high), 4)

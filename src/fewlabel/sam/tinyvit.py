"""TinyViT, the image encoder of MobileSAM.

TinyViT (Wu et al., ECCV 2022) is a hierarchy of four stages: inverted bottlenecks first, then attention in windows with
learned biases between positions, a depthwise convolution and a perceptron. MobileSAM (Zhang et al., 2023) takes the
variant of 5 million parameters, keeps the last stage at the resolution of the third, so that the grid has stride 16 as
SAM's has, and ends in SAM's neck. Written from the papers; tensors between blocks are channels-last `(B, h, w, C)`.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.sam.modeling_sam import SamVisionEncoderOutput, SamVisionNeck

from fewlabel.core.errors import ModelError


class TinyVitConfig(PreTrainedConfig):
    """Sizes of the encoder; the defaults are MobileSAM's.

    Attributes:
        image_size: Side of the square input in pixels, a multiple of `patch_size`.
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage; the first, which has no attention, is not read.
        window_sizes: Side of the attention windows of each stage in cells; the first is not read.
        strides: Stride of the merging between one stage and the next.
        mlp_ratio: Hidden channels of the perceptrons by channels of the block.
        expand_ratio: Hidden channels of the inverted bottlenecks by channels of the block.
        local_conv_size: Kernel of the depthwise convolution after each attention, odd.
        output_channels: Channels of the image embedding.
    """

    model_type = "tinyvit"
    base_config_key = "vision_config"

    image_size: int = 1024
    embed_dims: Sequence[int] = (64, 128, 160, 320)
    depths: Sequence[int] = (2, 2, 6, 2)
    num_heads: Sequence[int] = (2, 4, 5, 10)
    window_sizes: Sequence[int] = (7, 7, 14, 7)
    strides: Sequence[int] = (2, 2, 1)
    mlp_ratio: float = 4.0
    expand_ratio: float = 4.0
    local_conv_size: int = 3
    output_channels: int = 256

    scale: ClassVar[float] = 1.0  # deviation of SAM's random positional frequencies

    @property
    def patch_size(self) -> int:
        """Stride of the image embedding in pixels: the patch embedding's 4 times the strides of all mergings."""
        return 4 * math.prod(self.strides)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage, which the neck takes."""
        return int(self.embed_dims[-1])

    @property
    def num_pos_feats(self) -> int:
        """Frequencies of SAM's positional code: a sine and a cosine of each fill the embedding's channels."""
        return self.output_channels // 2


class ConvNorm(nn.Sequential):
    """Convolution without bias, padded to keep the size at stride 1, then batch normalisation; channels first."""

    norm: nn.BatchNorm2d

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out)))


class Bottleneck(nn.Module):
    """Pointwise, depthwise 3x3 and pointwise convolution with a GELU between them.

    Args:
        channels: Channels of the input.
        hidden: Channels of the depthwise convolution.
        out: Channels of the output.
        stride: Stride of the depthwise convolution.
    """

    def __init__(self, channels: int, hidden: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = ConvNorm(channels, hidden)
        self.depthwise = ConvNorm(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = ConvNorm(hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `(B, h, w, channels)` to `(B, ceil(h / stride), ceil(w / stride), out)`."""
        hidden = F.gelu(self.expand(tokens.permute(0, 3, 1, 2)))
        hidden = F.gelu(self.depthwise(hidden))
        out: Tensor = self.project(hidden)
        return out.permute(0, 2, 3, 1)


class MBConv(nn.Module):
    """Inverted bottleneck with a shortcut (MobileNetV2) and a GELU after the sum; the block of the first stage."""

    def __init__(self, channels: int, expand_ratio: float) -> None:
        super().__init__()
        self.channels = channels
        self.body = Bottleneck(channels, int(channels * expand_ratio), channels)
        nn.init.zeros_(self.body.project.norm.weight)  # the block starts as its shortcut

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `(B, h, w, C)` to the same shape."""
        return F.gelu(tokens + self.body(tokens))


def relative_index(window: int) -> Tensor:
    """Which learned bias each pair of cells of a window has: one for each absolute offset, rows times columns.

    Args:
        window: Side of the window in cells.

    Returns:
        int64 `(N, N)`, N = window squared, cells in row-major order: `|row offset| * window + |column offset|`.
    """
    cells = torch.arange(window * window)
    rows, columns = cells // window, cells % window
    return (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()


class WindowAttention(nn.Module):
    """Multi-head self-attention inside one window, with a bias for each head and absolute offset of two cells.

    Biases are looked up in every pass. The original keeps a copy from its last `eval()`, and so runs without biases if
    weights are loaded after it.

    Args:
        channels: Channels, divided evenly among the heads.
        heads: Attention heads.
        window: Side of the window in cells.
    """

    index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)  # one head after the other, each query, key and value
        self.proj = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("index", relative_index(window), persistent=False)

    def forward(self, cells: Tensor) -> Tensor:
        """Attend among the N cells of each window; `(windows, N, C)` to the same shape."""
        windows, count, channels = cells.shape
        heads = self.qkv(self.norm(cells)).view(windows, count, self.heads, 3 * channels // self.heads)
        query, key, value = heads.transpose(1, 2).chunk(3, dim=-1)
        bias = self.bias[None, :, self.index].to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(windows, count, channels))
        return out


class TinyVitBlock(nn.Module):
    """Attention in windows, depthwise convolution and perceptron; the block of the later stages.

    A grid that windows do not divide is padded with zeros below and to the right. Padding is not masked: the
    attention's normalisation turns its zeros into the learned offset, and real cells attend to it, as in training.
    """

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: float, kernel: int) -> None:
        super().__init__()
        self.channels = channels
        self.window = window
        self.attention = WindowAttention(channels, heads, window)
        self.local_conv = ConvNorm(channels, channels, kernel=kernel, groups=channels)
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(
            OrderedDict(
                norm=nn.LayerNorm(channels),
                fc1=nn.Linear(channels, hidden),
                act=nn.GELU(),
                fc2=nn.Linear(hidden, channels),
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `(B, h, w, C)` to the same shape."""
        tokens = tokens + self._attend(tokens)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = tokens + self.mlp(tokens)
        return out

    def _attend(self, tokens: Tensor) -> Tensor:
        """Attention in windows that start at the top left corner; `(B, h, w, C)` to the same shape."""
        batch, height, width, channels = tokens.shape
        side = self.window
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        padded = F.pad(tokens, (0, 0, 0, columns * side - width, 0, rows * side - height))
        windows = padded.reshape(batch, rows, side, columns, side, channels).transpose(2, 3)
        mixed = self.attention(windows.reshape(-1, side * side, channels))
        mixed = mixed.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        return mixed.reshape(batch, rows * side, columns * side, channels)[:, :height, :width]


class Stage(nn.Module):
    """Blocks at one resolution, then the merging into the next stage where there is one."""

    def __init__(self, blocks: Sequence[nn.Module], merge: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.merge = merge

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `(B, h, w, C)` to `(B, h', w', C')` of the next stage."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens if self.merge is None else self.merge(tokens)


class TinyVit(nn.Module):
    """MobileSAM's image encoder.

    Args:
        config: The sizes.

    Raises:
        ModelError: The sizes contradict each other.
    """

    def __init__(self, config: TinyVitConfig) -> None:
        super().__init__()
        _check(config)
        dims, last = list(config.embed_dims), len(config.embed_dims) - 1
        self.patch_embed = nn.Sequential(
            ConvNorm(3, dims[0] // 2, kernel=3, stride=2),
            nn.GELU(),
            ConvNorm(dims[0] // 2, dims[0], kernel=3, stride=2),
        )
        stages: list[Stage] = []
        for i, (channels, depth) in enumerate(zip(dims, config.depths, strict=True)):
            merge = None if i == last else Bottleneck(channels, dims[i + 1], dims[i + 1], config.strides[i])
            stages.append(Stage([_block(config, i) for _ in range(depth)], merge))
        self.stages = nn.ModuleList(stages)
        self.neck = SamVisionNeck(config)

    @property
    def blocks(self) -> list[nn.Module]:
        """Blocks of all stages in order; each returns tokens `(B, h, w, C)`, so a forward hook can adapt them."""
        return [block for stage in self.stages for block in cast(Stage, stage).blocks]

    @property
    def block_channels(self) -> list[int]:
        """Channels C of each block's output, in the order of `blocks`."""
        return [cast(MBConv | TinyVitBlock, block).channels for block in self.blocks]

    def forward(self, pixels: Tensor) -> SamVisionEncoderOutput:
        """Encode normalised pixels.

        Args:
            pixels: float `(B, 3, S, S)`, S = `image_size`.

        Returns:
            An object whose `last_hidden_state` is float `(B, output_channels, S / 16, S / 16)`.
        """
        tokens = self.patch_embed(pixels).permute(0, 2, 3, 1)
        for stage in self.stages:
            tokens = stage(tokens)
        return SamVisionEncoderOutput(last_hidden_state=self.neck(tokens))


def _block(config: TinyVitConfig, stage: int) -> MBConv | TinyVitBlock:
    """One block of a stage: convolution in the first, attention in the others."""
    channels = config.embed_dims[stage]
    if stage == 0:
        return MBConv(channels, config.expand_ratio)
    return TinyVitBlock(
        channels, config.num_heads[stage], config.window_sizes[stage], config.mlp_ratio, config.local_conv_size
    )


def _check(config: TinyVitConfig) -> None:
    """Refuse sizes that cannot belong to one encoder."""
    stages = len(config.embed_dims)
    lengths = [len(values) for values in (config.depths, config.num_heads, config.window_sizes)]
    if lengths != [stages] * 3 or len(config.strides) != stages - 1:
        raise ModelError(
            f"The encoder has {stages} embed_dims, but {lengths} depths, num_heads and window_sizes and "
            f"{len(config.strides)} strides; give one value per stage, and one stride less."
        )
    if any(channels % heads for channels, heads in zip(config.embed_dims[1:], config.num_heads[1:], strict=True)):
        raise ModelError(
            f"embed_dims {list(config.embed_dims)} are not divisible by num_heads {list(config.num_heads)}; "
            "choose heads that divide the channels of their stage."
        )
    if config.image_size % config.patch_size:
        raise ModelError(
            f"image_size is {config.image_size}, expected a multiple of {config.patch_size}, the encoder's stride; "
            "choose another size."
        )

"""DNANet: U-Nets nested in each other, so that fine features pass every level many times."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.students.layers import Student, at_multiple, attentive_stage, enlarge, initialise

WIDTHS = (16, 32, 64, 128, 256)  # channels at strides 1, 2, 4, 8 and 16
LEVELS = len(WIDTHS)


def _node(level: int, inputs: int) -> nn.Sequential:
    """Blocks of one node of the grid: one at full resolution, two below."""
    return attentive_stage(inputs, WIDTHS[level], 1 if level == 0 else 2)


class DNANet(Student):
    """DNANet: (B, 1, H, W) standardised images to (B, 1, H, W) logits of "target".

    A triangular grid of nodes, row = stride 1 to 16, column = how many times the features were refined. A node joins
    all nodes before it in its row, the up-sampled node below and the down-sampled node above; its blocks carry channel
    and pixel attention. The last node of each row, brought to 16 channels and full resolution, is fused by one more
    block before the head. In training the three nested U-Nets of the first row have heads of their own.

    Size: 4.692 M parameters (published 4.697 M) and, counted as in `ACM`, 14.05 G multiply-accumulates on 256x256
    (published 14.26 G, with interpolation counted as well); 13.91 G without the batch normalisations.

    Source: Li et al., "Dense Nested Attention Network for Infrared Small Target Detection", TIP 2022; blocks
    and widths of its ResNet-18 variant. Interpolation does not align corners here, see `enlarge`.
    """

    def __init__(self) -> None:
        """Make an untrained network; torch's global generator draws its weights."""
        super().__init__()
        self.nodes = nn.ModuleDict()
        for column in range(LEVELS):
            for level in range(LEVELS - column):
                row = column * WIDTHS[level]
                below = WIDTHS[level + 1] if column else 0
                above = WIDTHS[level - 1] if level else 0
                self.nodes[f"{level}_{column}"] = _node(level, (row + below + above) or 1)
        self.lateral = nn.ModuleList(nn.Conv2d(width, WIDTHS[0], 1) for width in WIDTHS[1:])
        self.fuse = _node(0, LEVELS * WIDTHS[0])
        self.heads = nn.ModuleList(nn.Conv2d(WIDTHS[0], 1, 1) for _ in range(LEVELS - 1))
        initialise(self, *(head for head in self.heads if isinstance(head, nn.Conv2d)))

    def _forward(self, images: Tensor) -> Tensor:
        """The network proper; sides are multiples of 16."""
        logits: Tensor = self._fused(self._grid(images))
        return logits

    def head_logits(self, images: Tensor) -> Tensor:
        """Logits of all heads, as `DeeplySupervised` says: (B, 4, H, W)."""
        return at_multiple(self._all_heads, images, self.multiple)

    def _all_heads(self, images: Tensor) -> Tensor:
        """The fused head first, then those of the nested U-Nets; sides are multiples of 16."""
        grid = self._grid(images)
        nested = [head(grid[0, column]) for column, head in enumerate(self.heads[1:], start=1)]
        return torch.cat([self._fused(grid), *nested], 1)

    def _grid(self, images: Tensor) -> dict[tuple[int, int], Tensor]:
        """All nodes by (level, column)."""
        grid: dict[tuple[int, int], Tensor] = {}
        # Along the diagonals, so that what a node needs from above and below is there.
        for diagonal in range(LEVELS):
            for column in range(diagonal + 1):
                level = diagonal - column
                parts = [grid[level, before] for before in range(column)]
                if column:
                    parts.append(enlarge(grid[level + 1, column - 1]))
                if level:
                    # As published: the maximum on the way down the first column, interpolation in the others.
                    above = grid[level - 1, column]
                    parts.append(F.avg_pool2d(above, 2) if column else F.max_pool2d(above, 2))
                grid[level, column] = self.nodes[f"{level}_{column}"](torch.cat(parts or [images], 1))
        return grid

    def _fused(self, grid: dict[tuple[int, int], Tensor]) -> Tensor:
        """Logits of the feature pyramid over the last node of each row."""
        parts = [grid[0, LEVELS - 1]]
        for level, lateral in enumerate(self.lateral, start=1):
            parts.append(enlarge(lateral(grid[level, LEVELS - 1 - level]), 2**level))
        logits: Tensor = self.heads[0](self.fuse(torch.cat(parts, 1)))
        return logits

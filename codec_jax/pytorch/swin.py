"""Swin transformer stages over a grid [batch, row, column, channel], with upstream's names (spec ESC section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .esc_config import Config

_APART = -100.0


class WindowAttention(nn.Module):
    """Multi-head attention inside every window, with a learned bias per head and relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [batch * window, token, dim], batch slowest. mask: what is added to scores, [window, token, token]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        scores = (q * self.scale) @ k.mT + bias
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden)
        self.linear_2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


class SwinBlock(nn.Module):
    """Pre-norm residual branches: window attention, of windows shifted by half or not, and MLP.

    The grid is padded to whole windows after the norm: tokens attend to these zeros, as upstream.
    """

    def __init__(self, config: Config, dim: int, heads: int, shifted: bool):
        super().__init__()
        self.window, self.shift = config.window, config.window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, config.window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, h: Tensor) -> Tensor:
        _, rows, columns, _ = h.shape
        h = F.pad(h, (0, 0, 0, -columns % self.window, 0, -rows % self.window))
        mask = None
        if self.shift:
            h = h.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(h.shape[1], h.shape[2], self.window, h.device)
        shape = h.shape[1] // self.window, h.shape[2] // self.window
        h = unpartition(self.attn(partition(h, self.window), mask), *shape, self.window)
        return h.roll((self.shift, self.shift), (1, 2))[:, :rows, :columns]


class PatchMerge(nn.Module):
    """Pairs of rows become one, of `out` channels; an odd last row is paired with zeros."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(2 * dim)
        self.down = nn.Linear(2 * dim, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, x.shape[1] % 2))
        return self.down(self.norm(x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(-2)))


class PatchSplit(nn.Module):
    """Every row becomes two, of `out` channels."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.norm(x)).unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)


class SwinStage(nn.Module):
    """`depth` blocks at one scale, every second one shifted, then resampling to another scale or none."""

    def __init__(self, config: Config, scale: int, to: int):
        super().__init__()
        dim, out, heads = config.h_dims[scale], config.h_dims[to], config.num_heads[min(scale, to)]
        self.swint_blocks = nn.ModuleList(SwinBlock(config, dim, heads, bool(i % 2)) for i in range(config.depth))
        self.subsample: nn.Module = nn.Identity()
        if to != scale:
            self.subsample = (PatchMerge if to > scale else PatchSplit)(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.swint_blocks:
            x = block(x)
        return self.subsample(x)


# ---- windows -----------------------------------------------------------------------------------


def partition(x: Tensor, window: int) -> Tensor:
    """[batch, row, column, dim], whole windows high and wide, to [batch * window, token, dim]; windows row by row."""
    x = x.unflatten(1, (-1, window)).unflatten(3, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def unpartition(x: Tensor, rows: int, columns: int, window: int) -> Tensor:
    """The inverse of `partition`, to a grid `rows` windows high and `columns` wide."""
    x = x.unflatten(0, (-1, rows, columns)).unflatten(3, (window, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shift_mask(rows: int, columns: int, window: int, device: torch.device) -> Tensor:
    """-100 between tokens of a shifted, padded grid that rolling brought together, else 0: [window, token, token]."""
    shift = window // 2

    def regions(size: int) -> Tensor:
        places = torch.arange(size, device=device)
        return (places >= size - window).long() + (places >= size - shift)

    labels = 3 * regions(rows)[:, None] + regions(columns)
    labels = partition(labels[None, :, :, None], window)[..., 0]
    return _APART * (labels[:, :, None] != labels[:, None, :]).float()


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every (query, key) of a window, int64 [w², w²]: by row, then column difference."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window)).view(-1, 2)
    difference = places[:, None] - places + window - 1
    return difference[..., 0] * (2 * window - 1) + difference[..., 1]

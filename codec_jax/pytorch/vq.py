"""Product vector quantisation of ESC, cross-scale and residual, with upstream's names (spec ESC section 4).

Features are a grid [batch, row, column, channel]. Losses are (commitment, codebook) of every clip, [2, batch].
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .esc_config import Config


class Quantised(NamedTuple):
    """features: dequantised, a grid. codes: int64 [batch, stream, group, frame]. losses: [2, batch]."""

    features: Tensor
    codes: Tensor
    losses: Tensor


class Codebook(nn.Module):
    """Words [codebook_size, dim]."""

    def __init__(self, size: int, dim: int, l2norm: bool):
        super().__init__()
        self.l2norm = l2norm
        self.embedding = nn.Embedding(size, dim)
        nn.init.normal_(self.embedding.weight, std=math.sqrt(2 / dim))

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest word, the first of equally near ones; by direction alone where l2norm."""
        words = self.embedding.weight
        if self.l2norm:
            z, words = F.normalize(z, dim=-1), F.normalize(words, dim=-1)
        distances = z.square().sum(-1, keepdim=True) - 2 * z @ words.T + words.square().sum(-1)
        return distances.argmin(-1)

    def forward(self, codes: Tensor) -> Tensor:
        return self.embedding(codes)


class ProductVQ(nn.Module):
    """One stream: groups of a code frame's vector are projected down, quantised, and projected up again."""

    def __init__(self, config: Config, stream: int):
        super().__init__()
        self.config, self.rows = config, config.rows(config.scale(stream))
        sizes, dim = group_sizes(config, stream), config.codebook_dims[stream]
        self.vqs: Any = nn.ModuleList(Codebook(config.codebook_size, dim, config.l2norm) for _ in sizes)
        self.down_projs = nn.ModuleList(nn.Linear(size, dim, bias=False) for size in sizes)
        self.up_projs = nn.ModuleList(nn.Linear(dim, size, bias=False) for size in sizes)

    def forward(self, x: Tensor, train: bool = False, quantise: bool = True) -> Quantised:
        """train: gradients pass straight through. quantise: else the grid is only projected down and up."""
        out, codes, losses = [], [], x.new_zeros(2, len(x))
        for chunk, vq, down, up in zip(split(x, self.config), self.vqs, self.down_projs, self.up_projs):
            z = down(chunk)
            codes.append(vq.nearest(z))
            q = z
            if quantise:
                q = vq(codes[-1])
                losses = losses + _losses(z, q) / len(self.vqs)
                q = z + (q - z).detach() if train else q
            out.append(up(q))
        return Quantised(join(out, self.config, self.rows), torch.stack(codes, 1)[:, None], losses)

    def dequantise(self, codes: Tensor) -> Tensor:
        """Codes [batch, group, frame] to a grid."""
        chunks = [up(vq(codes[:, g])) for g, (vq, up) in enumerate(zip(self.vqs, self.up_projs))]
        return join(chunks, self.config, self.rows)


class ResidualGroup(nn.Module):
    """One group of a residual VQ: one projection, and a codebook per stream."""

    def __init__(self, config: Config, size: int):
        super().__init__()
        dim = config.codebook_dims[0]
        self.proj_down = nn.Identity() if size == dim else nn.Linear(size, dim, bias=False)
        self.proj_up = nn.Identity() if size == dim else nn.Linear(dim, size, bias=False)
        books = (Codebook(config.codebook_size, dim, config.l2norm) for _ in range(config.num_streams))
        self.vqs: Any = nn.ModuleList(books)

    def forward(self, chunk: Tensor, streams: int, train: bool, quantise: bool) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, frame, size] to the same dequantised, codes [batch, stream, frame], losses of kept streams."""
        z = residual = self.proj_down(chunk)
        mixed, codes, losses = torch.zeros_like(z), [], z.new_zeros(2, len(z))
        for stream, vq in enumerate(self.vqs):
            codes.append(vq.nearest(residual))
            q = vq(codes[-1])
            kept = float(stream < streams)
            losses = losses + kept * _losses(residual, q)
            q = residual + (q - residual).detach() if train else q
            mixed, residual = mixed + kept * q, residual - q
        out = self.proj_up(mixed if quantise else z)
        return out, torch.stack(codes, 1), losses if quantise else torch.zeros_like(losses)

    def dequantise(self, codes: Tensor) -> Tensor:
        """Codes [batch, stream, frame] of the first streams to [batch, frame, size]."""
        words = [vq(codes[:, stream]) for stream, vq in zip(range(codes.shape[1]), self.vqs)]
        return self.proj_up(sum(words[1:], words[0]))


class ProductResidualVQ(nn.Module):
    """All streams at the coarsest scale."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.rows = config, config.rows(config.scale(0))
        self.vqs: Any = nn.ModuleList(ResidualGroup(config, size) for size in group_sizes(config, 0))

    def forward(self, x: Tensor, streams: int, train: bool = False, quantise: bool = True) -> Quantised:
        """streams: how many are kept; codes are of all. train, quantise: as of ProductVQ."""
        parts = [
            group(chunk, streams, train, quantise) for group, chunk in zip(self.vqs, split(x, self.config), strict=True)
        ]
        out, codes, losses = zip(*parts)
        return Quantised(join(list(out), self.config, self.rows), torch.stack(codes, 2), sum(losses) / len(parts))

    def dequantise(self, codes: Tensor) -> Tensor:
        """Codes [batch, stream, group, frame] of the first streams to a grid."""
        return join([group.dequantise(codes[:, :, g]) for g, group in enumerate(self.vqs)], self.config, self.rows)


# ---- layout ------------------------------------------------------------------------------------


def group_sizes(config: Config, stream: int) -> list[int]:
    """Lengths of contiguous groups of a code frame's vector: equal, and what is left over goes to the last."""
    scale, groups = config.scale(stream), config.num_groups
    each, rest = divmod(config.overlap * config.rows(scale) * config.h_dims[scale], groups)
    return [each] * (groups - 1) + [each + rest]


def split(x: Tensor, config: Config) -> list[Tensor]:
    """A grid to the groups of one vector per code frame, indexed (column, channel, row): [batch, frame, size] each."""
    vectors = x.permute(0, 2, 3, 1).flatten(2).unflatten(1, (-1, config.overlap)).flatten(2)
    each = vectors.shape[-1] // config.num_groups
    cuts = [each * i for i in range(1, config.num_groups)]
    return list(vectors.tensor_split(cuts, dim=-1))


def join(chunks: list[Tensor], config: Config, rows: int) -> Tensor:
    """The inverse of `split`."""
    columns = torch.cat(chunks, -1).unflatten(-1, (config.overlap, -1)).flatten(1, 2)
    return columns.unflatten(-1, (-1, rows)).permute(0, 3, 1, 2)


def _losses(z: Tensor, q: Tensor) -> Tensor:
    """Commitment and codebook loss of every clip: the same number, one with gradients to z, one to q."""
    return torch.stack([(q.detach() - z).square().mean((1, 2)), (q - z.detach()).square().mean((1, 2))])

"""The transformer block of TAAE over [batch, time, dim], with upstream's names (spec TAAE sections 2 and 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import banded_attention, inverse_frequencies
from .config import HalfConfig

_NORM_EPSILON = 1e-2
_QK_NORM_EPSILON = 1e-6
_FF_MULT = 4
_CONFORMER_KERNEL = 17


class LayerNorm(nn.Module):
    """Layer norm of a learned gamma and a fixed beta, which is zero in every published model but saved with it."""

    beta: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta, _NORM_EPSILON)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch, starting near zero."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class RotaryEmbedding(nn.Module):
    """Holder of the rotary frequencies of one block; they are part of a checkpoint."""

    inv_freq: Tensor

    def __init__(self, head_dim: int):
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(head_dim))


class Attention(nn.Module):
    """Multi-head banded self-attention with QK layer norm and partial rotary embedding."""

    def __init__(self, dim: int, head_dim: int, window: tuple[int, int]):
        super().__init__()
        self.head_dim, self.window = head_dim, window
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.LayerNorm(head_dim, eps=_QK_NORM_EPSILON)
        self.k_norm = nn.LayerNorm(head_dim, eps=_QK_NORM_EPSILON)

    def forward(self, x: Tensor, inv_freq: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        y = banded_attention(self.q_norm(q), self.k_norm(k), v, self.window, inv_freq)
        return self.to_out(y.transpose(1, 2).flatten(-2))


class GLU(nn.Module):
    """Linear to value and gate; value * SiLU(gate)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.silu(gate)


class FeedForward(nn.Module):
    """Gated linear unit, then a Linear back to dim."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = _FF_MULT * dim
        self.ff = nn.Sequential(GLU(dim, hidden), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class Conformer(nn.Module):
    """Convolution branch: norm → pointwise → GLU → depthwise k17 → norm → SiLU → pointwise."""

    def __init__(self, dim: int):
        super().__init__()
        reach = _CONFORMER_KERNEL // 2
        self.in_norm = LayerNorm(dim)
        self.pointwise_conv = nn.Conv1d(dim, dim, 1, bias=False)
        self.glu = GLU(dim, dim)
        self.depthwise_conv = nn.Conv1d(dim, dim, _CONFORMER_KERNEL, padding=reach, groups=dim, bias=False)
        self.mid_norm = LayerNorm(dim)
        self.pointwise_conv_2 = nn.Conv1d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise_conv(self.in_norm(x).mT).mT
        x = self.depthwise_conv(self.glu(x).mT).mT
        return self.pointwise_conv_2(F.silu(self.mid_norm(x)).mT).mT


class TransformerBlock(nn.Module):
    """Pre-norm residual branches: attention, optionally conformer, feed-forward."""

    def __init__(self, dim: int, config: HalfConfig):
        super().__init__()
        head_dim = min(config.dim_heads, dim)
        self.pre_norm = LayerNorm(dim)
        self.self_attn = Attention(dim, head_dim, config.sliding_window)
        self.self_attn_scale = LayerScale(dim) if config.layer_scale else nn.Identity()
        if config.conformer:
            self.conformer = Conformer(dim)
            self.conformer_scale = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.ff_norm = LayerNorm(dim)
        self.ff = FeedForward(dim)
        self.ff_scale = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.rope = RotaryEmbedding(head_dim)
        self.has_conformer = config.conformer
        if not config.layer_scale:
            self._start_as_identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn_scale(self.self_attn(self.pre_norm(x), self.rope.inv_freq))
        if self.has_conformer:
            x = x + self.conformer_scale(self.conformer(x))
        return x + self.ff_scale(self.ff(self.ff_norm(x)))

    @torch.no_grad()
    def _start_as_identity(self) -> None:
        """What layer scale does otherwise. The conformer branch starts as it is, upstream too."""
        last = self.ff.ff[-1]
        for parameter in (self.self_attn.to_out.weight, *last.parameters()):
            parameter.zero_()

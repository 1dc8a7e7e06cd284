"""Banded (sliding-window) attention with partial rotary positions (spec TAAE section 2).

The window (left, right) is inclusive on both sides: query i sees keys i-left .. i+right; -1 leaves a side unbounded.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Window = tuple[int, int]
_LONGEST_DENSE = 512
_BLOCK = 256


def banded_attention(
    q: Tensor, k: Tensor, v: Tensor, window: Window, inv_freq: Tensor | None = None, block: int | None = None
) -> Tensor:
    """Softmax(q kᵀ / sqrt(dim)) v inside the window; q, k, v and the result are [batch, head, time, dim].

    inv_freq: rotary frequencies to apply to q and k first (None: none). block: queries of one call, each block against
    exactly its keys, so that memory is O(time * window). By default a short sequence is one dense block.
    """
    time = q.shape[-2]
    block = block or (time if time <= _LONGEST_DENSE else max(_BLOCK, sum(window) + 1))
    pieces = []
    for start in range(0, time, block):
        stop = min(start + block, time)
        keys = slice(*context(start, stop, time, window))
        queries = range(start - keys.start, stop - keys.start)
        pieces.append(_attend(q[..., start:stop, :], k[..., keys, :], v[..., keys, :], queries, window, inv_freq))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-2)


def context(start: int, stop: int, time: int, window: Window) -> tuple[int, int]:
    """First key that queries start .. stop-1 see, and the first behind the last."""
    left, right = window
    return (0 if left < 0 else max(0, start - left)), (time if right < 0 else min(time, stop + right))


def band_mask(queries: Tensor, keys: Tensor, window: Window) -> Tensor:
    """True where a key lies inside the window of a query: positions [query], [key] to bool [query, key]."""
    left, right = window
    distance = keys[None, :] - queries[:, None]
    visible = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        visible = visible & (distance >= -left)
    if right >= 0:
        visible = visible & (distance <= right)
    return visible


def inverse_frequencies(head_dim: int) -> Tensor:
    """10000^(-2i / rot_dim) for i < rot_dim / 2, rot_dim = head_dim // 2, in float32 as upstream's buffers are."""
    rot_dim = head_dim // 2
    return 1.0 / (10000.0 ** (torch.arange(0, rot_dim, 2).float() / rot_dim))


def rotate(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Rotates the first 2 * len(inv_freq) channels of x [..., time, dim] by positions [time], in float32."""
    angles = positions[:, None].float() * inv_freq.float()
    cos, sin = angles.cos(), angles.sin()
    half = inv_freq.shape[0]
    first, second, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _attend(q: Tensor, k: Tensor, v: Tensor, queries: range, window: Window, inv_freq: Tensor | None) -> Tensor:
    """One block. Positions count from its first key: only differences matter, and float32 angles are exact if small."""
    query_positions = torch.arange(queries.start, queries.stop, device=q.device)
    key_positions = torch.arange(k.shape[-2], device=q.device)
    if inv_freq is not None:
        q = rotate(q, query_positions, inv_freq).to(v.dtype)
        k = rotate(k, key_positions, inv_freq).to(v.dtype)
    mask = band_mask(query_positions, key_positions, window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

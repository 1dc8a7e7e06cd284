"""Floating-point operations of a forward pass, counted from configs alone: two per multiply-add of every matrix product
and convolution. What works element by element is left out: below 1 % from a width of 256 on.
"""

import math

from codec_jax.models.autoencoder import DILATIONS, TAAEConfig, frame_rates
from codec_jax.nn.transformer import BlockConfig
from codec_jax.ops import attention, platform, stft

Counts = dict[str, float]
_DEPTHWISE_TAPS = 17  # of the conformer branch


def autoencoder_flops(cfg: TAAEConfig, samples: int) -> Counts:
    """Both halves of TAAE on one clip of `samples` samples, by module path, on the current platform."""
    frames = [samples // cfg.hop_length * rate for rate in frame_rates(cfg)]
    widths, patch = cfg.widths, cfg.patch_size * cfg.audio_channels
    first, last = conv((frames[0],), (7,)) * patch * widths[0], conv((frames[-1],), (3,)) * widths[-1] * cfg.latent_dim
    counts = {"encoder/conv_in": first, "encoder/conv_out": last, "decoder/conv_in": last, "decoder/conv_out": first}
    for i, (stride, depth) in enumerate(zip(cfg.strides, cfg.transformer_depths, strict=True)):
        outer, inner = widths[max(i - 1, 0)], widths[i]  # channels before and after the stage, seen from the waveform
        one_block = _block(cfg.block(inner), inner, frames[i + 1])
        stage = {f"transformer/{name}": depth * count for name, count in one_block.items()}
        if cfg.use_dilated_conv:
            stage["residual"] = _residual_units(frames[i], outer)
        shared = {f"{half}/stage_{i}/{name}": count for half in ("encoder", "decoder") for name, count in stage.items()}
        counts |= shared
        if stride > 1:
            padding = -(-stride // 2)
            strided = conv((frames[i],), (2 * stride,), (stride,), padding=(padding,))
            counts[f"encoder/stage_{i}/resample"] = strided * outer * inner
            counts[f"decoder/stage_{i}/resample"] = 2.0 * frames[i + 1] * 2 * stride * outer * inner
    return counts


def _block(cfg: BlockConfig, width: int, frames: int) -> Counts:
    """One transformer block of `width` channels over `frames` frames."""
    square = 2.0 * frames * width**2
    pairs = attention.num_pairs(frames, cfg.window, cfg.attention_impl)
    counts = {
        "projections": 4 * square,
        "attention": 2 * 2.0 * pairs * width,
        "feed_forward": 3 * cfg.ff_mult * square,
    }
    if cfg.conformer:
        counts["conformer"] = 4 * square + conv((frames,), (_DEPTHWISE_TAPS,)) * width
    return counts


def _residual_units(frames: int, width: int) -> float:
    dilated = sum(conv((frames,), (7,), dilation=(d,)) for d in DILATIONS)
    return (dilated + len(DILATIONS) * 2.0 * frames) * width**2


def conv(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    padding: tuple[int, ...] | None = None,
) -> float:
    """FLOPs per pair of channels of a convolution over `shape`, taps that fall on padding left out.

    padding: on both sides; None keeps the shape at stride 1.
    """
    ones = (1,) * len(shape)
    stride, dilation = stride or ones, dilation or ones
    padding = padding or tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation))
    return 2.0 * math.prod(map(_valid_taps, shape, kernel, stride, dilation, padding))


def _valid_taps(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """Along one axis: pairs of an output position and a tap that falls on the input."""
    positions = range(-padding, size + padding - (kernel - 1) * dilation, stride)
    taps = [tap * dilation for tap in range(kernel)]
    return sum(0 <= position + tap < size for position in positions for tap in taps)


def stft_flops(frames: int, n_fft: int) -> float:
    """One-sided transforms of `frames` frames on the current platform: a product with a DFT matrix, or a real FFT."""
    if stft.choose_impl(platform.current()) == "matmul":
        return 2.0 * frames * n_fft * 2 * (n_fft // 2 + 1)
    return 2.5 * frames * n_fft * math.log2(n_fft)

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
    """Both halves of TAAE on one clip of `samples` samples, by module path, in the order of execution.

    Attention as it is computed on the current platform (`ops.platform`): dense, or in blocks.
    """
    frames = [samples // cfg.hop_length * rate for rate in frame_rates(cfg)]
    patches = conv((frames[0],), (7,)) * cfg.patch_size * cfg.audio_channels * cfg.widths[0]
    latents = conv((frames[-1],), (3,)) * cfg.widths[-1] * cfg.latent_dim
    encoder: Counts = {"encoder/conv_in": patches}
    decoder: Counts = {"decoder/conv_in": latents}
    for i in range(len(cfg.strides)):
        encoder |= {f"encoder/stage_{i}/{name}": count for name, count in _stage(cfg, i, frames, True).items()}
    for i in reversed(range(len(cfg.strides))):
        decoder |= {f"decoder/stage_{i}/{name}": count for name, count in _stage(cfg, i, frames, False).items()}
    return {**encoder, "encoder/conv_out": latents, **decoder, "decoder/conv_out": patches}


def _stage(cfg: TAAEConfig, i: int, frames: list[int], encoder: bool) -> Counts:
    """Stage i of one half: residual units and resampling on the side of the waveform, then (or before) the blocks."""
    outer, inner, stride = cfg.widths[max(i - 1, 0)], cfg.widths[i], cfg.strides[i]
    block = _block(cfg.block(inner), inner, frames[i + 1])
    blocks = {f"transformer/blocks/{name}": cfg.transformer_depths[i] * count for name, count in block.items()}
    residual = {"residual": _residual_units(frames[i], outer)} if cfg.use_dilated_conv else {}
    strided = conv((frames[i],), (2 * stride,), (stride,), padding=(-(-stride // 2),))
    transposed = 2.0 * frames[i + 1] * 2 * stride
    resample = {"resample": (strided if encoder else transposed) * outer * inner} if stride > 1 else {}
    return {**residual, **resample, **blocks} if encoder else {**blocks, **resample, **residual}


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

"""The multi-scale complex-STFT discriminator of TAAE (spec TAAE section 6; arXiv 2411.19842 appendix B.5).

One judge per STFT resolution: waveform → complex STFT, real and imaginary parts as channels → 2-D
convolutions over [batch, frame, bin, channel] → a map of logits, and every hidden layer as a feature map.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from codec_jax.errors import UserError
from codec_jax.models.discriminators.protocol import Judgement
from codec_jax.models.flops import conv, stft_flops
from codec_jax.nn.conv import gathered
from codec_jax.nn.linear import partitioned, torch_uniform
from codec_jax.ops.stft import hann, stft

_SLOPE = 0.2
_MAGNITUDE_FLOOR = 1e-6
_TINY = 1e-30  # under the square root: the gradient at a zero bin is zero, not NaN
_KERNEL_AXES = ("tap", "tap", "conv_in", "conv_out")


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Every scale has the same layers: a first convolution, one per dilation, a last one, and the logits.

    n_ffts: one scale each; the paper's sizes grow by about the golden ratio and are no powers of two, so that
    no frequency is favoured. hop_lengths, win_lengths: empty means n_fft // 4 and n_fft. kernel, stride:
    (frames, bins); the stride and the dilations (over frames) belong to the convolutions in between.
    spec_scale_pow: bins are multiplied by (magnitude + 1e-6) to this power; 0 leaves them alone. filters:
    channels of every layer (the paper is wider than upstream's 32, at a cost that grows with its square).
    filters_scale: 1, as upstream works with no other. dtype: of the convolutions; parameters, STFT and logits
    stay float32.
    """

    kind: str = "stft"
    n_ffts: tuple[int, ...] = (78, 126, 206, 334, 542, 876, 1418, 2296)
    hop_lengths: tuple[int, ...] = ()
    win_lengths: tuple[int, ...] = ()
    filters: int = 32
    max_filters: int = 1024
    filters_scale: int = 1
    dilations: tuple[int, ...] = (1, 2, 4)
    kernel: tuple[int, int] = (3, 9)
    stride: tuple[int, int] = (1, 1)
    spec_scale_pow: float = -0.5
    in_channels: int = 1
    dtype: str = "float32"

    @property
    def resolutions(self) -> tuple[tuple[int, int, int], ...]:
        """(n_fft, hop_length, win_length) of every scale, in samples."""
        hops = self.hop_lengths or tuple(n // 4 for n in self.n_ffts)
        return tuple(zip(self.n_ffts, hops, self.win_lengths or self.n_ffts, strict=True))

    def validate(self) -> None:
        """Raises UserError where fields contradict each other, or ask for what upstream cannot do either."""
        if self.kind != "stft":
            raise UserError(f'these are discriminators of the kind "stft", not "{self.kind}".')
        for name in ("hop_lengths", "win_lengths"):
            sizes = getattr(self, name)
            if sizes and len(sizes) != len(self.n_ffts):
                raise UserError(f"{name} is {sizes}: give one per entry of n_ffts ({len(self.n_ffts)}), or none.")
        if not self.n_ffts or any(min(hop, win) < 1 or win > n_fft for n_fft, hop, win in self.resolutions):
            raise UserError("every scale needs a hop of at least 1 and a window of 1 to n_fft samples.")
        if self.filters_scale != 1:
            raise UserError(f"filters_scale is {self.filters_scale}, but every layer has the same width: set it to 1.")
        if not 1 <= self.filters <= self.max_filters:
            raise UserError(f"filters is {self.filters}: choose 1 to max_filters ({self.max_filters}).")
        if min(self.kernel) < 1 or any(size % 2 == 0 for size in self.kernel):
            raise UserError(f"kernel is {self.kernel}: both sizes must be odd, so that padding keeps the shape.")
        if min(*self.stride, *self.dilations, self.in_channels) < 1:
            raise UserError("stride, dilations and in_channels must be at least 1.")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f'dtype is "float32" or "bfloat16", not "{self.dtype}".')


Config = DiscriminatorConfig


def spectrogram(
    audio: Float[Array, "batch time channel"], n_fft: int, hop_length: int, win_length: int
) -> tuple[Float[Array, "batch channel frame bin"], Float[Array, "batch channel frame bin"]]:
    """Real and imaginary part of the one-sided STFT, not centred, over the root of the window's energy."""
    window = hann(win_length)
    return stft(audio.swapaxes(1, 2), n_fft, hop_length, window / (window**2).sum() ** 0.5, center=False)


class Conv2d(nn.Module):
    """Weight-normalised convolution, w = g · v / ‖v‖ per output channel; at stride 1 the shape is kept.

    kernel_size, stride, dilation: (frames, bins), sizes odd. v: [frame tap, bin tap, in, out].
    """

    features: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch frame bin channel"]) -> Float[Array, "batch frame_ bin_ feature"]:
        """Pads with zeros on all sides and convolves in `dtype`."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        init = torch_uniform(shape[0] * shape[1] * shape[2])
        v = self.param("v", partitioned(init, _KERNEL_AXES), shape)
        norm = jnp.sqrt(jnp.square(v).sum((0, 1, 2)))
        g = self.param("g", partitioned(lambda *_: norm, ("conv_out",)), (self.features,))
        bias = self.param("bias", partitioned(init, ("conv_out",)), (self.features,))
        kernel = gathered(v * (g / norm)).astype(self.dtype)
        return _convolve(x.astype(self.dtype), kernel, self.stride, self.dilation) + bias.astype(self.dtype)


def _convolve(
    x: Float[Array, "batch frame bin channel"],
    kernel: Float[Array, "frame_tap bin_tap channel feature"],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Float[Array, "batch frame_ bin_ feature"]:
    """Padded with zeros on all sides: a convolution along the bins, the frame taps laid side by side as channels.

    The compiler for TPU takes twice as long over one in two dimensions, and keeps its 32 channels padded to 128 in
    main memory; these it keeps on the chip. On CPU the two are equally fast.
    """
    taps, width = kernel.shape[0], kernel.shape[1]
    reach, side = (taps - 1) * dilation[0] // 2, (width - 1) * dilation[1] // 2
    frames = -(-x.shape[1] // stride[0])
    padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0), (0, 0)))
    firsts = [tap * dilation[0] for tap in range(taps)]
    rows = [padded[:, first : first + (frames - 1) * stride[0] + 1 : stride[0]] for first in firsts]
    beside = jnp.concatenate(rows, axis=-1)
    y = jax.lax.conv_general_dilated(
        beside.reshape(-1, *beside.shape[2:]),
        jnp.moveaxis(kernel, 0, 1).reshape(width, -1, kernel.shape[-1]),
        window_strides=stride[1:],
        padding=[(side, side)],
        rhs_dilation=dilation[1:],
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return y.reshape(len(x), frames, *y.shape[1:])


class STFTDiscriminator(nn.Module):
    """One scale, `config.resolutions[scale]`: audio in [-1, 1] to its judgement."""

    config: DiscriminatorConfig
    scale: int

    @nn.compact
    def __call__(self, audio: Float[Array, "batch time channel"]) -> Judgement:
        """Raises ValueError for audio shorter than n_fft."""
        cfg = self.config
        real, imag = spectrogram(audio, *cfg.resolutions[self.scale])
        if cfg.spec_scale_pow:
            factor = (jnp.sqrt(real**2 + imag**2 + _TINY) + _MAGNITUDE_FLOOR) ** cfg.spec_scale_pow
            real, imag = real * factor, imag * factor
        x = jnp.moveaxis(jnp.concatenate([real, imag], axis=1), 1, -1)
        conv = functools.partial(Conv2d, dtype=jnp.dtype(cfg.dtype))
        square, last = (cfg.kernel[0], cfg.kernel[0]), len(cfg.dilations) + 1
        layers = [conv(cfg.filters, cfg.kernel, name="conv_0")]
        for i, dilation in enumerate(cfg.dilations, start=1):
            layers.append(conv(cfg.filters, cfg.kernel, cfg.stride, (dilation, 1), name=f"conv_{i}"))
        layers.append(conv(cfg.filters, square, name=f"conv_{last}"))
        features = []
        for layer in layers:
            x = nn.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return Judgement(conv(1, square, name="conv_post")(x).astype(jnp.float32), tuple(features))


def judges(cfg: DiscriminatorConfig) -> dict[str, nn.Module]:
    """`scale_0`, `scale_1`, ..., one per resolution."""
    return {f"scale_{scale}": STFTDiscriminator(cfg, scale) for scale in range(len(cfg.n_ffts))}


def least_samples(cfg: DiscriminatorConfig) -> int:
    """One frame of the longest transform."""
    return max(cfg.n_ffts)


def flops(cfg: DiscriminatorConfig, samples: int) -> dict[str, float]:
    """Of one judgement of one clip of `samples` samples, by scale (models/flops.py)."""
    return {f"scale_{scale}": _scale_flops(cfg, samples, scale) for scale in range(len(cfg.n_ffts))}


def _scale_flops(cfg: DiscriminatorConfig, samples: int, scale: int) -> float:
    n_fft, hop_length, _ = cfg.resolutions[scale]
    shape = (1 + (samples - n_fft) // hop_length, n_fft // 2 + 1)
    total = cfg.in_channels * stft_flops(shape[0], n_fft)
    square, width = (cfg.kernel[0], cfg.kernel[0]), cfg.filters
    total += products(shape, cfg.kernel) * 2 * cfg.in_channels * width
    for _ in cfg.dilations:
        total += products(shape, cfg.kernel, cfg.stride) * width**2
        shape = -(-shape[0] // cfg.stride[0]), -(-shape[1] // cfg.stride[1])
    return total + products(shape, square) * (width**2 + width)


def products(shape: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> float:
    """FLOPs of a `Conv2d` per pair of channels: every frame tap is multiplied in full, zeros beyond the ends too."""
    return -(-shape[0] // stride[0]) * kernel[0] * conv((shape[1],), (kernel[1],), (stride[1],))

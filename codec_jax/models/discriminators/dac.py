"""DAC's discriminators, which ESC takes over (spec ESC section 6; arXiv 2306.06546).

Judges of two sorts, both of audio without its mean and scaled to a peak of 0.8. One per period p: the waveform cut into
its p phases, every p-th sample, and convolutions along each. One per STFT resolution: real and imaginary parts as
channels, cut into bands of frequency with a stack of convolutions each, which one last convolution joins.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from codec_jax.errors import UserError
from codec_jax.models.discriminators.protocol import Judgement
from codec_jax.models.discriminators.stft import Conv2d, products
from codec_jax.models.flops import conv, stft_flops
from codec_jax.nn.conv import Conv
from codec_jax.ops.stft import hann, stft

_SLOPE = 0.1
_PEAK, _SILENCE = 0.8, 1e-9
_TAPS, _STRIDE, _LAST_TAPS = 5, 3, 3  # of a period's convolutions; the stride of all but the last hidden one
_WIDE, _SQUARE = (3, 9), (3, 3)  # (frames, bins)
_BAND_LAYERS = ((_WIDE, (1, 1)), *((_WIDE, (1, 2)),) * 3, (_SQUARE, (1, 1)))  # kernel and stride


@dataclasses.dataclass(frozen=True)
class DACDiscriminatorConfig:
    """The defaults are ESC's and DAC's: 42.5 M parameters.

    periods: one judge each, in samples. period_widths: channels of its hidden layers. fft_sizes: one judge each, in
    samples; windows as long, a quarter apart. bands: (low, high) of each as fractions of the bins. band_width: channels
    of every layer of a band. in_channels: 1, as upstream works with no other. dtype: of the convolutions; parameters,
    STFT and logits stay float32.
    """

    kind: str = "dac"
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_widths: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    fft_sizes: tuple[int, ...] = (2048, 1024, 512)
    bands: tuple[tuple[float, float], ...] = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
    band_width: int = 32
    in_channels: int = 1
    dtype: str = "float32"

    def validate(self) -> None:
        """Raises UserError where fields contradict each other, or ask for what upstream cannot do either."""
        if self.kind != "dac":
            raise UserError(f'these are discriminators of the kind "dac", not "{self.kind}".')
        if not (self.periods or self.fft_sizes):
            raise UserError("discriminators need periods, fft_sizes, or both.")
        for name in ("periods", "fft_sizes"):
            sizes = getattr(self, name)
            if len(set(sizes)) < len(sizes) or min(sizes, default=1) < 1:
                raise UserError(f"{name} is {sizes}: give positive sizes, each of them once.")
        if any(size % 8 for size in self.fft_sizes):
            raise UserError(f"fft_sizes is {self.fft_sizes}: give multiples of 8, three eighths are reflected.")
        if not self.period_widths or min(*self.period_widths, self.band_width) < 1:
            raise UserError("period_widths and band_width must be at least 1, and there must be a layer.")
        if not self.bands or not all(0 <= low < high <= 1 for low, high in self.bands):
            raise UserError(f"bands is {self.bands}: give fractions, 0 <= low < high <= 1.")
        if any(low == high for size in self.fft_sizes for low, high in _edges(self, size)):
            raise UserError(f"bands is {self.bands}: one of them holds no bin of the smallest of {self.fft_sizes}.")
        if self.in_channels != 1:
            raise UserError(f"in_channels is {self.in_channels}, but these discriminators hear one: set it to 1.")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f'dtype is "float32" or "bfloat16", not "{self.dtype}".')


Config = DACDiscriminatorConfig


# ---- what the judges hear ----------------------------------------------------------------------


def normalised(audio: Float[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Without its mean, and scaled to a peak of 0.8; float32."""
    centred = audio.astype(jnp.float32)
    centred = centred - centred.mean(-1, keepdims=True)
    return _PEAK * centred / (_peak(centred) + _SILENCE)


def _peak(audio: Float[Array, "batch time"]) -> Float[Array, "batch 1"]:
    """The largest absolute value, by its place: the gradient of `max` asks which values equal it, and where a compiler
    has computed them twice, in two orders of summation, none does. That is 0 / 0.
    """
    size = jnp.abs(audio)
    there = jnp.arange(audio.shape[-1]) == size.argmax(-1, keepdims=True)
    return jnp.where(there, size, 0.0).sum(-1, keepdims=True)


def phases(audio: Float[Array, "batch time"], period: int) -> Float[Array, "batch phase frame"]:
    """Phase j: samples j, j + period, ...; the end is reflected to whole periods, by a whole one where none is missing.

    frame = time // period + 1. Raises ValueError for audio too short to reflect.
    """
    padded = _reflected(audio, 0, period - audio.shape[1] % period)
    return padded.reshape(len(audio), -1, period).swapaxes(1, 2)


def spectrogram(audio: Float[Array, "batch time"], fft_size: int) -> Float[Array, "batch frame bin 2"]:
    """Real and imaginary part of the one-sided STFT, a Hann window every fft_size // 4 samples.

    frame = ceil(time / hop), frame i centred on the middle of hop i: "match_stride" of audiotools, whose own centred
    frames beyond the ends are dropped again. Raises ValueError for audio too short to reflect.
    """
    hop = fft_size // 4
    side = (fft_size - hop) // 2
    padded = _reflected(audio, side, side + -audio.shape[1] % hop)
    return jnp.stack(stft(padded, fft_size, hop, hann(fft_size), center=False), axis=-1)


def _reflected(audio: Float[Array, "batch time"], left: int, right: int) -> Float[Array, "batch time_"]:
    time = audio.shape[1]
    if time <= max(left, right):
        raise ValueError(f"{time} samples cannot be reflected by {max(left, right)}: give the discriminators more")
    return jnp.pad(audio, ((0, 0), (left, right)), mode="reflect")


def _edges(cfg: DACDiscriminatorConfig, fft_size: int) -> list[tuple[int, int]]:
    """First bin of every band, and the one behind its last."""
    bins = fft_size // 2 + 1
    return [(int(low * bins), int(high * bins)) for low, high in cfg.bands]


# ---- the judges --------------------------------------------------------------------------------


class PeriodDiscriminator(nn.Module):
    """One period: audio in [-1, 1] to its judgement.

    Upstream's kernels (5, 1) over [frame, phase] are convolutions along the frames, with the phases as clips.
    """

    config: DACDiscriminatorConfig
    period: int

    @nn.compact
    def __call__(self, audio: Float[Array, "batch time 1"]) -> Judgement:
        """Raises ValueError for audio of no more than one period."""
        x = phases(normalised(audio[..., 0]), self.period)
        unfold = lambda y: y.reshape(*x.shape[:2], *y.shape[1:])
        y = x.reshape(-1, x.shape[-1], 1)
        layer = functools.partial(Conv, dtype=jnp.dtype(self.config.dtype))
        features = []
        for i, (width, stride) in enumerate(_period_layers(self.config)):
            y = nn.leaky_relu(layer(width, _TAPS, stride, padding=_TAPS // 2, name=f"conv_{i}")(y), _SLOPE)
            features.append(unfold(y))
        logits = layer(1, _LAST_TAPS, padding=_LAST_TAPS // 2, name="conv_post")(y)
        return Judgement(unfold(logits).astype(jnp.float32), tuple(features))


class BandDiscriminator(nn.Module):
    """One STFT resolution: audio in [-1, 1] to its judgement; features band by band, from low to high."""

    config: DACDiscriminatorConfig
    fft_size: int

    @nn.compact
    def __call__(self, audio: Float[Array, "batch time 1"]) -> Judgement:
        """Raises ValueError for audio too short to reflect."""
        cfg = self.config
        x = spectrogram(normalised(audio[..., 0]), self.fft_size)
        layer = functools.partial(Conv2d, dtype=jnp.dtype(cfg.dtype))
        features, ends = [], []
        for band, (low, high) in enumerate(_edges(cfg, self.fft_size)):
            y = x[:, :, low:high]
            for i, (kernel, stride) in enumerate(_BAND_LAYERS):
                y = nn.leaky_relu(layer(cfg.band_width, kernel, stride, name=f"band_{band}_conv_{i}")(y), _SLOPE)
                features.append(y)
            ends.append(y)
        logits = layer(1, _SQUARE, name="conv_post")(jnp.concatenate(ends, axis=2))
        return Judgement(logits.astype(jnp.float32), tuple(features))


def judges(cfg: DACDiscriminatorConfig) -> dict[str, nn.Module]:
    """`period_<period>` and `stft_<fft size>`, in upstream's order."""
    periods: dict[str, nn.Module] = {f"period_{period}": PeriodDiscriminator(cfg, period) for period in cfg.periods}
    return periods | {f"stft_{size}": BandDiscriminator(cfg, size) for size in cfg.fft_sizes}


def least_samples(cfg: DACDiscriminatorConfig) -> int:
    """From here on clips are longer than their reflections: a period, or 3/8 of an STFT and what the last hop lacks."""
    return 1 + max([*cfg.periods, *(9 * size // 16 for size in cfg.fft_sizes)])


# ---- what they cost ----------------------------------------------------------------------------


def flops(cfg: DACDiscriminatorConfig, samples: int) -> dict[str, float]:
    """Of one judgement of one clip of `samples` samples, by judge (models/flops.py)."""
    periods = {f"period_{period}": _period_flops(cfg, samples, period) for period in cfg.periods}
    return periods | {f"stft_{size}": _band_flops(cfg, samples, size) for size in cfg.fft_sizes}


def _period_flops(cfg: DACDiscriminatorConfig, samples: int, period: int) -> float:
    total, frames, into = 0.0, samples // period + 1, 1
    for width, stride in _period_layers(cfg):
        total += conv((frames,), (_TAPS,), (stride,)) * into * width
        frames, into = -(-frames // stride), width
    return period * (total + conv((frames,), (_LAST_TAPS,)) * into)


def _band_flops(cfg: DACDiscriminatorConfig, samples: int, fft_size: int) -> float:
    frames, joined = -(-samples // (fft_size // 4)), 0
    total = stft_flops(frames, fft_size)
    for low, high in _edges(cfg, fft_size):
        shape, into = (frames, high - low), 2
        for kernel, stride in _BAND_LAYERS:
            total += products(shape, kernel, stride) * into * cfg.band_width
            shape, into = (frames, -(-shape[1] // stride[1])), cfg.band_width
        joined += shape[1]
    return total + products((frames, joined), _SQUARE) * cfg.band_width


def _period_layers(cfg: DACDiscriminatorConfig) -> list[tuple[int, int]]:
    """Channels and stride of every hidden layer."""
    *before, last = cfg.period_widths
    return [(width, _STRIDE) for width in before] + [(last, 1)]

"""Spectral losses: multi-resolution STFT, multi-scale mel, and ESC's mel distance. All float32.

Square roots are kept away from zero, so every gradient is finite at digital silence and for equal signals.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from codec_jax.errors import UserError
from codec_jax.ops import mel
from codec_jax.ops.stft import frame, hann, stft

ESC_MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
"""(window, number of mels) of `mel_distance`; the hop is a quarter of the window."""
ESC_MIN_SAMPLES = 1025
"""The shortest audio whose ends can be reflected by half the longest window."""
MEL_FLOOR = 1e-5
_TINY = 1e-30  # under square roots: far below every square that matters, far above float32's smallest number
_MIN_LOG_ARGUMENT = 1e-12  # below 1e-4 x any mel filter: only filters narrower than a bin are that small
_MIN_POWER = 1e-8
_FILTER_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class STFTLossConfig:
    """Resolutions, in samples, and terms of `multi_resolution_stft`; the defaults are auraloss'.

    w_sc, w_log_mag, w_lin_mag, w_phs: weights of spectral convergence, log magnitude, linear magnitude and
    complex difference. mag_distance: "L1" or "L2", of both magnitude terms. scale_invariance: y's magnitudes
    are first scaled to fit x's. perceptual_weighting: A-weight both signals. scale: "mel" or "chroma"
    compares `n_bins` bands (one number per resolution) instead of bins; it and the weighting need sample_rate
    in Hz.
    """

    fft_sizes: tuple[int, ...] = (1024, 2048, 512)
    hop_sizes: tuple[int, ...] = (120, 240, 50)
    win_lengths: tuple[int, ...] = (600, 1200, 240)
    w_sc: float = 1.0
    w_log_mag: float = 1.0
    w_lin_mag: float = 0.0
    w_phs: float = 0.0
    mag_distance: str = "L1"
    scale_invariance: bool = False
    perceptual_weighting: bool = False
    scale: str | None = None
    n_bins: tuple[int, ...] = ()
    sample_rate: int = 16000

    def validate(self) -> None:
        """UserError with the mend for resolutions that do not match, unknown names and missing bands."""
        sizes = (self.fft_sizes, self.hop_sizes, self.win_lengths)
        if not self.fft_sizes or len({len(s) for s in sizes}) > 1 or min(min(s) for s in sizes) < 1:
            raise UserError(f"fft_sizes, hop_sizes, win_lengths are {sizes}: give each as many positive sizes")
        for n_fft, win_length in zip(self.fft_sizes, self.win_lengths):
            if win_length > n_fft:
                raise UserError(f"win_lengths has {win_length} for an FFT of {n_fft}: lower it to {n_fft} or less")
        if self.mag_distance not in ("L1", "L2"):
            raise UserError(f'mag_distance is "{self.mag_distance}": choose "L1" or "L2"')
        if self.scale not in (None, "mel", "chroma"):
            raise UserError(f'scale is "{self.scale}": choose "mel", "chroma" or None')
        if self.scale is not None and len(self.n_bins) != len(self.fft_sizes):
            raise UserError(f"n_bins is {self.n_bins}: a {self.scale} scale needs one number per entry of fft_sizes")
        if min(self.w_sc, self.w_log_mag, self.w_lin_mag, self.w_phs) < 0 or self.sample_rate < 1:
            raise UserError("weights of STFT losses must not be negative, and sample_rate must be positive")


@dataclasses.dataclass(frozen=True)
class MelLossConfig:
    """Scales and weights of `multi_scale_mel_l1` (DAC's): windows in samples, mels from fmin to fmax Hz."""

    n_mels: tuple[int, ...] = (150, 80)
    window_lengths: tuple[int, ...] = (2048, 512)
    pow: float = 2.0
    log_weight: float = 1.0
    mag_weight: float = 1.0
    fmin: float = 0.0
    fmax: float | None = None
    sample_rate: int = 16000

    def validate(self) -> None:
        """UserError with the mend for scales that do not match or cannot be framed."""
        if not self.n_mels or len(self.n_mels) != len(self.window_lengths) or min(self.n_mels) < 1:
            raise UserError(f"n_mels is {self.n_mels}, window_lengths {self.window_lengths}: give as many of either")
        if any(w < 4 or w % 4 for w in self.window_lengths):
            raise UserError(f"window_lengths is {self.window_lengths}: hops are a quarter, so use multiples of 4")


def multi_resolution_stft(
    x: Float[Array, "batch *channel time"], y: Float[Array, "batch *channel time"], config: STFTLossConfig
) -> Float[Array, ""]:
    """Mean over resolutions of the weighted terms (spec TAAE section 6); channels count as further items.

    With s, t the complex STFTs, X, Y their magnitudes sqrt(max(|s|^2, 1e-8)) and D the mean absolute or
    squared difference, the terms are

        w_sc |Y-X|_F / |Y|_F (mean over items) + w_log_mag D(log X, log Y) + w_lin_mag D(X, Y)
        + w_phs mean |s-t| / ((|s|+|t|)/2 + 1e-7)

    Not symmetric: the convergence is relative to y. Upstream trains with (x=original, y=decoded), although
    the original would be the natural denominator; the caller decides.
    Raises ValueError for audio that is not longer than half the largest FFT.
    """
    x, y = (audio.reshape(-1, audio.shape[-1]).astype(jnp.float32) for audio in (x, y))
    if config.perceptual_weighting:
        x, y = (_a_weighted(audio, config.sample_rate) for audio in (x, y))
    losses = [_stft_loss(x, y, config, i) for i in range(len(config.fft_sizes))]
    return jnp.stack(losses).mean()


def multi_scale_mel_l1(
    x: Float[Array, "batch *channel time"], y: Float[Array, "batch *channel time"], config: MelLossConfig
) -> Float[Array, ""]:
    """Sum over scales of log_weight mean|L(X) - L(Y)| + mag_weight mean|X - Y|.

    X, Y: Slaney mel bands of the magnitude STFT, hop a quarter of the window; L(X) = log10 max(X, 1e-5)^pow.
    DAC's mel loss; spec TAAE section 6, mrmel. Channels count as further items.
    """
    x, y = (audio.reshape(-1, audio.shape[-1]) for audio in (x, y))
    loss = jnp.float32(0.0)
    for window_length, n_mels in zip(config.window_lengths, config.n_mels):
        filters = mel.mel_filterbank(config.sample_rate, window_length, n_mels, fmin=config.fmin, fmax=config.fmax)
        bands = [_bands(audio, window_length, filters) for audio in (x, y)]
        logs = [config.pow * jnp.log10(jnp.maximum(band, MEL_FLOOR)) for band in bands]
        loss += config.log_weight * jnp.abs(logs[0] - logs[1]).mean()
        loss += config.mag_weight * jnp.abs(bands[0] - bands[1]).mean()
    return loss


def mel_distance(
    reference: Float[Array, "batch time"], estimate: Float[Array, "batch time"], sample_rate: int = 16000
) -> Float[Array, "batch"]:
    """ESC's mel loss of each item: over seven scales the sum of mean|M - M'| + mean|L(M) - L(M')|.

    L(M) = log10 max(M, 1e-5)^2. M: HTK mel bands without norm, 0 Hz to half the sample rate, of the magnitude
    STFT (spec ESC section 6, at 16 kHz). Symmetric. Audio of fewer than 1025 samples is zero-padded to 1025.
    The magnitude terms grow with the level; at -17 dBFS recorded speech scores 10 against itself with noise
    at 20 dB SNR, 23 against another clip, 70 against silence.
    """
    short = max(0, ESC_MIN_SAMPLES - reference.shape[-1])
    reference, estimate = (jnp.pad(audio, ((0, 0), (0, short))) for audio in (reference, estimate))
    distance = jnp.zeros(reference.shape[0], jnp.float32)
    for window_length, n_mels in ESC_MEL_SCALES:
        filters = mel.mel_filterbank(sample_rate, window_length, n_mels, htk=True, norm=None)
        # Two transforms, not one of both: only the estimate's is differentiated.
        bands = [_bands(audio, window_length, filters) for audio in (reference, estimate)]
        logs = [2 * jnp.log10(jnp.maximum(band, MEL_FLOOR)) for band in bands]
        distance += (jnp.abs(bands[0] - bands[1]) + jnp.abs(logs[0] - logs[1])).mean((-2, -1))
    return distance


def _bands(audio: Array, window_length: int, filters: np.ndarray) -> Array:
    """Mel bands [batch, frame, mel] of the magnitude STFT with hop window_length / 4."""
    real, imag = stft(audio, window_length, window_length // 4, hann(window_length))
    return _product(_safe_sqrt(real**2 + imag**2), filters)


def _stft_loss(x: Array, y: Array, config: STFTLossConfig, i: int) -> Array:
    """The weighted terms at resolution i for x, y [item, time]."""
    shape = config.fft_sizes[i], config.hop_sizes[i], hann(config.win_lengths[i])
    (x_real, x_imag), (y_real, y_imag) = stft(x, *shape), stft(y, *shape)
    x_power, y_power = x_real**2 + x_imag**2, y_real**2 + y_imag**2
    x_mag, y_mag = (jnp.sqrt(jnp.maximum(power, _MIN_POWER)) for power in (x_power, y_power))
    loss = jnp.float32(0.0)
    if config.w_phs:
        difference = _safe_sqrt((x_real - y_real) ** 2 + (x_imag - y_imag) ** 2)
        mean_magnitude = 0.5 * (_safe_sqrt(x_power) + _safe_sqrt(y_power))  # unlike the other terms', not clamped
        loss += config.w_phs * (difference / (mean_magnitude + 1e-7)).mean()
    if config.scale is not None:
        bank = mel.mel_filterbank if config.scale == "mel" else mel.chroma_filterbank
        filters = bank(config.sample_rate, config.fft_sizes[i], config.n_bins[i])
        x_mag, y_mag = _product(x_mag, filters), _product(y_mag, filters)
    if config.scale_invariance:
        fit = (x_mag * y_mag).sum((-2, -1), keepdims=True) / ((y_mag**2).sum((-2, -1), keepdims=True) + _TINY)
        y_mag = y_mag * fit
    if config.w_sc:
        norms = [_safe_sqrt((m**2).sum((-2, -1))) for m in (y_mag - x_mag, y_mag)]
        loss += config.w_sc * (norms[0] / norms[1]).mean()
    distance = jnp.abs if config.mag_distance == "L1" else jnp.square
    if config.w_log_mag:
        logs = [jnp.log(jnp.maximum(m, _MIN_LOG_ARGUMENT)) for m in (x_mag, y_mag)]
        loss += config.w_log_mag * distance(logs[0] - logs[1]).mean()
    if config.w_lin_mag:
        loss += config.w_lin_mag * distance(x_mag - y_mag).mean()
    return loss


def _a_weighted(audio: Array, sample_rate: int) -> Array:
    """[item, time] through the A-weighting FIR, zero-padded to its own length.

    A block of outputs is a product with a banded matrix: a convolution of one channel is several times
    slower.
    """
    taps = mel.a_weighting_fir(sample_rate)
    zeros = np.zeros(_FILTER_BLOCK - 1, np.float32)
    band = scipy.linalg.toeplitz(np.concatenate([taps, zeros]), np.concatenate([taps[:1], zeros]))
    time, half = audio.shape[-1], len(taps) // 2
    audio = jnp.pad(audio, ((0, 0), (half, half + -time % _FILTER_BLOCK)))
    blocks = _product(frame(audio, len(band), _FILTER_BLOCK), band)
    return blocks.reshape(len(audio), -1)[:, :time]


def _product(magnitudes: Array, filters: np.ndarray) -> Array:
    """[..., bin] @ [bin, band]; bfloat16, a TPU's default, would cost two decimals of the logarithms."""
    return jnp.matmul(magnitudes, filters, precision=jax.lax.Precision.HIGHEST)


def _safe_sqrt(power: Array) -> Array:
    """Its gradient at zero is large but finite, so a zero gradient before it stays zero instead of NaN."""
    return jnp.sqrt(power + _TINY)

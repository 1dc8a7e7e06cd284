"""Short-time Fourier transform and its inverse in float32: framing and overlap-add without a gather or scatter, and an
FFT or a matrix product between.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from codec_jax.ops import platform


def hann(length: int) -> np.ndarray:
    """Periodic Hann window, float32 [length]: 0.5 - 0.5 cos(2 pi n / length)."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def stft(
    audio: Float[Array, "*batch time"],
    n_fft: int,
    hop_length: int,
    window: np.ndarray,
    *,
    center: bool = True,
    impl: str = "auto",
) -> tuple[Float[Array, "*batch frame bin"], Float[Array, "*batch frame bin"]]:
    """Real and imaginary part of the one-sided, unnormalised transform, both float32; bin = n_fft // 2 + 1.

    The values are those of torch.stft. window [win_length <= n_fft] is zero-padded on both sides to n_fft.
    center: frame i is centred on sample i * hop_length, the ends reflected, so frame = 1 + time // hop_length
    for even n_fft. Otherwise frames start at i * hop_length and an incomplete last one is dropped.
    impl: "fft", "matmul" (float32 at HIGHEST precision) or "auto", by the platform at trace time.
    Raises ValueError for a window longer than n_fft, an unknown impl, and audio too short to reflect or cut.
    """
    impl = _resolved(impl)
    padded_window = center_window(window, n_fft)
    audio = audio.astype(jnp.float32)
    if center:
        audio = reflect_pad(audio, n_fft // 2)
    frames = frame(audio, n_fft, hop_length)
    if impl == "fft":
        spectrum = _by_clip(jnp.fft.rfft, frames * padded_window)
        return spectrum.real, spectrum.imag
    cosine, sine = _dft(padded_window.tobytes())
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return product(frames, cosine), product(frames, sine)


def istft(
    real: Float[Array, "*batch frame bin"],
    imag: Float[Array, "*batch frame bin"],
    n_fft: int,
    hop_length: int,
    window: np.ndarray,
    frames: Int[Array, "*batch"] | None = None,
    *,
    impl: str = "auto",
) -> Float[Array, "*batch time"]:
    """The inverse of a centred `stft`, float32: hop_length * (frame - 1) samples, the values of torch.istft.

    Every frame is transformed back (imaginary parts of the first and last bin count for nothing) and windowed; the
    overlapping sum is divided by that of the squared windows, and n_fft // 2 samples are cut off either end (spec ESC
    section 1). n_fft is even, bin = n_fft // 2 + 1. frames: how many frames of every item exist (None: all). Others
    count in neither sum, so that an item's first hop_length * (frames - 1) samples are those it has alone; all behind
    are zero. Raises ValueError for an odd n_fft, another number of bins, and an unknown impl.
    """
    impl = _resolved(impl)
    if n_fft % 2 or real.shape[-1] != n_fft // 2 + 1:
        raise ValueError(f"{real.shape[-1]} bins are not those of an even n_fft {n_fft}: give n_fft = 2 * (bins - 1)")
    window = center_window(window, n_fft)
    real, imag = real.astype(jnp.float32), imag.astype(jnp.float32)
    if impl == "fft":
        waves = _by_clip(functools.partial(jnp.fft.irfft, n=n_fft), real + 1j * imag) * window
    else:
        cosine, sine = _inverse_dft(window.tobytes())
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        waves = product(real, cosine) + product(imag, sine)
    count = real.shape[-2]
    time = hop_length * (count - 1)
    there = jnp.ones((count, 1), jnp.float32)
    if frames is not None:
        there = (jnp.arange(count) < frames[..., None])[..., None].astype(jnp.float32)
        # Not a product: what lies behind an item's end may be anything, infinite too.
        waves = jnp.where(there > 0, waves, 0)
    inside = slice(n_fft // 2, n_fft // 2 + time)
    total = overlap_add(waves, hop_length)[..., inside]
    envelope = overlap_add(there * window**2, hop_length)[..., inside]
    if frames is not None:
        total = jnp.where(jnp.arange(time) < hop_length * (frames[..., None] - 1), total, 0)
    return total / jnp.where(envelope > 0, envelope, 1)


def overlap_add(frames: Float[Array, "*batch frame frame_length"], hop_length: int) -> Float[Array, "*batch time"]:
    """The sum of frames laid `hop_length` apart, as long as they reach: the transpose of `frame`, by shifted sums."""
    *batch, count, length = frames.shape
    shifts = -(-length // hop_length)
    none = [(0, 0)] * len(batch)
    rows = jnp.pad(frames, [*none, (0, 0), (0, shifts * hop_length - length)])
    parts = [
        jnp.pad(rows[..., k * hop_length : (k + 1) * hop_length], [*none, (k, shifts - 1 - k), (0, 0)])
        for k in range(shifts)
    ]
    total = functools.reduce(jnp.add, parts)
    return total.reshape(*batch, -1)[..., : (count - 1) * hop_length + length]


def _by_clip(transform: Callable[[Array], Array], x: Array) -> Array:
    """The transform of every clip on the device that has it: on its own, SPMD gathers the whole batch for an FFT."""
    mesh, (batch,) = jax.sharding.get_abstract_mesh(), nn.logical_to_mesh_axes(("batch",)) or (None,)
    if mesh.empty or batch is None:
        return transform(x)
    shards = math.prod(mesh.shape[axis] for axis in batch)
    if shards == 1 or x.shape[0] % shards:
        return transform(x)
    cut = PartitionSpec(batch)
    return jax.shard_map(transform, in_specs=cut, out_specs=cut)(x)


def _resolved(impl: str) -> str:
    """Either "fft" or "matmul". ValueError for what `stft` and `istft` do not know."""
    impl = choose_impl(platform.current()) if impl == "auto" else impl
    if impl not in ("fft", "matmul"):
        raise ValueError(f'impl is "{impl}": choose "auto", "fft" or "matmul"')
    return impl


def choose_impl(platform: str) -> str:
    """The product on TPU, where an FFT moves seven times the bytes; on CPU the FFT is faster at any size."""
    return "matmul" if platform == "tpu" else "fft"


def frame(
    audio: Float[Array, "*batch time"], frame_length: int, hop_length: int
) -> Float[Array, "*batch frame frame_length"]:
    """Overlapping frames; samples that do not fill a last frame are dropped. ValueError where none is filled.

    Frames are rows of `hop_length` samples laid side by side, shifted by one row each: copies, no gather.
    """
    time = audio.shape[-1]
    if time < frame_length:
        raise ValueError(f"{time} samples do not fill a frame of {frame_length}: pad the audio or use a shorter frame")
    count = 1 + (time - frame_length) // hop_length
    shifts = -(-frame_length // hop_length)
    used = (count - 1 + shifts) * hop_length
    # Where the hop does not divide the frame, the last row reaches past the frame and perhaps past the audio.
    audio = jnp.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, max(0, used - time))])[..., :used]
    rows = audio.reshape(*audio.shape[:-1], count - 1 + shifts, hop_length)
    shifted = [rows[..., k : k + count, :] for k in range(shifts)]
    return jnp.concatenate(shifted, axis=-1)[..., :frame_length]


def reflect_pad(audio: Float[Array, "*batch time"], width: int) -> Float[Array, "*batch padded"]:
    """`width` samples mirrored at either end, the end sample not repeated. ValueError unless time > width."""
    if audio.shape[-1] <= width:
        raise ValueError(
            f"{audio.shape[-1]} samples cannot be reflected by {width}: use audio longer than half the largest n_fft"
        )
    before, after = audio[..., 1 : width + 1], audio[..., audio.shape[-1] - 1 - width : -1]
    return jnp.concatenate([jnp.flip(before, -1), audio, jnp.flip(after, -1)], axis=-1)


def center_window(window: np.ndarray, n_fft: int) -> np.ndarray:
    """Float32 [n_fft]: the window with zeros on both sides. ValueError if it is longer than n_fft."""
    if len(window) > n_fft:
        raise ValueError(f"a window of {len(window)} samples is longer than n_fft {n_fft}: make n_fft at least as long")
    left = (n_fft - len(window)) // 2
    return np.pad(np.asarray(window, np.float32), (left, n_fft - len(window) - left))


@functools.lru_cache(maxsize=32)
def _dft(window_bytes: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Windowed cosine and negative sine matrices [n_fft, bin], from float64."""
    window = np.frombuffer(window_bytes, np.float32).astype(np.float64)[:, None]
    n_fft = len(window)
    # The phase is reduced in integers: exact however large n * k.
    angle = 2 * np.pi / n_fft * (np.arange(n_fft)[:, None] * np.arange(n_fft // 2 + 1) % n_fft)
    return (window * np.cos(angle)).astype(np.float32), (-window * np.sin(angle)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _inverse_dft(window_bytes: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Windowed matrices [bin, n_fft] of an even inverse, from float64: of real parts, and of imaginary ones."""
    window = np.frombuffer(window_bytes, np.float32).astype(np.float64)
    n_fft = len(window)
    angle = 2 * np.pi / n_fft * (np.arange(n_fft // 2 + 1)[:, None] * np.arange(n_fft) % n_fft)
    twice = np.full((n_fft // 2 + 1, 1), 2.0)  # every bin but the first and last stands for its mirror image too
    twice[[0, -1]] = 1.0
    scale = twice * window / n_fft
    sine = -scale * np.sin(angle)
    sine[[0, -1]] = 0.0
    return (scale * np.cos(angle)).astype(np.float32), sine.astype(np.float32)

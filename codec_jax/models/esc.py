"""ESC, the Efficient Speech Codec (arXiv 2404.19441): its spectrum, its network, and what a family owes.

waveform → STFT → models/esc_network.py, quantisers inside → codes, and back (spec ESC sections 1 to 5).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from codec_jax.errors import UserError
from codec_jax.models import esc_codebooks
from codec_jax.models.esc_config import Config, ESCConfig, VQConfig
from codec_jax.models.esc_flops import network_flops
from codec_jax.models.esc_network import Network, Pass
from codec_jax.models.protocol import Forward, Geometry, Keys, Rate, Variables, rate_of_streams
from codec_jax.nn.transformer import Valid
from codec_jax.ops.counter_random import quick
from codec_jax.ops.power_law import power_law_distance
from codec_jax.ops.stft import hann, istft, reflect_pad, stft
from codec_jax.quantizers import vq

__all__ = ["Config", "ESCConfig", "VQConfig"]


# ---- what a family owes (models/protocol.py) ---------------------------------------------------


def geometry(cfg: Config) -> Geometry:
    """Sample rate, one channel, hop, receptive field, and the chunks that keep the windows where they were."""
    model = cfg.model
    field = _receptive_field(cfg)
    return Geometry(model.sample_rate, 1, cfg.hop_length, (field, field), _alignment(cfg), normalizes=False)


def _receptive_field(cfg: Config) -> int:
    """Code frames that encoding looks at to either side: through the encoder, and through the decoder's states.

    A window lets a token see at most window - 1 others to a side, once per block; a convolution of the ablations sees
    one frame. Besides them: the STFT, the convolutions that end the decoder, and the merged frames of a code.
    """
    model = cfg.model
    blocks = 2 * model.scales
    if model.backbone == "transformer":
        reach = blocks * model.depth * (model.window_size - 1)
    else:
        reach = blocks * (2 * model.conv_depth + 1)
    patches = reach + 4 + model.n_fft // (model.stft_hop_length * model.patch_size[1])
    return -(-patches // cfg.bottleneck.overlap) + 2


def _alignment(cfg: Config) -> int:
    """Code frames after which the grids of codes and windows coincide."""
    window = cfg.model.window_size if cfg.model.backbone == "transformer" else 1
    return math.lcm(window, cfg.bottleneck.overlap) // cfg.bottleneck.overlap


def padded_length(cfg: Config, samples: int) -> int:
    """The least length that fits whole code frames, hop_length · k less one STFT hop, and can be reflected."""
    needed = max(samples, cfg.model.n_fft // 2 + 1)
    frames = -(-(needed + cfg.model.stft_hop_length) // cfg.hop_length)
    return cfg.hop_length * frames - cfg.model.stft_hop_length


def rate(cfg: Config, bottleneck=None, num_streams: int | None = None) -> Rate:
    """The first `num_streams` streams (None: all). `None` and "train" are the one bottleneck there is."""
    if bottleneck is not None and not (isinstance(bottleneck, str) and bottleneck == "train"):
        raise UserError("an ESC has no bottleneck to choose: its rate is chosen with num_streams (--num-streams).")
    most = cfg.bottleneck.num_streams
    streams = most if num_streams is None else num_streams
    if not 1 <= streams <= most:
        raise UserError(f"num_streams is {streams}: this codec has 1 to {most} streams.")
    return rate_of_streams(streams)


def rates(cfg: Config) -> dict[str, Rate]:
    """Every rate of this model, by what to ask for."""
    return {f"num_streams={n}": rate(cfg, None, n) for n in range(1, cfg.bottleneck.num_streams + 1)}


def codebook_sizes(cfg: Config, rate: Rate) -> tuple[int, ...]:
    """One codebook per stream and group, stream by stream."""
    return (cfg.bottleneck.codebook_size,) * (rate.stages[0] * cfg.bottleneck.num_groups)


def init(cfg: Config, key: PRNGKeyArray) -> Variables:
    """Fresh variables, parameters boxed with logical axis names; with running statistics in `batch_stats` or not."""
    spectrum = jnp.zeros((1, cfg.model.in_freq, cfg.stft_frames, 2))
    variables: Any = Network(cfg).init(quick(key), spectrum, cfg.bottleneck.num_streams)
    return variables


def forward(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    keys: Keys,
    *,
    train: bool,
    quantise: bool = True,
) -> Forward:
    """The whole codec on audio cut to the longest length that fits whole code frames; `target` is what was coded.

    In training the number of streams is drawn, the same for the whole batch; else, and where `quantise` is False (the
    continuous bottleneck of upstream's pre-training), it is all of them. losses, means over the batch and unweighted:
    "commitment", "codebook" and "spectrum" (spec section 6). Raises ValueError for audio shorter than a code frame.
    """
    audio = audio[:, : _whole(cfg, audio.shape[1])]
    streams: vq.Streams = cfg.bottleneck.num_streams
    if train and quantise:
        streams = vq.draw_streams(keys.step, cfg.bottleneck.num_streams, cfg.bottleneck.stream_dropout)
    target = to_spectrum(cfg, audio)
    out, variables = run(cfg, variables, target, streams, train=train, quantise=quantise)
    commitment, codebook = out.losses.mean(1)
    spectrum = power_law_distance(target, out.spectrum).mean()
    return Forward(
        to_audio(cfg, out.spectrum),
        audio,
        _flat(out.codes),
        vq.to_vectors(out.bottom, cfg.bottleneck.overlap),
        {"commitment": commitment, "codebook": codebook, "spectrum": spectrum},
        variables,
    )


def usage(cfg: Config, forward: Forward) -> Int[Array, "codebook codeword"]:
    """How often every word of every codebook is chosen."""
    return vq.counts(forward.codes, cfg.bottleneck.codebook_size)


def encode(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    frames: Int[Array, " batch"] | None,
    rate: Rate,
) -> Int[np.ndarray, "batch codebook frame"]:
    """Audio of a padded length to tokens; of a multiple of the hop, the last STFT hop is cut. Else ValueError."""
    whole = _whole(cfg, audio.shape[1])
    if audio.shape[1] - whole not in (0, cfg.model.stft_hop_length):
        raise ValueError(f"{audio.shape[1]} samples are no whole code frames: pad to padded_length(cfg, samples)")
    audio = audio[:, :whole]
    return np.asarray(_encode_jit(cfg, variables, audio, frames, rate.stages[0]))


def decode(
    cfg: Config,
    variables: Variables,
    codes: Int[np.ndarray, "batch codebook frame"],
    frames: Int[Array, " batch"] | None,
    rate: Rate,
) -> Float[Array, "batch time channel"]:
    """Tokens to audio, hop_length · frame less one STFT hop; zeros behind a clip's own end."""
    return _decode_jit(cfg, variables, jnp.asarray(codes), frames)


def flops(cfg: Config, samples: int) -> dict[str, float]:
    """Of one forward pass over one clip of `samples` samples, by module (models/esc_flops.py)."""
    return network_flops(cfg, _whole(cfg, samples))


def has_tokens(cfg: Config) -> bool:
    """True: its bottleneck is what an ESC is."""
    return True


def has_codebooks(cfg: Config) -> bool:
    """True: there is no other ESC."""
    return True


def seed_codebooks(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    iterations: int,
    key: PRNGKeyArray,
) -> Variables:
    """The variables with codebooks from k-means of this audio, see models/esc_codebooks.py."""
    spectrum = to_spectrum(cfg, audio[:, : _whole(cfg, audio.shape[1])])
    return esc_codebooks.seeded(cfg, variables, spectrum, iterations, key)


def revive(cfg: Config, params: Any, points: Any, dead: Bool[Array, "codebook codeword"], key: PRNGKeyArray) -> Any:
    """The parameters with points, which a training forward pass left in its variables, in place of dead words."""
    return esc_codebooks.revived(cfg, params, points, dead, key)


# ---- the pieces --------------------------------------------------------------------------------


def to_spectrum(
    cfg: Config, audio: Float[Array, "batch time channel"], frames: Int[Array, " batch"] | None = None
) -> Float[Array, "batch bin frame 2"]:
    """Real and imaginary parts of the STFT; every clip, `frames` code frames long, is reflected at its own end."""
    model = cfg.model
    shape, wave = (model.n_fft, model.stft_hop_length, hann(model.win_length)), audio[..., 0].astype(jnp.float32)
    if frames is None:
        real, imag = stft(wave, *shape)
    else:
        ends = model.stft_hop_length * (_stft_counts(cfg, frames) - 1)
        real, imag = stft(_reflected(wave, ends, model.n_fft // 2), *shape, center=False)
    return jnp.stack([real, imag], -1).swapaxes(1, 2)


def run(
    cfg: Config,
    variables: Variables,
    spectrum: Float[Array, "batch bin frame 2"],
    streams: vq.Streams,
    *,
    train: bool = False,
    quantise: bool = True,
) -> tuple[Pass, Variables]:
    """The network, and the variables after it: in training with the running statistics moved on, and `vq.POINTS`."""
    network = functools.partial(Network(cfg).apply, variables, spectrum, streams, train=train, quantise=quantise)
    if not train:
        out: Any = network()
        return out, variables
    out, moved = network(mutable=["batch_stats", vq.POINTS])
    return out, {**variables, **moved}


def to_audio(
    cfg: Config, spectrum: Float[Array, "batch bin frame 2"], frames: Int[Array, " batch"] | None = None
) -> Float[Array, "batch time channel"]:
    """A spectrum to audio; zeros behind a clip's own end, `frames` code frames from its beginning."""
    model = cfg.model
    real, imag = jnp.moveaxis(spectrum.swapaxes(1, 2), -1, 0)
    counts = None if frames is None else _stft_counts(cfg, frames)
    return istft(real, imag, model.n_fft, model.stft_hop_length, hann(model.win_length), counts)[..., None]


def _encode(cfg: Config, variables: Variables, audio: Array, frames: Array | None, streams: int) -> Array:
    spectrum = to_spectrum(cfg, audio, frames)
    valid = _valid(cfg, frames, spectrum.shape[2] // cfg.model.patch_size[1])
    codes: Any = Network(cfg).apply(variables, spectrum, streams, valid, method=Network.encode)
    return _flat(codes)


def _decode(cfg: Config, variables: Variables, codes: Array, frames: Array | None) -> Array:
    valid = _valid(cfg, frames, codes.shape[-1] * cfg.bottleneck.overlap)
    codes = codes.reshape(len(codes), -1, cfg.bottleneck.num_groups, codes.shape[-1])
    spectrum: Any = Network(cfg).apply(variables, codes, valid, method=Network.decode)
    return to_audio(cfg, spectrum, frames)


_encode_jit = functools.partial(jax.jit, static_argnums=(0, 4))(_encode)
_decode_jit = functools.partial(jax.jit, static_argnums=0)(_decode)


def _whole(cfg: Config, samples: int) -> int:
    """The longest padded length within `samples`."""
    hop = cfg.model.stft_hop_length
    whole = (samples + hop) // cfg.hop_length * cfg.hop_length - hop
    if whole < padded_length(cfg, 0):
        raise ValueError(f"{samples} samples are shorter than one code frame: give {padded_length(cfg, 0)} or more")
    return whole


def _flat(codes: Array) -> Array:
    """[batch, stream, group, frame] to [batch, codebook, frame], stream by stream."""
    return codes.reshape(len(codes), -1, codes.shape[-1])


def _stft_counts(cfg: Config, frames: Array) -> Array:
    """STFT frames of every clip. Of a clip that is not there at all, as many as of the shortest."""
    return cfg.stft_frames * jnp.maximum(frames, padded_length(cfg, 0) // cfg.hop_length + 1)


def _valid(cfg: Config, frames: Array | None, columns: int) -> Valid:
    if frames is None:
        return None
    return jnp.arange(columns)[None, :] < cfg.bottleneck.overlap * frames[:, None]


def _reflected(wave: Array, ends: Array, width: int) -> Array:
    """`wave` [batch, time] with `width` samples mirrored at its beginning, and at every clip's own end."""
    padded = jnp.pad(reflect_pad(wave, width)[:, : wave.shape[1] + width], ((0, 0), (0, width)))
    mirrored = jnp.take_along_axis(wave, ends[:, None] - 2 - jnp.arange(width), axis=1)
    return jax.vmap(lambda row, tail, at: jax.lax.dynamic_update_slice(row, tail, (at,)))(
        padded, mirrored, ends + width
    )

"""TAAE, the codec of Stable Codec (arXiv 2411.19842): the autoencoder, its FSQ bottleneck, and what a family owes.

waveform → models/autoencoder.py → latents → quantizers/ → codes, and back (spec TAAE section 4).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from codec_jax.errors import UserError
from codec_jax.models.autoencoder import DILATIONS, Decoder, Encoder, TAAEConfig, frame_rates, patch, unpatch
from codec_jax.models.flops import autoencoder_flops
from codec_jax.models.protocol import Forward, Geometry, Keys, Rate, Variables
from codec_jax.nn.transformer import Valid
from codec_jax.ops.counter_random import quick
from codec_jax.quantizers import fsq, residual_fsq


@dataclasses.dataclass(frozen=True)
class FSQConfig:
    """Finite scalar quantisation. levels: of the bottleneck called "train", one per latent dimension.

    train_levels: level sets of which every training step draws one (empty: `levels` alone). noise_dropout: p of the
    raw / hard / dither mixture (p², p(1-p), 1-p).
    """

    levels: tuple[int, ...] = (17,) * 6
    train_levels: tuple[tuple[int, ...], ...] = ()
    noise_dropout: float = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    """A TAAE codec: the autoencoder and its bottleneck."""

    model: TAAEConfig = dataclasses.field(default_factory=TAAEConfig)
    bottleneck: FSQConfig = dataclasses.field(default_factory=FSQConfig)

    def validate(self) -> None:
        """Raises UserError where fields contradict each other."""
        model, bottleneck = self.model, self.bottleneck
        stages = {len(model.c_mults), len(model.strides), len(model.transformer_depths)}
        if len(stages) != 1 or not model.strides:
            raise UserError("model.c_mults, model.strides and model.transformer_depths need one entry per stage each.")
        if min(model.patch_size, model.channels, model.latent_dim, model.audio_channels, *model.strides) < 1:
            raise UserError("model.patch_size, channels, latent_dim, audio_channels and strides must be at least 1.")
        for width in model.widths:
            if width % min(model.head_dim, width) or min(model.head_dim, width) % 4:
                raise UserError(
                    f"model.channels gives a stage {width} wide, which is no multiple of the head dim "
                    f"{model.head_dim}: use a multiple of it, or a narrower stage divisible by 4."
                )
        if len(model.sliding_window) != 2 or min(model.sliding_window) < -1:
            raise UserError("model.sliding_window is (left, right), each at least 0, or -1 for unbounded.")
        for before, width, stride in zip((model.widths[0], *model.widths), model.widths, model.strides):
            if stride == 1 and before != width:
                raise UserError(
                    f"a stage of stride 1 cannot change the width ({before} to {width}): see model.c_mults."
                )
        if model.remat not in ("none", "full", "dots"):
            raise UserError(f'model.remat is "none", "full" or "dots", not "{model.remat}".')
        if model.dtype not in ("float32", "bfloat16"):
            raise UserError(f'model.dtype is "float32" or "bfloat16", not "{model.dtype}".')
        if not 0 <= bottleneck.noise_dropout <= 1:
            raise UserError(f"bottleneck.noise_dropout is a probability, not {bottleneck.noise_dropout}.")
        for levels in (bottleneck.levels, *bottleneck.train_levels):
            fsq.validate(levels)
            if len(levels) != model.latent_dim:
                raise UserError(
                    f"bottleneck levels {levels} need one entry per latent dimension (model.latent_dim is "
                    f"{model.latent_dim})."
                )


# ---- what a family owes (models/protocol.py) ---------------------------------------------------


def geometry(cfg: Config) -> Geometry:
    """Sample rate, channels, hop and receptive field in latent frames."""
    model = cfg.model
    return Geometry(model.sample_rate, model.audio_channels, model.hop_length, _receptive_field(model))


def _receptive_field(model: TAAEConfig) -> tuple[int, int] | None:
    """Latents that one half of the codec looks at to either side; rounded up. None with an unbounded window."""
    if min(model.sliding_window) < 0:
        return None
    rates = frame_rates(model)
    # In latents: the two end convolutions, then per stage its resampling, attention, and local convolutions.
    reach = [3 / rates[0] + 1.0] * 2
    for i, (stride, depth) in enumerate(zip(model.strides, model.transformer_depths, strict=True)):
        local = depth * 8 if model.conformer else 0
        dilated = sum(3 * d for d in DILATIONS) if model.use_dilated_conv else 0
        for side in (0, 1):
            reach[side] += (depth * model.sliding_window[side] + local) / rates[i + 1]
            reach[side] += (dilated + (2 * stride if stride > 1 else 0)) / rates[i]
    return math.ceil(reach[0]) + 1, math.ceil(reach[1]) + 1


def padded_length(cfg: Config, samples: int) -> int:
    """The next multiple of the hop, at least one hop."""
    hop = cfg.model.hop_length
    return max(1, -(-samples // hop)) * hop


def rate(cfg: Config, bottleneck=None, num_streams: int | None = None) -> Rate:
    """`None` or "train": the bottleneck it was trained with. A preset's name or free stages: post-hoc residual FSQ."""
    if num_streams is not None:
        raise UserError("num_streams belongs to ESC; a TAAE's rate is chosen with bottleneck (--bottleneck).")
    if bottleneck is None or (isinstance(bottleneck, str) and bottleneck == "train"):
        return Rate("train", ((cfg.bottleneck.levels, 1.0),))
    stages = residual_fsq.parse(bottleneck)
    for levels, _ in stages:
        if len(levels) != cfg.model.latent_dim:
            raise UserError(
                f"bottleneck {bottleneck} has {len(levels)} dimensions, but this model's latents have "
                f"{cfg.model.latent_dim}."
            )
    return Rate(bottleneck if isinstance(bottleneck, str) else "custom", stages)


def rates(cfg: Config) -> dict[str, Rate]:
    """Every named rate of this model: that of its training, and the presets for as many latent dimensions."""
    fitting = [name for name, stages in residual_fsq.PRESETS.items() if len(stages[0][0]) == cfg.model.latent_dim]
    return {name: rate(cfg, name) for name in ("train", *fitting)}


def codebook_sizes(cfg: Config, rate: Rate) -> tuple[int, ...]:
    """One codebook per stage: the product of its levels."""
    return tuple(math.prod(levels) for levels, _ in rate.stages)


def init(cfg: Config, key: PRNGKeyArray) -> Variables:
    """Fresh variables, boxed with logical axis names (`nn.get_partition_spec`, `nn.unbox`)."""
    model = cfg.model
    encoder_key, decoder_key = jax.random.split(quick(key))
    patches = jnp.zeros((1, frame_rates(model)[0], model.patch_size * model.audio_channels))
    encoder = Encoder(model).init(encoder_key, patches)["params"]
    decoder = Decoder(model).init(decoder_key, jnp.zeros((1, 1, model.latent_dim)))["params"]
    return {"params": {"encoder": encoder, "decoder": decoder}}


def analyse(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    frames: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch frame latent"]:
    """Audio, a multiple of the hop long, to latents before the bottleneck."""
    valid = _valid(frames, audio.shape[1] // cfg.model.hop_length)
    params = {"params": variables["params"]["encoder"]}
    latents: Any = Encoder(cfg.model).apply(params, patch(audio, cfg.model.patch_size), valid)
    return latents


def synthesise(
    cfg: Config,
    variables: Variables,
    latents: Float[Array, "batch frame latent"],
    frames: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch time channel"]:
    """Quantised (or any) latents to audio."""
    valid = _valid(frames, latents.shape[1])
    params = {"params": variables["params"]["decoder"]}
    patches: Any = Decoder(cfg.model).apply(params, latents, valid)
    return unpatch(patches, cfg.model.patch_size)


def forward(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    keys: Keys,
    *,
    train: bool,
    quantise: bool = True,
) -> Forward:
    """The whole codec; in training with the noise mixture and a drawn level set, else with hard codes.

    quantise: False passes the bounded latents on as they are.
    """
    latents = analyse(cfg, variables, audio)
    bottleneck = cfg.bottleneck
    if not quantise:
        quantised, codes = jnp.tanh(latents.astype(jnp.float32)), fsq.encode(latents, bottleneck.levels)
    elif train:
        level_sets = bottleneck.train_levels or (bottleneck.levels,)
        quantised, codes = fsq.train(latents, keys.step, keys.clips, level_sets, bottleneck.noise_dropout)
    else:
        codes = fsq.encode(latents, bottleneck.levels)
        quantised = fsq.decode(codes, bottleneck.levels)
    return Forward(synthesise(cfg, variables, quantised), audio, codes[:, None], latents, {}, variables)


def usage(cfg: Config, forward: Forward) -> Int[Array, "dim level"]:
    """How often every level of every latent dimension is what a latent rounds to; negative beyond its levels."""
    return fsq.level_counts(forward.latents, cfg.bottleneck.levels)


def encode(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    frames: Int[Array, " batch"] | None,
    rate: Rate,
) -> Int[np.ndarray, "batch codebook frame"]:
    """Audio to tokens: float32 on the device for "train", float64 on the host for post-hoc stages, as upstream."""
    return quantise(_analyse_jit(cfg, variables, audio, frames), rate)


def decode(
    cfg: Config,
    variables: Variables,
    codes: Int[np.ndarray, "batch codebook frame"],
    frames: Int[Array, " batch"] | None,
    rate: Rate,
) -> Float[Array, "batch time channel"]:
    """Tokens to audio."""
    return _synthesise_jit(cfg, variables, dequantise(codes, rate), frames)


def flops(cfg: Config, samples: int) -> dict[str, float]:
    """Of one forward pass over one clip of `samples` samples, a multiple of the hop, by module (models/flops.py)."""
    return autoencoder_flops(cfg.model, samples)


def quantise(latents: Float[Array, "batch frame latent"], rate: Rate) -> Int[np.ndarray, "batch codebook frame"]:
    """Latents to tokens."""
    if rate.name == "train":
        return np.asarray(_fsq_encode_jit(latents, rate.stages[0][0]))[:, None]
    return residual_fsq.encode(np.asarray(latents), rate.stages)


def dequantise(codes: Int[np.ndarray, "batch codebook frame"], rate: Rate) -> Float[np.ndarray, "batch frame latent"]:
    """Tokens to latents. For a single stage of scale 1 the two tables are one."""
    return residual_fsq.decode(np.asarray(codes), rate.stages)


_analyse_jit = functools.partial(jax.jit, static_argnums=0)(analyse)
_synthesise_jit = functools.partial(jax.jit, static_argnums=0)(synthesise)
_fsq_encode_jit = functools.partial(jax.jit, static_argnums=1)(fsq.encode)


def _valid(frames: Array | None, count: int) -> Valid:
    return None if frames is None else jnp.arange(count)[None, :] < frames[:, None]

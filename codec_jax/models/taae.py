"""TAAE, the codec of Stable Codec (arXiv 2411.19842): the autoencoder, its bottleneck, and what a family owes.

waveform → models/autoencoder.py → latents → models/bottlenecks.py → codes, and back (spec TAAE section 4).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from codec_jax.errors import UserError
from codec_jax.models import bottlenecks
from codec_jax.models.autoencoder import DILATIONS, Decoder, Encoder, TAAEConfig, frame_rates, patch, unpatch
from codec_jax.models.bottlenecks import BottleneckConfig, dequantise, quantise
from codec_jax.models.flops import autoencoder_flops
from codec_jax.models.protocol import Forward, Geometry, Keys, Rate, Variables
from codec_jax.nn.transformer import Valid
from codec_jax.ops.counter_random import quick
from codec_jax.quantizers import residual_vq
from codec_jax.quantizers.vq import POINTS

__all__ = ["BottleneckConfig", "Config", "TAAEConfig", "dequantise", "quantise"]


@dataclasses.dataclass(frozen=True)
class Config:
    """A TAAE codec: the autoencoder and its bottleneck."""

    model: TAAEConfig = dataclasses.field(default_factory=TAAEConfig)
    bottleneck: BottleneckConfig = dataclasses.field(default_factory=BottleneckConfig)

    def validate(self) -> None:
        """Raises UserError where fields contradict each other."""
        model = self.model
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
        self.bottleneck.validate(model.latent_dim)


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
    """`None` or "train": the bottleneck it was trained with, of several codebooks the first num_streams (None: all).

    A preset's name or free stages: post-hoc residual FSQ.
    """
    return bottlenecks.rate(cfg.bottleneck, cfg.model.latent_dim, bottleneck, num_streams)


def rates(cfg: Config) -> dict[str, Rate]:
    """Every named rate of this model: those of its training, and the presets for as many latent dimensions."""
    return bottlenecks.rates(cfg.bottleneck, cfg.model.latent_dim)


def codebook_sizes(cfg: Config, rate: Rate) -> tuple[int, ...]:
    """One codebook per stage (the product of its levels) or stream."""
    return bottlenecks.codebook_sizes(cfg.bottleneck, rate)


def init(cfg: Config, key: PRNGKeyArray) -> Variables:
    """Fresh variables, boxed with logical axis names (`nn.get_partition_spec`, `nn.unbox`)."""
    model = cfg.model
    encoder_key, decoder_key, bottleneck_key = jax.random.split(quick(key), 3)
    patches = jnp.zeros((1, frame_rates(model)[0], model.patch_size * model.audio_channels))
    encoder = Encoder(model).init(encoder_key, patches)["params"]
    decoder = Decoder(model).init(decoder_key, jnp.zeros((1, 1, model.latent_dim)))["params"]
    bottleneck = bottlenecks.init(cfg.bottleneck, model.latent_dim, bottleneck_key)
    return {"params": {"encoder": encoder, "decoder": decoder} | ({"bottleneck": bottleneck} if bottleneck else {})}


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
    """The whole codec; in training with what its bottleneck draws, else with hard codes.

    quantise: False passes the bounded latents on as they are. losses: "commitment" and "codebook" of a residual VQ.
    """
    latents, params = analyse(cfg, variables, audio), _bottleneck_params(variables)
    if not quantise:
        passed = bottlenecks.unquantised(cfg.bottleneck, params, latents)
    elif train:
        passed = bottlenecks.train(cfg.bottleneck, params, latents, keys)
    else:
        passed = bottlenecks.infer(cfg.bottleneck, params, latents)
    if passed.points:
        variables = {**variables, POINTS: {"bottleneck": passed.points}}
    heard = synthesise(cfg, variables, passed.latents)
    return Forward(heard, audio, passed.codes, latents, passed.losses, variables)


def usage(cfg: Config, forward: Forward) -> Int[Array, "codebook word"]:
    """How often every level or word is what a latent becomes, see `bottlenecks.usage`."""
    return bottlenecks.usage(cfg.bottleneck, forward.latents, forward.codes)


def encode(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    frames: Int[Array, " batch"] | None,
    rate: Rate,
) -> Int[np.ndarray, "batch codebook frame"]:
    """Audio to tokens: float32 on the device, of several FSQ stages float64 on the host, as upstream."""
    latents = _analyse_jit(cfg, variables, audio, frames)
    return bottlenecks.encode(cfg.bottleneck, _bottleneck_params(variables), latents, rate)


def decode(
    cfg: Config,
    variables: Variables,
    codes: Int[np.ndarray, "batch codebook frame"],
    frames: Int[Array, " batch"] | None,
    rate: Rate,
) -> Float[Array, "batch time channel"]:
    """Tokens to audio."""
    params = _bottleneck_params(variables)
    latents = bottlenecks.decode(cfg.bottleneck, params, cfg.model.latent_dim, codes, rate)
    return _synthesise_jit(cfg, variables, latents, frames)


def unquantised(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    frames: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch time channel"]:
    """Audio through the codec with its bottleneck left open: bounded latents go straight to the decoder."""
    latents = bottlenecks.bound(cfg.bottleneck, analyse(cfg, variables, audio, frames))
    return synthesise(cfg, variables, latents, frames)


def flops(cfg: Config, samples: int) -> dict[str, float]:
    """Of one forward pass over one clip of `samples` samples, a multiple of the hop, by module (models/flops.py)."""
    counts = autoencoder_flops(cfg.model, samples)
    between = bottlenecks.flops(cfg.bottleneck, cfg.model.latent_dim, samples // cfg.model.hop_length)
    encoder = {name: count for name, count in counts.items() if name.startswith("encoder/")}
    return {**encoder, **between, **{name: count for name, count in counts.items() if name not in encoder}}


def has_tokens(cfg: Config) -> bool:
    """False without a bottleneck, where only post-hoc FSQ makes tokens."""
    return cfg.bottleneck.kind != "none"


def has_codebooks(cfg: Config) -> bool:
    """True of a residual VQ, whose codebooks can be seeded and revived."""
    return cfg.bottleneck.kind == "residual_vq"


def seed_codebooks(
    cfg: Config,
    variables: Variables,
    audio: Float[Array, "batch time channel"],
    iterations: int,
    key: PRNGKeyArray,
) -> Variables:
    """The variables with codebooks from k-means of this audio's latents."""
    latents, params = _analyse_jit(cfg, variables, audio), variables["params"]
    found = bottlenecks.seeded(cfg.bottleneck, params["bottleneck"], latents, iterations, key)
    return {**variables, "params": {**params, "bottleneck": found}}


def revive(cfg: Config, params: Any, points: Any, dead: Bool[Array, "codebook word"], key: PRNGKeyArray) -> Any:
    """The parameters with points, which a training forward pass left in its variables, in place of dead words."""
    found = residual_vq.revived(params["bottleneck"], points["bottleneck"]["codebook"], dead, key)
    return {**params, "bottleneck": found}


def _bottleneck_params(variables: Variables) -> Any:
    return variables["params"].get("bottleneck", {})


_analyse_jit = functools.partial(jax.jit, static_argnums=0)(analyse)
_synthesise_jit = functools.partial(jax.jit, static_argnums=0)(synthesise)


def _valid(frames: Array | None, count: int) -> Valid:
    return None if frames is None else jnp.arange(count)[None, :] < frames[:, None]

"""What lies between TAAE's encoder and decoder, chosen by one field, `bottleneck.kind`.

"fsq": finite scalar quantisation (quantizers/fsq.py); of several codebooks residual (quantizers/scalable_fsq.py).
"residual_vq": learned codebooks (quantizers/residual_vq.py). "none": the bounded latents as they are, no codes.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from codec_jax.errors import UserError, require
from codec_jax.models.flops import Counts
from codec_jax.models.protocol import Keys, Rate, in_streams, rate_of_streams
from codec_jax.quantizers import fsq, residual_fsq, residual_vq, scalable_fsq, vq
from codec_jax.quantizers.residual_vq import ResidualVQ

KINDS = ("fsq", "residual_vq", "none")
_FINEST = 1e-6  # of the range of a latent: float32 has no more to give


@dataclasses.dataclass(frozen=True)
class BottleneckConfig:
    """kind: one of KINDS; what another kind needs is left alone.

    fsq: levels, of the bottleneck called "train", one per latent dimension. train_levels: level sets of which every
    training step draws one (empty: `levels` alone). noise_dropout: p of the raw / hard / dither mixture (p², p(1-p),
    1-p). num_codebooks above 1: residual FSQ, `levels` equal in all dimensions.
    residual_vq: num_codebooks of codebook_size words of codebook_dim entries.
    codebook_dropout: of several codebooks, the probability with which a clip in training keeps 1 to num_codebooks of
    them, each number equally likely; else all.
    """

    kind: str = "fsq"
    levels: tuple[int, ...] = (17,) * 6
    train_levels: tuple[tuple[int, ...], ...] = ()
    noise_dropout: float = 0.5
    num_codebooks: int = 1
    codebook_size: int = 1024
    codebook_dim: int = 8
    codebook_dropout: float = 0.0

    @property
    def in_streams(self) -> bool:
        """True where tokens come in streams, one per codebook, of which the first few are a codec of their own."""
        return self.kind == "residual_vq" or (self.kind == "fsq" and self.num_codebooks > 1)

    def validate(self, latent_dim: int) -> None:
        """Raises UserError where fields contradict each other or the model's latents."""
        require(self.kind in KINDS, f'bottleneck.kind is one of {", ".join(KINDS)}, not "{self.kind}".')
        if self.kind == "none":
            return
        for name in ("num_codebooks", "codebook_dim"):
            require(getattr(self, name) >= 1, f"bottleneck.{name} is at least 1, not {getattr(self, name)}.")
        for name in ("noise_dropout", "codebook_dropout"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"bottleneck.{name} is a probability, not {value}.")
        several = self.num_codebooks > 1 or not self.codebook_dropout
        require(several, "bottleneck.codebook_dropout needs several codebooks: set bottleneck.num_codebooks above 1.")
        if self.kind == "residual_vq":
            sized = 2 <= self.codebook_size <= 2**31
            require(sized, f"bottleneck.codebook_size is at least 2 and at most 2^31, not {self.codebook_size}.")
        else:
            self._validate_levels(latent_dim)

    def _validate_levels(self, latent_dim: int) -> None:
        for levels in (self.levels, *self.train_levels):
            fsq.validate(levels)
            if len(levels) != latent_dim:
                dims = f"(model.latent_dim is {latent_dim})"
                raise UserError(f"bottleneck levels {levels} need one entry per latent dimension {dims}.")
        if self.num_codebooks == 1:
            return
        equal = len(set(self.levels)) == 1 and self.levels[0] > 2
        require(equal, "an FSQ of several codebooks needs bottleneck.levels of 3 or more, equal in all dimensions.")
        alone = "level sets are drawn of a single codebook"
        require(not self.train_levels, f"bottleneck.train_levels must be empty with num_codebooks above 1: {alone}.")
        finest = (self.levels[0] - 1.0) ** -self.num_codebooks
        fine = (
            f"{self.num_codebooks} codebooks of {self.levels[0]} levels reach steps of {finest:.1g}, finer than float32"
        )
        require(finest > _FINEST, f"{fine}: set bottleneck.num_codebooks lower.")


class Passed(NamedTuple):
    """What becomes of latents. latents: for the decoder. codes: of all codebooks, whatever was kept; none of "none".

    losses: "commitment" and "codebook" of residual_vq, unweighted means over clips. points: `vq.POINTS` of training, at
    the paths of the parameters.
    """

    latents: Float[Array, "batch frame latent"]
    codes: Int[Array, "batch codebook frame"]
    losses: dict[str, Float[Array, ""]]
    points: dict[str, Array]


# ---- forward -----------------------------------------------------------------------------------


def init(cfg: BottleneckConfig, latent_dim: int, key: PRNGKeyArray) -> dict[str, Any]:
    """Parameters, boxed with logical axis names: of residual_vq, others have none."""
    if cfg.kind != "residual_vq":
        return {}
    return _vq(cfg, latent_dim).init(key, jnp.zeros((1, 1, latent_dim)))["params"]


def train(cfg: BottleneckConfig, params: Mapping, latents: Float[Array, "batch frame latent"], keys: Keys) -> Passed:
    """With what training adds: noise and level sets of FSQ, codebook dropout, gradients."""
    if cfg.kind == "none":
        return unquantised(cfg, params, latents)
    if cfg.kind == "residual_vq":
        kept = jax.vmap(lambda key: vq.draw_streams(key, cfg.num_codebooks, cfg.codebook_dropout))(keys.clips)
        return _vector_quantised(cfg, params, latents, kept)
    if cfg.num_codebooks > 1:
        stages = scalable_fsq.stages(cfg.levels, cfg.num_codebooks)
        out, codes = scalable_fsq.train(latents, keys.clips, stages, cfg.noise_dropout, cfg.codebook_dropout)
        return Passed(out, codes, {}, {})
    level_sets = cfg.train_levels or (cfg.levels,)
    out, codes = fsq.train(latents, keys.step, keys.clips, level_sets, cfg.noise_dropout)
    return Passed(out, codes[:, None], {}, {})


def infer(cfg: BottleneckConfig, params: Mapping, latents: Float[Array, "batch frame latent"]) -> Passed:
    """Hard codes of all codebooks, all counted."""
    if cfg.kind == "none":
        return unquantised(cfg, params, latents)
    if cfg.kind == "residual_vq":
        return _vector_quantised(cfg, params, latents, None)
    if cfg.num_codebooks > 1:
        stages = scalable_fsq.stages(cfg.levels, cfg.num_codebooks)
        codes, tokens = scalable_fsq.quantise(jnp.tanh(latents.astype(jnp.float32)), stages)
        return Passed(codes.sum(0), tokens, {}, {})
    tokens = fsq.encode(latents, cfg.levels)
    return Passed(fsq.decode(tokens, cfg.levels), tokens[:, None], {}, {})


def unquantised(cfg: BottleneckConfig, params: Mapping, latents: Float[Array, "batch frame latent"]) -> Passed:
    """The bottleneck left open: bounded latents, and the codes they would have. Losses are zero."""
    bounded = bound(cfg, latents)
    if cfg.kind == "none":
        return Passed(bounded, jnp.zeros((len(latents), 0, latents.shape[1]), jnp.int32), {}, {})
    hard = infer(cfg, params, latents)
    return hard._replace(latents=bounded, losses=jax.tree.map(jnp.zeros_like, hard.losses))


def bound(cfg: BottleneckConfig, latents: Float[Array, "batch frame latent"]) -> Float[Array, "batch frame latent"]:
    """Latents as the bottleneck sees them: in float32, and but for residual_vq within [-1, 1]."""
    latents = latents.astype(jnp.float32)
    return latents if cfg.kind == "residual_vq" else jnp.tanh(latents)


def usage(cfg: BottleneckConfig, latents: Array, codes: Array) -> Int[Array, "codebook word"]:
    """How often every word of every codebook occurs; of FSQ, every level of every dimension (of every stage), negative
    beyond its levels. Of "none" there is nothing to count: [0, 1].
    """
    if cfg.kind == "none":
        return jnp.zeros((0, 1), jnp.int32)
    if cfg.kind == "residual_vq":
        return vq.counts(codes, cfg.codebook_size)
    return (
        scalable_fsq.level_counts(codes, cfg.levels) if cfg.num_codebooks > 1 else fsq.level_counts(latents, cfg.levels)
    )


def _vector_quantised(cfg: BottleneckConfig, params: Mapping, latents: Array, kept: Array | None) -> Passed:
    """kept: None outside training."""
    train, module = kept is not None, _vq(cfg, latents.shape[-1])
    out, told = module.apply({"params": params}, latents, kept, train=train, mutable=[vq.POINTS] if train else [])
    commitment, codebook = out.losses.mean(1)
    losses = {"commitment": commitment, "codebook": codebook}
    return Passed(out.latents, out.codes, losses, dict(told.get(vq.POINTS, {})))


def _vq(cfg: BottleneckConfig, latent_dim: int) -> ResidualVQ:
    return ResidualVQ(latent_dim, cfg.num_codebooks, cfg.codebook_size, cfg.codebook_dim)


# ---- rates and tokens --------------------------------------------------------------------------


def rate(cfg: BottleneckConfig, latent_dim: int, bottleneck: Any = None, num_streams: int | None = None) -> Rate:
    """`None` or "train": the bottleneck it was trained with, of several codebooks the first num_streams (None: all).

    A preset's name or free stages: post-hoc residual FSQ of the bounded latents.
    """
    trained = bottleneck is None or (isinstance(bottleneck, str) and bottleneck == "train")
    if num_streams is not None and cfg.kind != "none" and cfg.num_codebooks > 1 and not trained:
        raise UserError(
            "num_streams counts the codebooks of the training bottleneck: give it or a bottleneck, not both."
        )
    if num_streams is not None and (cfg.kind == "none" or cfg.num_codebooks == 1):
        raise UserError(
            "num_streams belongs to ESC, and to a TAAE of several codebooks, which this is not: its rate is chosen "
            "with bottleneck (--bottleneck)."
        )
    if not trained:
        return _posthoc(cfg, latent_dim, bottleneck)
    if cfg.kind == "none":
        raise UserError(
            "a codec without bottleneck has no tokens: give post-hoc FSQ as bottleneck (--bottleneck), or train one "
            "with another bottleneck.kind."
        )
    if not cfg.in_streams:
        return Rate("train", ((cfg.levels, 1.0),))
    count = cfg.num_codebooks if num_streams is None else num_streams
    require(
        1 <= count <= cfg.num_codebooks, f"num_streams is {count}: this codec has 1 to {cfg.num_codebooks} codebooks."
    )
    return rate_of_streams(count)


def _posthoc(cfg: BottleneckConfig, latent_dim: int, bottleneck: Any) -> Rate:
    stages = residual_fsq.parse(bottleneck)
    if cfg.kind == "residual_vq":
        raise UserError(
            "latents of a residual VQ are not bounded, so no FSQ fits them: its rate is chosen with num_streams "
            "(--num-streams)."
        )
    for levels, _ in stages:
        if len(levels) != latent_dim:
            raise UserError(
                f"bottleneck {bottleneck} has {len(levels)} dimensions, but this model's latents have {latent_dim}."
            )
    return Rate(bottleneck if isinstance(bottleneck, str) else "custom", stages)


def rates(cfg: BottleneckConfig, latent_dim: int) -> dict[str, Rate]:
    """Every named rate: of training, by the number of codebooks where there are several, and the presets that fit."""
    if cfg.in_streams:
        found = {f"num_streams={n}": rate_of_streams(n) for n in range(1, cfg.num_codebooks + 1)}
    else:
        found = {} if cfg.kind == "none" else {"train": rate(cfg, latent_dim)}
    if cfg.kind != "residual_vq":
        fitting = [name for name, stages in residual_fsq.PRESETS.items() if len(stages[0][0]) == latent_dim]
        found |= {name: rate(cfg, latent_dim, name) for name in fitting}
    return found


def codebook_sizes(cfg: BottleneckConfig, rate: Rate) -> tuple[int, ...]:
    """One codebook per stage or stream. UserError: tokens that are of another kind of bottleneck."""
    if not in_streams(rate):
        require(cfg.kind != "residual_vq", "these tokens are of an FSQ, and this codec has a residual VQ.")
        return residual_fsq.codebook_sizes(rate.stages)
    require(cfg.in_streams, "these tokens are in streams, one per codebook, and this codec has no codebooks like that.")
    size = cfg.codebook_size if cfg.kind == "residual_vq" else math.prod(cfg.levels)
    return (size,) * min(rate.stages[0], cfg.num_codebooks)


def encode(
    cfg: BottleneckConfig, params: Mapping, latents: Float[Array, "batch frame latent"], rate: Rate
) -> Int[np.ndarray, "batch codebook frame"]:
    """Latents to tokens."""
    if not in_streams(rate):
        return quantise(latents, rate)
    if cfg.kind == "residual_vq":
        return np.asarray(_vq_encode_jit(_vq(cfg, latents.shape[-1]), params, latents, rate.stages[0]))
    return residual_fsq.encode(np.asarray(latents), scalable_fsq.stages(cfg.levels, rate.stages[0]))


def decode(
    cfg: BottleneckConfig, params: Mapping, latent_dim: int, codes: Int[np.ndarray, "batch codebook frame"], rate: Rate
) -> Float[np.ndarray, "batch frame latent"] | Float[Array, "batch frame latent"]:
    """Tokens to latents for the decoder."""
    if not in_streams(rate):
        return dequantise(codes, rate)
    if cfg.kind == "residual_vq":
        return _vq_decode_jit(_vq(cfg, latent_dim), params, jnp.asarray(codes))
    return residual_fsq.decode(np.asarray(codes), scalable_fsq.stages(cfg.levels, rate.stages[0]))


def quantise(latents: Float[Array, "batch frame latent"], rate: Rate) -> Int[np.ndarray, "batch codebook frame"]:
    """Latents to tokens of FSQ stages: float32 on the device for "train", float64 on the host for post-hoc stages, as
    upstream.
    """
    if rate.name == "train":
        return np.asarray(_fsq_encode_jit(latents, rate.stages[0][0]))[:, None]
    return residual_fsq.encode(np.asarray(latents), rate.stages)


def dequantise(codes: Int[np.ndarray, "batch codebook frame"], rate: Rate) -> Float[np.ndarray, "batch frame latent"]:
    """Tokens of FSQ stages to latents. For a single stage of scale 1 the two tables are one."""
    return residual_fsq.decode(np.asarray(codes), rate.stages)


def _vq_encode(module: ResidualVQ, params: Mapping, latents: Array, count: int) -> Array:
    codes: Any = module.apply({"params": params}, latents, count, method=ResidualVQ.encode)
    return codes


def _vq_decode(module: ResidualVQ, params: Mapping, codes: Array) -> Array:
    latents: Any = module.apply({"params": params}, codes, method=ResidualVQ.decode)
    return latents


_fsq_encode_jit = functools.partial(jax.jit, static_argnums=1)(fsq.encode)
_vq_encode_jit = jax.jit(_vq_encode, static_argnums=(0, 3))
_vq_decode_jit = jax.jit(_vq_decode, static_argnums=0)


# ---- codebooks in training, and cost -----------------------------------------------------------


def seeded(
    cfg: BottleneckConfig,
    params: Mapping,
    latents: Float[Array, "batch frame latent"],
    iterations: int,
    key: PRNGKeyArray,
) -> Mapping:
    """Parameters of residual_vq with codebooks from k-means of these latents."""
    return residual_vq.seeded(_vq(cfg, latents.shape[-1]), params, latents, iterations, key)


def flops(cfg: BottleneckConfig, latent_dim: int, frames: int) -> Counts:
    """Of residual_vq: projections down and up, and the distances to every codeword, which no gradient is asked of."""
    if cfg.kind != "residual_vq":
        return {}
    product = 2.0 * frames * cfg.num_codebooks * cfg.codebook_dim
    return {"bottleneck/projections": 2 * product * latent_dim, "bottleneck/lookup": product * cfg.codebook_size}

"""Optimisers, schedules, clipping, and the exponential moving average of parameters (spec TAAE section 6)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from codec_jax.experiment import OptimConfig
from codec_jax.train import mup

PyTree = Any


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The rate of every update of a stage of `steps` updates, counted from 0."""
    if config.schedule == "inverse":
        return inverse(config)
    peak, warmup = config.learning_rate, min(config.warmup_steps, max(1, steps // 2))
    end = peak * config.final_fraction
    rise = optax.linear_schedule(peak / warmup, peak, warmup)
    if config.schedule == "cosine":
        alpha = config.final_fraction
        return optax.join_schedules([rise, optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha)], [warmup])
    if config.schedule == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(peak)], [warmup])
    falling = max(1, round(config.decay_fraction * steps))
    fall = optax.linear_schedule(peak, end, falling)
    return optax.join_schedules([rise, optax.constant_schedule(peak), fall], [warmup, max(warmup, steps - falling)])


def inverse(config: OptimConfig) -> optax.Schedule:
    """Upstream's InverseLR: (1 - warmup^(i+1)) · max(final, base (1 + i / inv_gamma)^-power)."""

    def rate(i):
        i = jnp.asarray(i, jnp.float32)
        decayed = config.learning_rate * (1 + i / config.inv_gamma) ** -config.power
        # 1 - w^(i+1) by expm1: in float32 the power itself would lose the first steps.
        warm = -jnp.expm1((i + 1) * jnp.log(jnp.float32(config.inverse_warmup)))
        return warm * jnp.maximum(decayed, config.learning_rate * config.final_fraction)

    return rate


def optimizer(config: OptimConfig, rates: Sequence[float] | None = None) -> optax.GradientTransformation:
    """Directions, not yet scaled by the learning rate, so that a stage can change the schedule and keep the moments.

    rates: of µP, factors of Adam's step by leaf; decay is left alone. Unless `decay_all` says otherwise only plain
    kernels decay: the length of a weight-normalised one is g.
    """
    if config.name == "sgd":
        return optax.identity()
    scaled = [] if rates is None else [optax.stateless(lambda steps, _: mup.scaled(steps, rates))]
    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2),
        *scaled,
        optax.add_decayed_weights(config.weight_decay, mask=None if config.decay_all else _is_kernel),
    )


def descend(params: PyTree, directions: PyTree, rate: Array, freeze: Sequence[str] = ()) -> PyTree:
    """Params - rate · directions, except for the parts named in `freeze`."""

    def move(path, p, d):
        return p if is_frozen(path, freeze) else p - rate.astype(p.dtype) * d

    return jax.tree_util.tree_map_with_path(move, params, directions)


def is_frozen(path: Sequence[Any], freeze: Sequence[str]) -> bool:
    """True for a leaf at or below one of `freeze`, such as "encoder" or "decoder/stage_0"."""
    name = "/".join(str(getattr(key, "key", key)) for key in path)
    return any(name == part or name.startswith(f"{part}/") for part in freeze)


def clip(grads: PyTree, norm: Float[Array, ""], limit: float) -> PyTree:
    """Gradients scaled down to the global norm `limit` where theirs, `norm`, is larger."""
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


def _is_kernel(params: PyTree) -> PyTree:
    def named_kernel(path, _):
        return any(getattr(entry, "key", None) == "kernel" for entry in path)

    return jax.tree_util.tree_map_with_path(named_kernel, params)


def ema_update(ema: PyTree, params: PyTree, updates: Int[Array, ""], decay: float) -> PyTree:
    """ema-pytorch's schedule: three copies, then decay min(`decay`, 1 - (k - 1)^(-3/4)) at the k-th update.

    updates: k, counted from 1.
    """
    k = jnp.asarray(updates, jnp.float32)
    rate = jnp.clip(1 - jnp.maximum(k - 1, 1.0) ** -0.75, 0.0, decay)
    return jax.tree.map(lambda e, p: jnp.where(k <= 3, p, e + (1 - rate) * (p - e)), ema, params)

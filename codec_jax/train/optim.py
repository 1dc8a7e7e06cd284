"""AdamW with warm-up and cosine, and the exponential moving average of parameters (spec TAAE section 6)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from codec_jax.experiment import OptimConfig

PyTree = Any


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear from 1/warmup of the peak, then a cosine down to `final_fraction` of it at `steps`."""
    warmup = min(config.warmup_steps, max(1, steps // 2))
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / warmup,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.final_fraction,
    )


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW. Only plain kernels decay: the length of a weight-normalised one is g."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_is_kernel,
        ),
    )


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

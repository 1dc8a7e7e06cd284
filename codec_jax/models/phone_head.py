"""The head of the CTC stage: latents before the bottleneck to phones (spec TAAE section 6)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from codec_jax.nn.linear import Linear
from codec_jax.ops.counter_random import quick

Params = Any


class PhoneHead(nn.Module):
    """Tanh, then three linear maps with ReLU between them; classes: the phones, and the blank last."""

    hidden: int
    classes: int

    @nn.compact
    def __call__(self, latents: Float[Array, "batch frame latent"]) -> Float[Array, "batch frame class"]:
        h = jnp.tanh(latents.astype(jnp.float32))
        h = nn.relu(Linear((self.hidden,), (None,), ("mlp",), name="linear_1")(h))
        h = nn.relu(Linear((self.hidden,), ("embed",), ("mlp",), name="linear_2")(h))
        return Linear((self.classes,), ("embed",), (None,), name="linear_3")(h)


def init(hidden: int, phones: int, latent_dim: int, key: PRNGKeyArray) -> Params:
    """Fresh parameters, boxed with logical axis names; PyTorch's initialisation."""
    return PhoneHead(hidden, phones + 1).init(quick(key), jnp.zeros((1, 1, latent_dim)))["params"]


def logits(params: Params, latents: Float[Array, "batch frame latent"]) -> Float[Array, "batch frame class"]:
    """Of every frame; sizes are those of the parameters."""
    kernels = [params[f"linear_{i}"]["kernel"] for i in (1, 3)]
    found: Any = PhoneHead(kernels[0].shape[1], kernels[1].shape[1]).apply({"params": params}, latents)
    return found


jitted_logits = jax.jit(logits)


def flops(hidden: int, phones: int, latent_dim: int, frames: int) -> float:
    """Of one forward pass over so many frames."""
    return 2.0 * frames * (latent_dim * hidden + hidden * hidden + hidden * (phones + 1))

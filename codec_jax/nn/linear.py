"""Linear maps with PyTorch's initialisation and named kernel axes."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def torch_uniform(fan_in: int):
    """PyTorch's default for weights and biases of linear and convolution layers: U(±1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def partitioned(init: Callable, names: tuple[str | None, ...]) -> Callable[..., Any]:
    """An initialiser whose parameter carries the logical names of its axes; modules get it back unboxed."""
    return nn.with_logical_partitioning(init, names)


class Linear(nn.Module):
    """Contracts the trailing `len(in_axes)` axes of the input with a kernel [*in_shape, *features].

    features: shape of the output's trailing axes, e.g. (3, heads, head_dim) for joint q, k, v, so that heads can be
    sharded. in_axes, out_axes: logical names of the kernel's axes. zero: start at zero (residual branches without
    layer scale).
    """

    features: tuple[int, ...]
    in_axes: tuple[str | None, ...]
    out_axes: tuple[str | None, ...]
    use_bias: bool = True
    zero: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        in_ndim = len(self.in_axes)
        in_shape = x.shape[x.ndim - in_ndim :]
        init = nn.initializers.zeros if self.zero else torch_uniform(math.prod(in_shape))
        kernel_init = partitioned(init, self.in_axes + self.out_axes)
        kernel = self.param("kernel", kernel_init, in_shape + self.features)
        # One row per token: XLA's CPU backend contracts several batch axes in the weight gradient at half the speed.
        tokens = x.astype(self.dtype).reshape(-1, *in_shape)
        y = jnp.tensordot(tokens, kernel.astype(self.dtype), in_ndim)
        y = y.reshape(*x.shape[: x.ndim - in_ndim], *self.features)
        if self.use_bias:
            bias = self.param("bias", partitioned(init, self.out_axes), self.features)
            y = y + bias.astype(self.dtype)
        return y

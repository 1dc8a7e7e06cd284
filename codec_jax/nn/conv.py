"""Weight-normalised 1-D convolutions over channels-last sequences, and the activations between them.

Weight norm is kept as (g, v), w = g · v / ‖v‖, so that checkpoints go both ways bit for bit. As in PyTorch the norm is
per output channel, and per *input* channel for transposed convolutions. Kernels are [tap, in, out].
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from codec_jax.nn.linear import partitioned, torch_uniform
from codec_jax.ops.snake import snake_beta

_AXES = ("tap", "conv_in", "conv_out")


def normalised_kernel(
    g: Float[Array, " channel"], v: Float[Array, "tap in out"], axis: int
) -> Float[Array, "tap in out"]:
    """The kernel g · v / ‖v‖, with one norm per slice of `axis` (2: output channels, 1: input channels)."""
    others = tuple(a for a in range(3) if a != axis)
    norm = jnp.sqrt(jnp.square(v).sum(others, keepdims=True))
    return v / norm * jnp.expand_dims(g, others)


def gathered(kernel: Float[Array, "*taps in out"]) -> Float[Array, "*taps in out"]:
    """The kernel with its input channels whole on every device, as a convolution needs them under fsdp.

    Left to itself the SPMD partitioner (jaxlib 0.10.2, Shardy and GSPMD) may keep them cut over fsdp in the gradient to
    the input. With the batch cut over (replica, fsdp), both above 1, it then reorders the batch to (fsdp, replica),
    never back, and every gradient from there on is that of the wrong clip.
    """
    free = PartitionSpec.UNCONSTRAINED
    return nn.with_logical_constraint(kernel, (free,) * (kernel.ndim - 2) + (None, free))


def _weight_norm(module: nn.Module, shape: tuple[int, int, int], axis: int) -> Array:
    """Declares v and g = ‖v‖ on `module` and gives the kernel."""
    fan_in = shape[0] * shape[3 - axis]  # PyTorch counts the second axis of its own layout
    v = module.param("v", partitioned(torch_uniform(fan_in), _AXES), shape)
    others = tuple(a for a in range(3) if a != axis)

    def initial_g(key, g_shape):
        return jnp.sqrt(jnp.square(v).sum(others)).reshape(g_shape)

    g = module.param("g", partitioned(initial_g, (_AXES[axis],)), (shape[axis],))
    return gathered(normalised_kernel(g, v, axis))


class Conv(nn.Module):
    """[batch, time, in] -> [batch, ~time / stride, features], `padding` zeros on both sides."""

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    use_bias: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch time channel"]) -> Float[Array, "batch frame feature"]:
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel = _weight_norm(self, shape, axis=2)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride,),
            padding=[(self.padding, self.padding)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        if self.use_bias:
            init = partitioned(torch_uniform(shape[0] * shape[1]), ("conv_out",))
            y = y + self.param("bias", init, (self.features,)).astype(self.dtype)
        return y


class TransposedConv(nn.Module):
    """[batch, frame, in] -> [batch, stride * frame, features]: kernel 2 · stride, ⌈stride / 2⌉ cropped on the left.

    Every frame gives two blocks of `stride` samples, and the second overlaps the next frame's first: one matrix
    product and one shifted sum, no convolution. Upstream loses the last sample of odd strides; here it is kept.
    """

    features: int
    stride: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch frame channel"]) -> Float[Array, "batch time feature"]:
        batch, frames, channels = x.shape
        shape = (2 * self.stride, channels, self.features)
        kernel = _weight_norm(self, shape, axis=1).astype(self.dtype)
        y = jnp.einsum("bfc,tcd->bftd", x.astype(self.dtype), kernel)
        first, second = y[:, :, : self.stride], y[:, :, self.stride :]
        rest = ((0, 0), (0, 0))
        overlapped = jnp.pad(first, ((0, 0), (0, 1), *rest)) + jnp.pad(second, ((0, 0), (1, 0), *rest))
        crop = -(-self.stride // 2)
        y = overlapped.reshape(batch, (frames + 1) * self.stride, self.features)
        y = y[:, crop : crop + frames * self.stride]
        init = partitioned(torch_uniform(shape[0] * self.features), ("conv_out",))
        return y + self.param("bias", init, (self.features,)).astype(self.dtype)


class DepthwiseConv(nn.Module):
    """One filter per channel, odd kernel, same length, no bias, no weight norm (conformer)."""

    kernel_size: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch time channel"]) -> Float[Array, "batch time channel"]:
        init = partitioned(torch_uniform(self.kernel_size), ("tap", None, "embed"))
        kernel = self.param("kernel", init, (self.kernel_size, 1, x.shape[-1])).astype(self.dtype)
        # Shifted sums, not a grouped convolution: with channels cut over a mesh axis, jaxlib 0.10.2 partitions the
        # gradient of a grouped kernel wrongly.
        time, reach = x.shape[1], self.kernel_size // 2
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (reach, reach), (0, 0)))
        taps = [padded[:, tap : tap + time] * kernel[tap] for tap in range(self.kernel_size)]
        return functools.reduce(jnp.add, taps)


class SnakeBeta(nn.Module):
    """The snake activation, its α and β kept as logarithms that start at zero."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channel"]) -> Float[Array, "*batch channel"]:
        init = partitioned(nn.initializers.zeros, ("conv_in",))
        alpha = self.param("alpha", init, (x.shape[-1],))
        beta = self.param("beta", init, (x.shape[-1],))
        return snake_beta(x.astype(jnp.float32), alpha, beta).astype(x.dtype)


class ResidualUnit(nn.Module):
    """activation → dilated conv k7 → activation → conv k1, plus the input. SnakeBeta or ELU."""

    dilation: int
    use_snake: bool
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch time channel"]) -> Float[Array, "batch time channel"]:
        channels = x.shape[-1]
        y = SnakeBeta(name="act_1")(x) if self.use_snake else nn.elu(x)
        y = Conv(channels, 7, dilation=self.dilation, padding=3 * self.dilation, dtype=self.dtype, name="conv_1")(y)
        y = SnakeBeta(name="act_2")(y) if self.use_snake else nn.elu(y)
        return x + Conv(channels, 1, dtype=self.dtype, name="conv_2")(y)

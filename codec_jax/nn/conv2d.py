"""2-D convolutions over [batch, row, column, channel], rows (frequency) × columns (time) (spec ESC section 5).

Kernels are 5 rows × 2 columns: a column and the one before it. So nothing here looks ahead, and columns behind a
clip's end change nothing before it. Kernels are [row tap, column tap, in, out].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from codec_jax.nn.conv import gathered
from codec_jax.nn.linear import partitioned, torch_uniform
from codec_jax.nn.transformer import Valid

KERNEL = (5, 2)
_AXES = ("tap", "tap", "conv_in", "conv_out")
_MOMENTUM, _EPSILON = 0.1, 1e-5
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Conv2d(nn.Module):
    """A convolution of odd kernel, zero-padded to keep the shape."""

    features: int
    kernel_size: tuple[int, int]
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch row column channel"]) -> Float[Array, "batch row column feature"]:
        fan_in = self.kernel_size[0] * self.kernel_size[1] * x.shape[-1]
        kernel, bias = _kernel_and_bias(self, (*self.kernel_size, x.shape[-1], self.features), fan_in)
        pads = [(size // 2, size // 2) for size in self.kernel_size]
        x = x.astype(self.dtype)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_LAYOUT) + bias


class Convolution(nn.Module):
    """Kernel 5 × 2. scale: None keeps the rows, "down" halves them (rounding down), "up" doubles them."""

    features: int
    scale: str | None = None
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch row column channel"]) -> Float[Array, "batch row_ column feature"]:
        # PyTorch counts the second axis of its own layout, which for transposed convolutions is the output.
        fan_in = KERNEL[0] * KERNEL[1] * (self.features if self.scale == "up" else x.shape[-1])
        kernel, bias = _kernel_and_bias(self, (*KERNEL, x.shape[-1], self.features), fan_in)
        x = x.astype(self.dtype)
        if self.scale == "up":
            # The transposed convolution, of 2 · row + 1 rows and column + 1 columns, without the last of either.
            kernel = kernel[::-1, ::-1]
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), [(3, 2), (1, 0)], (2, 1), dimension_numbers=_LAYOUT)
        else:
            strides = (2 if self.scale == "down" else 1, 1)
            y = jax.lax.conv_general_dilated(x, kernel, strides, [(2, 2), (1, 0)], dimension_numbers=_LAYOUT)
        if self.scale == "down":
            y = y[:, : x.shape[1] // 2]
        return y + bias


class BatchNorm(nn.Module):
    """PyTorch's batch normalisation, in float32; the running variance is the unbiased one (Flax keeps the biased).

    Statistics live in the collection `batch_stats`, and are updated where it is mutable.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channel"], train: bool = False) -> Float[Array, "*batch channel"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", partitioned(nn.initializers.ones, ("conv_out",)), shape)
        bias = self.param("bias", partitioned(nn.initializers.zeros, ("conv_out",)), shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        y = x.astype(jnp.float32)
        mean, variance = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = y.mean(axes)
            variance = jnp.square(y - mean).mean(axes)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                count = x.size // x.shape[-1]
                unbiased = variance * (count / max(1, count - 1))
                running_mean.value = (1 - _MOMENTUM) * running_mean.value + _MOMENTUM * mean
                running_var.value = (1 - _MOMENTUM) * running_var.value + _MOMENTUM * unbiased
        y = (y - mean) * jax.lax.rsqrt(variance + _EPSILON) * scale + bias
        return y.astype(x.dtype)


class PReLU(nn.Module):
    """Negative values times one learned slope."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channel"]) -> Float[Array, "*batch channel"]:
        slope = self.param("slope", partitioned(nn.initializers.constant(0.25), (None,)), (1,))
        return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


class ResidualUnit(nn.Module):
    """Convolution → BatchNorm → PReLU, twice, plus the input."""

    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch row column channel"], train: bool = False
    ) -> Float[Array, "batch row column channel"]:
        y = x
        for i in (1, 2):
            y = Convolution(x.shape[-1], dtype=self.dtype, name=f"conv_{i}")(y)
            y = PReLU(name=f"act_{i}")(BatchNorm(name=f"norm_{i}")(y, train))
        return x + y


class ConvStage(nn.Module):
    """`depth` residual units, then a convolution "down" or "up" (scale) to `features`; of scale None it stands alone.

    remat: "none", or another word to compute every residual unit again in the backward pass.
    """

    depth: int
    features: int
    scale: str | None = None
    remat: str = "none"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch row column channel"], valid: Valid = None, train: bool = False
    ) -> Float[Array, "batch row_ column feature"]:
        """valid: unused, as nothing here looks ahead; stages of transformers need it."""
        x = nn.with_logical_constraint(x, ("batch", None, "time", None))
        if self.scale is None:
            return Convolution(self.features, dtype=self.dtype, name="conv")(x)
        unit = ResidualUnit if self.remat == "none" else nn.remat(ResidualUnit, static_argnums=(2,))
        for i in range(self.depth):
            x = unit(self.dtype, name=f"unit_{i}")(x, train)
        x = Convolution(self.features, self.scale, self.dtype, name="resample")(x)
        return PReLU(name="act")(BatchNorm(name="norm")(x, train))


def _kernel_and_bias(module: nn.Module, shape: tuple[int, int, int, int], fan_in: int) -> tuple[Array, Array]:
    """Declares both on `module`, and gives them in its dtype."""
    init = torch_uniform(fan_in)
    kernel = module.param("kernel", partitioned(init, _AXES), shape)
    bias = module.param("bias", partitioned(init, ("conv_out",)), shape[-1:])
    dtype = getattr(module, "dtype")  # noqa: B009 - of every module here, but not of nn.Module
    return gathered(kernel).astype(dtype), bias.astype(dtype)

"""The network of TAAE: patches, encoder and decoder halves (spec TAAE sections 1 to 3).

waveform → patches → [conv, activation → strided conv → transformer]* → conv → latents, and mirrored back.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from codec_jax.nn.conv import Conv, ResidualUnit, SnakeBeta, TransposedConv
from codec_jax.nn.transformer import BlockConfig, Stack, Valid, mask_padding

DILATIONS = (1, 3, 9)


@dataclasses.dataclass(frozen=True)
class TAAEConfig:
    """The autoencoder. `c_mults`, `strides`, `transformer_depths`: one entry per stage, encoder order.

    patch_size: samples per frame before the first stage. sliding_window: frames seen to the left and right, at every
    stage's own rate; -1 is unbounded. head_dim: upstream fixes 128; narrower stages take one head of their width.
    remat: "none", "full" or "dots". unroll: layers written out instead of scanned (same parameters).
    dtype: of matrix products; parameters, norms, softmax, rotary angles and quantisation stay float32.
    """

    sample_rate: int = 16_000
    audio_channels: int = 1
    patch_size: int = 320
    channels: int = 1024
    c_mults: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 2)
    transformer_depths: tuple[int, ...] = (8, 20)
    latent_dim: int = 6
    sliding_window: tuple[int, int] = (63, 64)
    head_dim: int = 128
    use_snake: bool = False
    use_dilated_conv: bool = False
    conformer: bool = False
    layer_scale: bool = True
    soft_clip: bool = False
    remat: str = "none"
    unroll: bool = False
    attention_impl: str = "auto"
    dtype: str = "float32"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        return tuple(m * self.channels for m in self.c_mults)

    @property
    def hop_length(self) -> int:
        """Samples per latent."""
        return self.patch_size * math.prod(self.strides)

    def block(self, width: int) -> BlockConfig:
        """The transformer block of a stage of this width."""
        return BlockConfig(
            head_dim=min(self.head_dim, width),
            window=self.sliding_window,
            layer_scale=self.layer_scale,
            conformer=self.conformer,
            remat=self.remat,
            unroll=self.unroll,
            attention_impl=self.attention_impl,
            dtype=self.dtype,
        )


# ---- waveform to patches and back --------------------------------------------------------------


def patch(audio: Float[Array, "batch time channel"], size: int) -> Float[Array, "batch frame patch"]:
    """Reshapes every `size` samples into one frame; output channel c · size + h is sample h of audio channel c."""
    batch, time, channels = audio.shape
    return audio.reshape(batch, time // size, size, channels).swapaxes(2, 3).reshape(batch, time // size, -1)


def unpatch(frames: Float[Array, "batch frame patch"], size: int) -> Float[Array, "batch time channel"]:
    """The exact inverse of `patch`."""
    batch, count, width = frames.shape
    return frames.reshape(batch, count, width // size, size).swapaxes(2, 3).reshape(batch, count * size, -1)


# ---- the two halves ----------------------------------------------------------------------------


class EncoderStage(nn.Module):
    """[residual units] → activation → strided conv → transformer, to `width` channels."""

    config: TAAEConfig
    width: int
    stride: int
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch time channel"], valid: Valid = None) -> Float[Array, "batch frame dim"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        x = mask_padding(x, _upsampled(valid, self.stride))
        if cfg.use_dilated_conv:
            x = residual_units(cfg, x, _upsampled(valid, self.stride))
        if cfg.use_snake:
            x = SnakeBeta(name="act")(x)
        if self.stride > 1:
            padding = -(-self.stride // 2)
            x = Conv(self.width, 2 * self.stride, self.stride, padding=padding, dtype=dtype, name="resample")(x)
        return Stack(cfg.block(self.width), self.depth, name="transformer")(x, valid) if self.depth else x


class DecoderStage(nn.Module):
    """transformer → activation → transposed conv → [residual units], to `width` channels."""

    config: TAAEConfig
    width: int
    stride: int
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch frame dim"], valid: Valid = None) -> Float[Array, "batch time channel"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        if self.depth:
            x = Stack(cfg.block(x.shape[-1]), self.depth, name="transformer")(x, valid)
        if cfg.use_snake:
            x = SnakeBeta(name="act")(x)
        if self.stride > 1:
            x = TransposedConv(self.width, self.stride, dtype, name="resample")(mask_padding(x, valid))
        if cfg.use_dilated_conv:
            x = residual_units(cfg, x, _upsampled(valid, self.stride))
        return x


def residual_units(cfg: TAAEConfig, x: Array, valid: Valid) -> Array:
    """The three dilated units of a stage; called inside its compact method."""
    for i, dilation in enumerate(DILATIONS):
        x = ResidualUnit(dilation, cfg.use_snake, jnp.dtype(cfg.dtype), name=f"residual_{i}")(mask_padding(x, valid))
    return x


class Encoder(nn.Module):
    """Patches [batch, frame, patch] to latents [batch, latent frame, latent_dim], before the bottleneck."""

    config: TAAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch frame patch"], valid: Valid = None) -> Float[Array, "batch latent dim"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        rates = frame_rates(cfg)
        x = mask_padding(x, _upsampled(valid, rates[0]))
        x = Conv(cfg.widths[0], 7, padding=3, dtype=dtype, name="conv_in")(x)
        for i, (width, stride, depth) in enumerate(zip(cfg.widths, cfg.strides, cfg.transformer_depths, strict=True)):
            x = EncoderStage(cfg, width, stride, depth, name=f"stage_{i}")(x, _upsampled(valid, rates[i + 1]))
        if cfg.use_snake:
            x = SnakeBeta(name="act")(x)
        x = Conv(cfg.latent_dim, 3, padding=1, dtype=dtype, name="conv_out")(mask_padding(x, valid))
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """Codes [batch, latent frame, latent_dim] to patches [batch, frame, patch]. Stages keep the encoder's numbers."""

    config: TAAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch latent dim"], valid: Valid = None) -> Float[Array, "batch frame patch"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        rates = frame_rates(cfg)
        x = Conv(cfg.widths[-1], 3, padding=1, dtype=dtype, name="conv_in")(mask_padding(x, valid))
        for i in reversed(range(len(cfg.strides))):
            width = cfg.widths[max(i - 1, 0)]
            stage = DecoderStage(cfg, width, cfg.strides[i], cfg.transformer_depths[i], name=f"stage_{i}")
            x = stage(x, _upsampled(valid, rates[i + 1]))
        if cfg.use_snake:
            x = SnakeBeta(name="act")(x)
        x = mask_padding(x, _upsampled(valid, rates[0]))
        features = cfg.patch_size * cfg.audio_channels
        x = Conv(features, 7, padding=3, use_bias=False, dtype=dtype, name="conv_out")(x).astype(jnp.float32)
        return jnp.tanh(x) if cfg.soft_clip else x


def frame_rates(cfg: TAAEConfig) -> list[int]:
    """Frames per latent before the first stage and after each of them, e.g. [2, 2, 1] for strides (1, 2)."""
    return [math.prod(cfg.strides[i:]) for i in range(len(cfg.strides) + 1)]


def _upsampled(valid: Array | None, rate: int) -> Array | None:
    return valid if valid is None or rate == 1 else jnp.repeat(valid, rate, axis=1)

"""The network of ESC (spec ESC sections 3 to 5): a U of transformers or convolutions, quantised on its way up.

Spectra are [batch, bin, frame, 2], features [batch, row, column, channel]: rows are frequency, columns time.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from codec_jax.models.esc_config import Config, ESCConfig
from codec_jax.nn.conv2d import Conv2d, ConvStage
from codec_jax.nn.linear import Linear
from codec_jax.nn.norm import LayerNorm
from codec_jax.nn.swin import NORM_EPSILON, SwinStage, mask_columns
from codec_jax.nn.transformer import Valid
from codec_jax.quantizers.vq import ProductResidualVQ, ProductVQ, Quantised, Streams


class Pass(NamedTuple):
    """One pass through the whole network. losses: (commitment, codebook) of every clip, summed over streams."""

    spectrum: Float[Array, "batch bin frame 2"]
    bottom: Float[Array, "batch row column dim"]
    codes: Int32[Array, "batch stream group code_frame"]
    losses: Float[Array, "loss batch"]


class PatchEmbed(nn.Module):
    """Patches of bins × frames to features; with a norm before transformers."""

    config: ESCConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch bin frame part"]) -> Float[Array, "batch row column dim"]:
        cfg, (batch, bins, frames, parts) = self.config, x.shape
        high, wide = cfg.patch_size
        # Kernel and stride are one: a reshape and a product.
        x = x.reshape(batch, bins // high, high, frames // wide, wide, parts).swapaxes(2, 3)
        axes = ("tap", "tap", "conv_in")
        x = Linear((cfg.h_dims[0],), axes, ("conv_out",), dtype=jnp.dtype(cfg.dtype), name="proj")(x)
        if cfg.backbone == "convolution":
            return x
        return LayerNorm(NORM_EPSILON, use_bias=True, name="norm")(x)


class PatchDeembed(nn.Module):
    """Features back to a spectrum: convolution, patches laid out, convolution."""

    config: ESCConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch row column dim"], valid: Valid = None
    ) -> Float[Array, "batch bin frame 2"]:
        cfg, (batch, rows, columns, dim) = self.config, x.shape
        (high, wide), dtype = cfg.patch_size, jnp.dtype(cfg.dtype)
        x = Conv2d(high * wide * dim, (5, 5), dtype, name="conv_1")(mask_columns(x, valid))
        x = x.reshape(batch, rows, columns, high, wide, dim).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, rows * high, columns * wide, dim)
        frames = None if valid is None else jnp.repeat(valid, wide, axis=1)
        return Conv2d(2, (3, 3), dtype, name="conv_2")(mask_columns(x, frames)).astype(jnp.float32)


def stage(cfg: ESCConfig, scale: int, to: int, name: str | None = None) -> nn.Module:
    """Blocks at one scale, then resampling to the next finer or coarser one; to the same scale none."""
    resample = {0: None, 1: "down", -1: "up"}[to - scale]
    if cfg.backbone == "convolution":
        return ConvStage(cfg.conv_depth, cfg.h_dims[to], resample, cfg.remat, jnp.dtype(cfg.dtype), name=name)
    heads = cfg.num_heads[min(scale, to)]
    return SwinStage(cfg.swin, heads, cfg.depth, cfg.h_dims[to], resample, name=name)


class Encoder(nn.Module):
    """A spectrum to features at every scale, the finest first."""

    config: ESCConfig

    @nn.compact
    def __call__(
        self, spectrum: Float[Array, "batch bin frame part"], valid: Valid = None, train: bool = False
    ) -> list[Array]:
        cfg = self.config
        x = PatchEmbed(cfg, name="patch_embed")(spectrum)
        outputs = [stage(cfg, 0, 0, name="pre")(x, valid, train)]
        for i in range(cfg.scales - 1):
            outputs.append(stage(cfg, i, i + 1, name=f"stage_{i}")(outputs[-1], valid, train))
        return outputs


class Decoder(nn.Module):
    """Features at the coarsest scale back to a spectrum, stage by stage: between them streams are added."""

    config: ESCConfig

    def setup(self):
        cfg, last = self.config, self.config.scales - 1
        self.stages = [stage(cfg, last - i, last - i - 1, name=f"stage_{i}") for i in range(last)]
        self.post = stage(cfg, 0, 0)
        self.patch_deembed = PatchDeembed(cfg)

    def up(self, i: int, x: Float[Array, "batch row column dim"], valid: Valid = None, train: bool = False) -> Array:
        """Stage i, to the next finer scale."""
        return self.stages[i](x.astype(self.config.dtype), valid, train)

    def finish(
        self, x: Float[Array, "batch row column dim"], valid: Valid = None, train: bool = False
    ) -> Float[Array, "batch bin frame 2"]:
        """The finest scale to the spectrum."""
        return self.patch_deembed(self.post(x, valid, train), valid)


class Network(nn.Module):
    """Encoder, quantisers, decoder. valid: columns of patches that exist, per clip."""

    config: Config

    def setup(self):
        cfg, vq = self.config, self.config.bottleneck
        self.encoder, self.decoder = Encoder(cfg.model), Decoder(cfg.model)
        places = [(cfg.model.rows(scale), cfg.model.h_dims[scale]) for scale in map(cfg.scale, range(vq.num_streams))]
        if vq.quantiser == "rvq":
            self.residual = ProductResidualVQ(
                vq.product, *places[0], vq.codebook_dims[0], vq.num_streams, name="quantizer"
            )
        else:
            self.products = [
                ProductVQ(vq.product, *place, dim, name=f"quantizer_{i}")
                for i, (place, dim) in enumerate(zip(places, vq.codebook_dims, strict=True))
            ]

    def __call__(
        self,
        spectrum: Float[Array, "batch bin frame 2"],
        streams: Streams,
        *,
        train: bool = False,
        quantise: bool = True,
    ) -> Pass:
        """Everything. streams: how many are kept, maybe traced; codes are of all. quantise: see ProductVQ."""
        features = self.encoder(spectrum, None, train)
        if self.config.bottleneck.quantiser == "rvq":
            state, codes, total = self.residual(features[-1], streams, train=train, quantise=quantise)
            for i in range(self.config.model.scales - 1):
                state = self.decoder.up(i, state, None, train)
            return Pass(self.decoder.finish(state, None, train), features[-1], codes, total)
        first = self.products[0](features[-1], train=train, quantise=quantise)
        state, codes, total = first
        parts = [codes]
        for i in range(self.config.model.scales - 1):
            kept = jnp.asarray(i + 1 < streams, jnp.float32)
            step = self._residual(i, features, state, train=train, quantise=quantise)
            parts.append(step.codes)
            total = total + kept * step.losses
            state = self.decoder.up(i, state + kept * step.grid, None, train)
        return Pass(self.decoder.finish(state, None, train), features[-1], jnp.concatenate(parts, 1), total)

    def encode(
        self, spectrum: Float[Array, "batch bin frame 2"], streams: int, valid: Valid = None
    ) -> Int32[Array, "batch stream group code_frame"]:
        """Codes of the first streams."""
        features = self.encoder(spectrum, valid)
        if self.config.bottleneck.quantiser == "rvq":
            return self.residual(features[-1], streams).codes[:, :streams]
        state, codes, _ = self.products[0](features[-1])
        parts = [codes]
        for i in range(streams - 1):
            state = self.decoder.up(i - 1, state, valid) if i else state
            step = self._residual(i, features, state)
            parts.append(step.codes)
            state = state + step.grid
        return jnp.concatenate(parts, 1)

    def decode(
        self, codes: Int[Array, "batch stream group code_frame"], valid: Valid = None
    ) -> Float[Array, "batch bin frame 2"]:
        """The spectrum of the first streams' codes, as many as there are."""
        residual = self.config.bottleneck.quantiser == "rvq"
        state = self.residual.dequantise(codes) if residual else self.products[0].dequantise(codes[:, 0])
        for i in range(self.config.model.scales - 1):
            if not residual and i + 1 < codes.shape[1]:
                state = state + self.products[i + 1].dequantise(codes[:, i + 1])
            state = self.decoder.up(i, state, valid)
        return self.decoder.finish(state, valid)

    def _residual(self, i: int, features: list[Array], state: Array, **flags: bool) -> Quantised:
        """What stream i + 1 adds before decoder stage i: the encoder's features there, less what is decoded."""
        target = features[self.config.scale(i + 1)].astype(jnp.float32)
        return self.products[i + 1](target - state, **flags)

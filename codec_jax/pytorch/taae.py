"""TAAE, the codec of Stable Codec (arXiv 2411.19842), for inference in PyTorch (spec TAAE sections 1 to 4)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fsq
from .config import Config, HalfConfig, read_config
from .conv import ResidualUnit, SnakeBeta, WNConv1d, WNConvTranspose1d
from .transformer import TransformerBlock

DILATIONS = (1, 3, 9)


class TAAE(nn.Module):
    """Audio to latents to tokens, and back.

    config: upstream's parsed `model_config.json`. dim_heads: width of an attention head (None: the config's own key
    `dim_heads`, an extension of ours, or upstream's 128). ValueError: a config that contradicts itself.

    `latents`, `decode_latents` and `forward` are differentiable; `encode` and `decode` run without gradients. Memory is
    linear in time. bottleneck: "train" for the FSQ the codec was trained with, the name of one of `fsq.PRESETS`, or
    stages [(levels, scale), ...] of a residual FSQ.
    """

    def __init__(self, config: Mapping[str, Any], dim_heads: int | None = None):
        super().__init__()
        self.config: Config = read_config(config, dim_heads)
        patch = self.config.patch_size * self.config.audio_channels
        self.encoder = Encoder(self.config.encoder, patch)
        self.decoder = Decoder(self.config.decoder, patch)

    @staticmethod
    def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a state_dict knows and its config does not name, as keyword arguments.

        Query norms have the length of the head dim, less in narrower stages.
        """
        lengths = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith("self_attn.q_norm.weight")]
        return {"dim_heads": max(lengths, default=None)}

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop_length

    def latents(self, audio: Tensor) -> Tensor:
        """Audio [batch, channel, time] or, of a mono model, [batch, time] to latents [batch, frame, latent_dim].

        Padded with zeros to whole hops, at least one; neither resampled nor normalised. Latents are before tanh.
        ValueError: another shape.
        """
        channels = self.config.audio_channels
        if audio.ndim == 2 and channels == 1:
            audio = audio[:, None]
        if audio.ndim != 3 or audio.shape[1] != channels:
            raise ValueError(f"audio is [batch, {channels}, time] for this model, not {list(audio.shape)}.")
        missing = -audio.shape[-1] % self.hop_length if audio.shape[-1] else self.hop_length
        return self.encoder(patch(F.pad(audio, (0, missing)), self.config.patch_size)).mT

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents after the bottleneck [batch, frame, latent_dim] to audio [batch, channel, time]."""
        return unpatch(self.decoder(latents.mT), self.config.patch_size)

    def forward(self, audio: Tensor) -> Tensor:
        """The whole codec: audio as `latents` takes it to audio of whole hops; gradients pass the rounding straight."""
        return self.decode_latents(fsq.quantise(self.latents(audio), self.config.levels))

    @torch.no_grad()
    def encode(self, audio: Tensor, bottleneck: Any = "train") -> Tensor:
        """Audio as `latents` takes it to int64 tokens [batch, codebook, frame]."""
        if _is_train(bottleneck):
            return fsq.encode(self.latents(audio), self.config.levels)[:, None]
        stages = self._stages(bottleneck)
        return fsq.encode_residual(self.latents(audio), stages)

    @torch.no_grad()
    def decode(self, tokens: Tensor, bottleneck: Any = "train", length: int | None = None) -> Tensor:
        """Tokens [batch, codebook, frame] to audio [batch, channel, time], cut to `length` samples if given.

        ValueError: tokens that the bottleneck does not have.
        """
        stages = self._stages(bottleneck)
        if tokens.ndim != 3:
            raise ValueError(f"tokens are [batch, codebook, frame], not {list(tokens.shape)}.")
        weight = next(self.parameters())
        codes = fsq.decode_residual(tokens, stages).to(weight.device, weight.dtype)
        return self.decode_latents(codes)[..., :length]

    def _stages(self, bottleneck: Any) -> fsq.Stages:
        if _is_train(bottleneck):
            return ((self.config.levels, 1.0),)
        stages, dim = fsq.parse(bottleneck), len(self.config.levels)
        if len(stages[0][0]) != dim:
            raise ValueError(f"bottleneck {bottleneck} has {len(stages[0][0])} dimensions, but the latents have {dim}.")
        return stages


def _is_train(bottleneck: Any) -> bool:
    return isinstance(bottleneck, str) and bottleneck == "train"


# ---- waveform to patches and back --------------------------------------------------------------


def patch(audio: Tensor, size: int) -> Tensor:
    """[batch, channel, frame * size] to [batch, channel * size, frame]; row c * size + h is sample h of channel c."""
    return audio.unflatten(-1, (-1, size)).mT.flatten(1, 2)


def unpatch(frames: Tensor, size: int) -> Tensor:
    """The exact inverse of `patch`."""
    return frames.unflatten(1, (-1, size)).mT.flatten(-2)


# ---- the two halves, [batch, channel, time] throughout -----------------------------------------


class Transpose(nn.Module):
    """Swaps the last two axes: transformers work on [batch, time, channel]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class EncoderStage(nn.Module):
    """[residual units] → activation → strided conv → transformer."""

    def __init__(self, config: HalfConfig, into: int, out: int, stride: int, depth: int):
        super().__init__()
        resample: nn.Module = nn.Identity()
        if stride > 1:
            resample = WNConv1d(into, out, 2 * stride, stride=stride, padding=-(-stride // 2))
        parts = [_activation(config, into), resample, _transformer(config, out, depth)]
        self.layers = nn.Sequential(*_residual_units(config, into), *parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DecoderStage(nn.Module):
    """Transformer → activation → transposed conv → [residual units]."""

    def __init__(self, config: HalfConfig, into: int, out: int, stride: int, depth: int):
        super().__init__()
        resample = WNConvTranspose1d(into, out, stride) if stride > 1 else nn.Identity()
        parts = [_transformer(config, into, depth), _activation(config, into), resample]
        self.layers = nn.Sequential(*parts, *_residual_units(config, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Encoder(nn.Module):
    """Patches [batch, patch, frame] to latents [batch, latent_dim, latent frame], before the bottleneck."""

    def __init__(self, config: HalfConfig, patch_channels: int):
        super().__init__()
        widths = (config.widths[0], *config.widths)
        self.layers = nn.Sequential(
            WNConv1d(patch_channels, widths[0], 7, padding=3),
            *(EncoderStage(config, *sizes) for sizes in _stages(config)),
            _activation(config, widths[-1]),
            WNConv1d(widths[-1], config.latent_dim, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder(nn.Module):
    """Codes [batch, latent_dim, latent frame] to patches [batch, patch, frame]."""

    def __init__(self, config: HalfConfig, patch_channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            WNConv1d(config.latent_dim, config.widths[-1], 3, padding=1),
            *(DecoderStage(config, into, out, *rest) for out, into, *rest in reversed(_stages(config))),
            _activation(config, config.widths[0]),
            WNConv1d(config.widths[0], patch_channels, 7, padding=3, bias=False),
            nn.Tanh() if config.soft_clip else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _stages(config: HalfConfig) -> list[tuple[int, int, int, int]]:
    """(width before, width, stride, depth) of every stage, in the encoder's order."""
    before = (config.widths[0], *config.widths)
    return list(zip(before, config.widths, config.strides, config.transformer_depths))


def _activation(config: HalfConfig, channels: int) -> nn.Module:
    return SnakeBeta(channels) if config.use_snake else nn.Identity()


def _residual_units(config: HalfConfig, channels: int) -> list[nn.Module]:
    dilations = DILATIONS if config.use_dilated_conv else ()
    return [ResidualUnit(channels, dilation, config.use_snake) for dilation in dilations]


def _transformer(config: HalfConfig, width: int, depth: int) -> nn.Module:
    """Upstream counts the transposes around the blocks, so that block names start at 1."""
    return nn.Sequential(Transpose(), *(TransformerBlock(width, config) for _ in range(depth)), Transpose())

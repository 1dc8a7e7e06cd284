"""Upstream's parsed `model_config.json` as checked dataclasses (spec TAAE sections 0 and 3)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from . import fsq

_IMPLIED = {"in_channels", "out_channels", "checkpointing"}
"""Entries of a half that change nothing here."""


@dataclasses.dataclass(frozen=True)
class HalfConfig:
    """Encoder or decoder, in upstream's spelling; one entry per stage, encoder order.

    sliding_window: frames seen to the left and right at a stage's own rate, -1 unbounded. dim_heads: width of an
    attention head, which upstream fixes at 128; a narrower stage has one head of its own width.
    """

    channels: int
    c_mults: tuple[int, ...]
    strides: tuple[int, ...]
    transformer_depths: tuple[int, ...]
    latent_dim: int
    sliding_window: tuple[int, int] = (63, 64)
    use_snake: bool = False
    use_dilated_conv: bool = False
    conformer: bool = False
    layer_scale: bool = True
    soft_clip: bool = False
    dim_heads: int = 128

    def __post_init__(self) -> None:
        if not self.strides or {len(self.c_mults), len(self.transformer_depths)} != {len(self.strides)}:
            raise ValueError("c_mults, strides and transformer_depths need one entry per stage each.")
        if len(self.sliding_window) != 2 or min(self.sliding_window) < -1:
            raise ValueError("sliding_window is [left, right], each at least 0, or -1 for unbounded.")
        for before, width, stride in zip((self.widths[0], *self.widths), self.widths, self.strides):
            head = min(self.dim_heads, width)
            if head < 1 or width % head or head % 4:
                raise ValueError(f"a stage {width} wide is no multiple of its head dim {head}, itself one of 4.")
            if stride == 1 and before != width:
                raise ValueError(f"a stage of stride 1 cannot change the width from {before} to {width}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        return tuple(m * self.channels for m in self.c_mults)


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole codec. patch_size: samples per frame before the first stage. levels: of the training FSQ."""

    encoder: HalfConfig
    decoder: HalfConfig
    levels: fsq.Levels
    sample_rate: int
    audio_channels: int
    patch_size: int

    def __post_init__(self) -> None:
        if math.prod(self.encoder.strides) != math.prod(self.decoder.strides):
            raise ValueError("the strides of encoder and decoder need the same product.")
        if not len(self.levels) == self.encoder.latent_dim == self.decoder.latent_dim:
            raise ValueError("encoder, decoder and bottleneck need the same number of latent dimensions.")

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.patch_size * math.prod(self.encoder.strides)


def read_config(config: Mapping[str, Any], dim_heads: int | None = None) -> Config:
    """Upstream's dict to ours; `dim_heads` overrides both halves. ValueError: another model, or a missing entry."""
    try:
        model = config["model"]
        if [model[part]["type"] for part in ("encoder", "decoder", "bottleneck")] != ["taae", "taae", "dithered_fsq"]:
            raise ValueError("the config describes another model: a TAAE has taae halves and a dithered_fsq.")
        bottleneck = model["bottleneck"]["config"]
        if bottleneck.get("num_codebooks", 1) != 1:
            raise ValueError("a dithered_fsq with more than one codebook is not supported.")
        levels = bottleneck["levels"]
        return Config(
            encoder=_half(model["encoder"]["config"], dim_heads),
            decoder=_half(model["decoder"]["config"], dim_heads),
            levels=fsq.check_levels(levels if isinstance(levels, list | tuple) else [levels] * bottleneck["dim"]),
            sample_rate=config["sample_rate"],
            audio_channels=config.get("audio_channels", 1),
            patch_size=model["pretransform"]["config"]["patch_size"],
        )
    except KeyError as error:
        raise ValueError(f"the config has no entry {error}, which a TAAE needs.") from error
    except (TypeError, AttributeError) as error:
        raise ValueError("the config does not have the structure of a TAAE's model_config.json.") from error


def _half(entries: Mapping[str, Any], dim_heads: int | None) -> HalfConfig:
    fields = dataclasses.fields(HalfConfig)
    for name in entries.keys() - {field.name for field in fields} - _IMPLIED:
        raise ValueError(f"the config sets {name}, which no TAAE has.")
    known: dict[str, Any] = {}
    for field in fields:
        if field.name in entries:
            value = entries[field.name]
            known[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.default is dataclasses.MISSING:
            raise KeyError(field.name)
    if dim_heads is not None:
        known["dim_heads"] = dim_heads
    return HalfConfig(**known)

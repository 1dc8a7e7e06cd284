"""Upstream's model_config.json for TAAE: read, checked against the tensors, written (spec TAAE sections 0 and 7)."""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from codec_jax.convert.layout import Tensors
from codec_jax.errors import UserError
from codec_jax.models.taae import BottleneckConfig, Config, TAAEConfig

_SIZES = ("channels", "c_mults", "strides", "transformer_depths", "latent_dim")
_SWITCHES = ("sliding_window", "use_snake", "conformer", "layer_scale", "use_dilated_conv")
# dim_heads is the twin's own: upstream fixes it at 128, and refuses a config that names it.
_OTHER = ("in_channels", "out_channels", "checkpointing", "soft_clip", "dim_heads")
_HEAD_DIM = 128


def read(config: Mapping[str, Any], tensors: Tensors) -> Config:
    """Upstream's model config to ours.

    Raises UserError for another kind of model, for halves that differ, and for whatever the tensors contradict.
    """
    cfg = _parse(config, lambda named: _head_dim(tensors, named))
    cfg.validate()
    _check_derived(config, cfg.model)
    _check_tensors(tensors, cfg.model)
    return cfg


def write(cfg: Config, brought: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Ours to upstream's. brought: the config of an import, whose other fields are kept.

    target: "upstream" or "twin". Raises UserError for what the target cannot express.
    """
    model = cfg.model
    if cfg.bottleneck.kind != "fsq" or cfg.bottleneck.num_codebooks != 1:
        kind = f"bottleneck.kind={cfg.bottleneck.kind} with num_codebooks={cfg.bottleneck.num_codebooks}"
        raise UserError(
            f"{kind} has no counterpart in PyTorch: upstream and codec_jax.pytorch know an FSQ of one codebook alone."
        )
    explicit_heads = _needs_dim_heads(model) and not _same_heads(brought)
    if target == "upstream":
        _check_expressible(model, explicit_heads)
    if brought and _parse(brought, lambda _: model.head_dim) == _known_to_upstream(cfg):
        return copy.deepcopy(dict(brought))
    half = {name: _plain(getattr(model, name)) for name in (*_SIZES, *_SWITCHES)}
    if explicit_heads:
        half["dim_heads"] = model.head_dim
    patch = model.patch_size * model.audio_channels
    levels: Any = list(cfg.bottleneck.levels)
    if len(set(levels)) == 1:
        levels = levels[0]
    soft_clip = {"soft_clip": True} if model.soft_clip else {}
    samples = round(5.12 * model.sample_rate / model.hop_length) * model.hop_length  # a training crop of the paper
    ours = {
        "model_type": "autoencoder",
        "sample_size": samples,
        "sample_rate": model.sample_rate,
        "audio_channels": model.audio_channels,
        "model": {
            "encoder": {"type": "taae", "config": {"in_channels": patch, **half}},
            "decoder": {"type": "taae", "config": {"out_channels": patch, **half, **soft_clip}},
            "pretransform": {
                "type": "patched",
                "enable_grad": True,
                "config": {"channels": model.audio_channels, "patch_size": model.patch_size},
            },
            "bottleneck": {
                "type": "dithered_fsq",
                "config": {
                    "dim": model.latent_dim,
                    "levels": levels,
                    "num_codebooks": 1,
                    "dither_inference": False,
                    "noise_dropout": cfg.bottleneck.noise_dropout,
                },
            },
            "latent_dim": model.latent_dim,
            "downsampling_ratio": model.hop_length,
            "io_channels": model.audio_channels,
        },
    }
    return _merged(brought, ours)


# ---- reading -----------------------------------------------------------------------------------


def _parse(config: Mapping[str, Any], head_dim: Callable[[int], int]) -> Config:
    """The config alone. head_dim: gets the config's own idea of the head dim."""
    try:
        model = config["model"]
        _check_types(model)
        encoder, decoder = model["encoder"]["config"], model["decoder"]["config"]
        _check_halves(encoder, decoder)
        return Config(
            TAAEConfig(
                sample_rate=config["sample_rate"],
                audio_channels=config.get("audio_channels", 1),
                patch_size=model["pretransform"]["config"]["patch_size"],
                head_dim=head_dim(encoder.get("dim_heads", _HEAD_DIM)),
                soft_clip=decoder.get("soft_clip", False),
                **{name: _hashable(encoder[name]) for name in (*_SIZES, *_SWITCHES) if name in encoder},
            ),
            _read_bottleneck(model["bottleneck"]["config"]),
        )
    except KeyError as error:
        raise UserError(f"model_config.json has no {error}, which a TAAE needs.") from error
    except (TypeError, AttributeError) as error:
        raise UserError("model_config.json does not have the structure of a model config.") from error


def _check_types(model: Mapping[str, Any]) -> None:
    kinds = (model["encoder"]["type"], model["decoder"]["type"], model["bottleneck"]["type"])
    if kinds != ("taae", "taae", "dithered_fsq"):
        raise UserError("model_config.json describes another model: a TAAE has taae halves and a dithered_fsq.")


def _check_halves(encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> None:
    for half, fields in (("encoder", encoder), ("decoder", decoder)):
        for name in fields.keys() - {*_SIZES, *_SWITCHES, *_OTHER}:
            raise UserError(f"model_config.json sets {name} in the {half}, which no TAAE has.")
    for name in (*_SIZES, *_SWITCHES, "dim_heads"):
        if name in encoder and name in decoder and encoder[name] != decoder[name]:
            raise UserError(f"{name} differs between encoder ({encoder[name]}) and decoder ({decoder[name]}).")


def _read_bottleneck(config: Mapping[str, Any]) -> BottleneckConfig:
    if config.get("num_codebooks", 1) != 1:
        raise UserError("a dithered_fsq with more than one codebook is not supported.")
    levels = config["levels"]
    levels = tuple(levels) if isinstance(levels, list) else (levels,) * config["dim"]
    return BottleneckConfig(levels=levels, noise_dropout=config.get("noise_dropout", 0.05))


def _head_dim(tensors: Tensors, named: int) -> int:
    """Upstream's configs do not name the head dim; query norms have that length, or a narrower stage's width."""
    lengths = {name: tensors[name].shape[0] for name in tensors if name.endswith("self_attn.q_norm.weight")}
    longest = max(lengths.values(), default=named)
    single_heads = all(length == _width(tensors, name) for name, length in lengths.items())
    return named if single_heads and longest < named else longest


def _width(tensors: Tensors, q_norm: str) -> int | None:
    name = q_norm.replace("q_norm", "to_qkv")
    return tensors[name].shape[1] if name in tensors else None


def _check_derived(config: Mapping[str, Any], model: TAAEConfig) -> None:
    """What the config says twice has to agree."""
    theirs = config["model"]
    patch = model.patch_size * model.audio_channels
    said = {
        "model.encoder.config.in_channels": (theirs["encoder"]["config"].get("in_channels"), patch),
        "model.decoder.config.out_channels": (theirs["decoder"]["config"].get("out_channels"), patch),
        "model.downsampling_ratio": (theirs.get("downsampling_ratio"), model.hop_length),
        "model.latent_dim": (theirs.get("latent_dim"), model.latent_dim),
        "model.io_channels": (theirs.get("io_channels"), model.audio_channels),
    }
    for name, (value, implied) in said.items():
        if value is not None and value != implied:
            raise UserError(f"model_config.json says {name} {value}, but its other fields imply {implied}.")


def _check_tensors(tensors: Tensors, model: TAAEConfig) -> None:
    """Raises UserError where the tensors have other sizes or parts than the config, naming both."""
    for half in ("encoder", "decoder"):
        stages = len(model.strides)
        found = sum(1 for name in tensors if re.fullmatch(rf"{half}\.layers\.\d+\.weight_v", name))
        layers = {int(m[1]) for name in tensors if (m := re.match(rf"{half}\.layers\.(\d+)\.", name))}
        if found == 2 and layers and max(layers) - 2 != stages:
            raise UserError(f"model_config.json has {stages} stages, but the {half}'s tensors have {max(layers) - 2}.")
        for name, wanted, got in _measured(tensors, model, half):
            if got is not None and got != wanted:
                raise UserError(
                    f"model_config.json says {name} {_plain(wanted)}, but the {half}'s tensors have {_plain(got)}."
                )


def _measured(tensors: Tensors, model: TAAEConfig, half: str) -> Iterator[tuple[str, Any, Any]]:
    """(field, the config's value, the tensors' or None where they do not show it) of one half."""
    stages = range(len(model.strides))
    prefixes = [f"{half}.layers.{i + 1 if half == 'encoder' else len(model.strides) - i}" for i in stages]

    def has(part: str) -> bool:
        return any(part in name and name.startswith(half) for name in tensors)

    residual = re.compile(rf"{half}\.layers\.\d+\.layers\.\d+\.layers\.\d+\.weight_v")
    yield "use_dilated_conv", model.use_dilated_conv, any(residual.match(name) for name in tensors)
    yield "use_snake", model.use_snake, has(".alpha")
    if any(model.transformer_depths):
        yield "conformer", model.conformer, has(".conformer.")
        yield "layer_scale", model.layer_scale, has("_scale.scale")
    depths = tuple(_depth(tensors, prefix) for prefix in prefixes)
    yield "transformer_depths", model.transformer_depths, depths
    yield "strides", model.strides, tuple(_stride(tensors, prefix, model.use_dilated_conv, half) for prefix in prefixes)
    last = len(model.strides) + 2
    outside, inside = (0, last) if half == "encoder" else (last, 0)
    out_axis = 0 if half == "encoder" else 1
    latent = _shape(tensors, f"{half}.layers.{inside}.weight_v")
    patch = _shape(tensors, f"{half}.layers.{outside}.weight_v")
    yield "latent_dim", model.latent_dim, latent and latent[out_axis]
    yield "patch_size x audio_channels", model.patch_size * model.audio_channels, patch and patch[1 - out_axis]
    yield "channels x c_mults (first)", model.widths[0], patch and patch[out_axis]
    yield "channels x c_mults (last)", model.widths[-1], latent and latent[1 - out_axis]


def _depth(tensors: Tensors, prefix: str) -> int:
    pattern = re.compile(rf"{re.escape(prefix)}\.layers\.\d+\.(\d+)\.")
    return len({m[1] for name in tensors if (m := pattern.match(name)) and ".self_attn." in name})


def _stride(tensors: Tensors, prefix: str, dilated: bool, half: str) -> int:
    index = (4 if dilated else 1) if half == "encoder" else 2
    shape = _shape(tensors, f"{prefix}.layers.{index}.weight_v")
    return shape[2] // 2 if shape else 1


def _shape(tensors: Tensors, name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


# ---- writing -----------------------------------------------------------------------------------


def _needs_dim_heads(model: TAAEConfig) -> bool:
    return any(model.block(width).head_dim != min(_HEAD_DIM, width) for width in model.widths)


def _same_heads(brought: Mapping[str, Any]) -> bool:
    """An import whose config did not name its head dim goes back as it came."""
    return bool(brought) and "dim_heads" not in brought["model"]["encoder"]["config"]


def _known_to_upstream(cfg: Config) -> Config:
    """Without what is ours alone: how to compute, and level sets that only training draws."""
    fresh = TAAEConfig()
    ours = {name: getattr(fresh, name) for name in ("remat", "unroll", "attention_impl", "dtype")}
    bottleneck = BottleneckConfig(levels=cfg.bottleneck.levels, noise_dropout=cfg.bottleneck.noise_dropout)
    return Config(dataclasses.replace(cfg.model, **ours), bottleneck)


def _check_expressible(model: TAAEConfig, explicit_heads: bool) -> None:
    if explicit_heads:
        raise UserError(
            f"model.head_dim is {model.head_dim}, and upstream knows only {_HEAD_DIM} (or the width of a narrower "
            "stage): export with --target twin for codec_jax.pytorch."
        )
    if model.use_snake and len(set(model.widths)) > 1:
        raise UserError(
            "upstream's decoder cannot hold snake activations between stages of different widths (model.c_mults): "
            "export with --target twin for codec_jax.pytorch."
        )


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, whose other fields stay."""
    out: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in over.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

"""Upstream's config.yaml for ESC, parsed: read, checked against the tensors, written (spec ESC section 8)."""

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from codec_jax import experiment
from codec_jax.convert.layout import Tensors
from codec_jax.errors import UserError
from codec_jax.models.esc_config import Config, ESCConfig, VQConfig
from codec_jax.nn.conv2d import KERNEL

_BACKBONES = {"swinT": "transformer", "conv": "convolution"}
# Ours and upstream's name of what is copied as it is.
_MODEL = {"sample_rate": "sr", "in_freq": "in_freq", "h_dims": "h_dims", "patch_size": "patch_size"}
_SWIN = {"num_heads": "swin_heads", "depth": "swin_depth", "window_size": "window_size", "mlp_ratio": "mlp_ratio"}
_CONV = {"conv_depth": "conv_depth"}
_VQ = {"overlap": "overlap", "num_groups": "group_size", "codebook_size": "codebook_size", "l2norm": "l2norm"}
_OTHER = ("backbone", "in_dim", "max_streams", "win_len", "hop_len", "kernel_size", "num_rvqs", "codebook_dim")
_KNOWN = {*_MODEL.values(), *_SWIN.values(), *_CONV.values(), *_VQ.values(), *_OTHER, "codebook_dims"}
_CODEBOOK = re.compile(r"quantizers\.(?:(\d+)\.vqs\.0|vqs\.0\.vqs\.(\d+))\.embedding\.weight")


def read(config: Mapping[str, Any], tensors: Tensors) -> Config:
    """Upstream's config to ours; dimensions of codewords are the tensors', which published configs get wrong.

    Raises UserError for another kind of model, and for whatever else the tensors contradict.
    """
    codebooks = _codebooks(tensors)
    cfg = _parse(config, codebooks)
    if codebooks:
        _check_codebooks(codebooks, cfg.bottleneck)
    typed: Config = experiment.codec_from_dict({"family": "esc", **experiment.to_dict(cfg)})[1]
    return typed


def write(cfg: Config, brought: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Ours to upstream's. brought: the config of an import, whose other fields are kept.

    target: "upstream" or "twin". Raises UserError for what the target cannot express.
    """
    if brought and _same(brought, cfg) and not misspelt(brought):
        return copy.deepcopy(dict(brought))
    model, vq = cfg.model, cfg.bottleneck
    if target == "upstream" and vq.overlap == 1:
        raise UserError(
            "upstream's encode and decode fail at bottleneck.overlap 1: export with --target twin for "
            "codec_jax.pytorch."
        )
    transformer = model.backbone == "transformer"
    fields: dict[str, Any] = {"backbone": model.backbone, "in_dim": 2, "max_streams": model.scales}
    fields |= {
        "win_len": _milliseconds(model.win_length, model),
        "hop_len": _milliseconds(model.stft_hop_length, model),
    }
    names = _MODEL | (_SWIN if transformer else _CONV)
    fields |= {theirs: _plain(getattr(model, ours)) for ours, theirs in names.items()}
    fields |= {theirs: getattr(vq, ours) for ours, theirs in _VQ.items()}
    if not transformer:
        fields["kernel_size"] = list(KERNEL)
    if vq.quantiser == "rvq":
        fields |= {"num_rvqs": vq.num_streams, "codebook_dim": vq.codebook_dims[0]}
    else:
        fields["codebook_dims"] = list(vq.codebook_dims)
    out = copy.deepcopy(dict(brought))
    theirs = {
        name: value for name, value in out.get("model", {}).items() if name not in ("codebook_dim", "codebook_dims")
    }
    name = next(name for name, backbone in _BACKBONES.items() if backbone == model.backbone)
    return {**out, "model_name": f"{vq.quantiser}+{name}", "model": {**theirs, **fields}}


def codebook_dims(config: Mapping[str, Any]) -> list[int]:
    """As the config says them, which need not be so: a list under the wrong name in published ablations."""
    model = config["model"]
    dims = model.get("codebook_dims", model.get("codebook_dim", []))
    return dims if isinstance(dims, list) else [dims]


def misspelt(config: Mapping[str, Any]) -> bool:
    """Whether upstream fails over it: csvq needs a list codebook_dims, rvq a number codebook_dim."""
    model = config["model"]
    if config["model_name"].startswith("csvq"):
        return not isinstance(model.get("codebook_dims"), list)
    return not isinstance(model.get("codebook_dim"), int)


def _parse(config: Mapping[str, Any], codebooks: list[tuple[int, int]]) -> Config:
    """codebooks: (words, dimensions) of every stream's first, where there are any."""
    try:
        quantiser, _, name = config["model_name"].partition("+")
        model = config["model"]
        if quantiser not in ("csvq", "rvq") or name not in _BACKBONES:
            raise UserError(
                f"config.yaml has model_name {config['model_name']}, and an ESC is csvq or rvq + swinT or conv."
            )
        _check_fixed(model, _BACKBONES[name])
        streams = model["max_streams"] if quantiser == "csvq" else model["num_rvqs"]
        dims = tuple(dim for _, dim in codebooks) or tuple(codebook_dims(config))
        extra: dict[str, Any] = {} if name == "swinT" else {"num_heads": ()}
        own = _MODEL | (_SWIN if name == "swinT" else {k: v for k, v in _CONV.items() if v in model})
        return Config(
            ESCConfig(
                **extra,
                win_length=int(model["win_len"] * model["sr"] * 1e-3),
                stft_hop_length=int(model["hop_len"] * model["sr"] * 1e-3),
                backbone=_BACKBONES[name],
                **{ours: _hashable(model[theirs]) for ours, theirs in own.items()},
            ),
            VQConfig(
                quantiser=quantiser,
                num_streams=streams,
                codebook_dims=dims if quantiser == "csvq" else dims[:1],
                **{ours: model[theirs] for ours, theirs in _VQ.items()},
            ),
        )
    except KeyError as error:
        raise UserError(f"config.yaml has no {error}, which an ESC needs.") from error
    except (TypeError, AttributeError) as error:
        raise UserError("config.yaml does not have the structure of an ESC's config.") from error


def _check_fixed(model: Mapping[str, Any], backbone: str) -> None:
    """Raises UserError for fields that no ESC has, and for values that cannot be anything else here."""
    for name in model.keys() - _KNOWN:
        raise UserError(f"config.yaml sets {name} in model, which no ESC has.")
    fixed = {"backbone": backbone, "in_dim": 2, "max_streams": len(model["h_dims"]), "kernel_size": list(KERNEL)}
    for name, value in fixed.items():
        if model.get(name, value) != value:
            raise UserError(f"config.yaml says {name} {model[name]}, and this model needs {value}.")


def _codebooks(tensors: Tensors) -> list[tuple[int, int]]:
    """(words, dimensions) of every stream's first codebook. Raises UserError where one is missing in between."""
    found, pattern = {}, ""
    for name in tensors:
        if match := _CODEBOOK.fullmatch(name):
            if len(tensors[name].shape) != 2:
                raise UserError(f"{name} has shape {tuple(tensors[name].shape)}, and a codebook is a matrix.")
            words, dim = tensors[name].shape
            stream = match[1] or match[2]
            found[int(stream)] = int(words), int(dim)
            pattern = "quantizers.{}.vqs.0.embedding.weight" if match[1] else "quantizers.vqs.0.vqs.{}.embedding.weight"
    for stream in range(len(found)):
        if stream not in found:
            raise UserError(f"the checkpoint has no tensor {pattern.format(stream)}, but one of stream {max(found)}.")
    return [found[stream] for stream in sorted(found)]


def _check_codebooks(codebooks: list[tuple[int, int]], vq: VQConfig) -> None:
    """Raises UserError where the tensors have other streams or codebooks than the config, naming both."""
    if len(codebooks) != vq.num_streams:
        raise UserError(f"config.yaml implies {vq.num_streams} streams, but the tensors have {len(codebooks)}.")
    sizes = sorted({size for size, _ in codebooks})
    if sizes != [vq.codebook_size]:
        raise UserError(f"config.yaml says codebook_size {vq.codebook_size}, but the tensors have {sizes}.")


def _same(brought: Mapping[str, Any], cfg: Config) -> bool:
    """Whether an import's config says all that upstream can be told of ours."""
    fresh, vq = ESCConfig(), VQConfig()
    model = dataclasses.replace(cfg.model, remat=fresh.remat, dtype=fresh.dtype)
    return _parse(brought, []) == Config(model, dataclasses.replace(cfg.bottleneck, stream_dropout=vq.stream_dropout))


def _milliseconds(samples: int, model: ESCConfig) -> float | int:
    length = samples * 1000 / model.sample_rate
    if int(length * model.sample_rate * 1e-3) != samples:
        raise UserError(f"upstream counts in milliseconds and cannot say {samples} samples at {model.sample_rate} Hz.")
    return int(length) if length == int(length) else length


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

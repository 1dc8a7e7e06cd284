"""What people have of upstream's: a directory with config and weights, a training checkpoint, a bare weights file."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from codec_jax import storage
from codec_jax.convert import FAMILIES, configs, pickles
from codec_jax.errors import UserError

_SAFETENSORS, _PICKLES = (".safetensors",), (".ckpt", ".pth", ".pt", ".bin")
_STATE_DICTS = ("state_dict", "model_state_dict")


class Source(NamedTuple):
    """A checkpoint of upstream's, opened: nothing large is read yet.

    family: in `convert.FAMILIES`. config: parsed. tensors: by upstream's names. metadata: of a safetensors file.
    weights: "ema" or "raw" of a training checkpoint, None where there is only one kind.
    """

    family: str
    config: dict[str, Any]
    tensors: Mapping[str, np.ndarray]
    metadata: dict[str, str]
    weights: str | None


def open_source(source: epath.PathLike, weights: str = "ema", model_config: epath.PathLike | None = None) -> Source:
    """A directory or file to config and tensors. weights: "ema" (where present) or "raw" of a training checkpoint.

    Raises UserError, one sentence, where something is missing or cannot be read.
    """
    source = epath.Path(source)
    if not source.exists():
        raise UserError(f"there is no {source}.")
    directory = source if source.is_dir() else source.parent
    family, config_path = _find_config(source, directory, model_config)
    weights_path = find_weights(source) if source.is_dir() else source
    tensors, metadata = read_weights(weights_path)
    config = configs.read(config_path)
    for prefix, kind in FAMILIES[family].PREFIXES:
        chosen = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        if chosen and (kind == "raw" or weights == "ema"):
            return Source(family, config, chosen, {}, kind)
    return Source(family, config, tensors, metadata, None)


def is_upstream(path: epath.Path) -> bool:
    """True for a weights file, and for a directory with the config of a family as upstream names it."""
    if path.is_dir():
        return any((path / module.CONFIG_FILE).exists() for module in FAMILIES.values())
    return path.suffix in _SAFETENSORS + _PICKLES


def _find_config(source: epath.Path, directory: epath.Path, given: epath.PathLike | None) -> tuple[str, epath.Path]:
    if given is not None:
        path = epath.Path(given)
        if not path.is_file():
            raise UserError(f"there is no model config {path}.")
        return _family_of(path), path
    for family, module in FAMILIES.items():
        if (directory / module.CONFIG_FILE).exists():
            return family, directory / module.CONFIG_FILE
    names = " or ".join(module.CONFIG_FILE for module in FAMILIES.values())
    if source.is_dir():
        raise UserError(f"{source} is no upstream checkpoint of {' or '.join(FAMILIES)}: it has no {names}.")
    raise UserError(f"there is no {names} beside {source}: give one with --model-config.")


def _family_of(config: epath.Path) -> str:
    """The family whose configs are files of this kind."""
    for kind in (configs.JSON, configs.YAML):
        for family, module in FAMILIES.items():
            if config.suffix in kind and epath.Path(module.CONFIG_FILE).suffix in kind:
                return family
    known = " or ".join(f"{module.CONFIG_FILE} of a {family}" for family, module in FAMILIES.items())
    raise UserError(f"{config} is no model config: give a {known}.")


def find_weights(directory: epath.Path) -> epath.Path:
    """model.* before others, safetensors before pickles; an only child of any name."""
    found = [path for path in sorted(directory.iterdir()) if path.suffix in _SAFETENSORS + _PICKLES]
    named = [path for path in found if path.stem == "model"]
    for suffix in (*_SAFETENSORS, *_PICKLES):
        for path in named:
            if path.suffix == suffix:
                return path
    if len(found) == 1:
        return found[0]
    what = "several weights files, none named model.*: give one of them" if found else "no model.safetensors"
    raise UserError(f"{directory} has {what}.")


def read_weights(path: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name, and the metadata of a safetensors file. Raises UserError for any other kind of file."""
    if path.suffix in _SAFETENSORS:
        return storage.read_tensors(path)
    if path.suffix in _PICKLES:
        return _state_dict(pickles.read(path), path), {}
    raise UserError(f"{path} is no weights file: known are {', '.join(_SAFETENSORS + _PICKLES)}.")


def _state_dict(content: Any, path: epath.Path) -> dict[str, np.ndarray]:
    """The dict of tensors in a pickle, which may be the whole of it or an entry."""
    for name in _STATE_DICTS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} holds no state_dict.")
    tensors = {name: array for name, array in content.items() if isinstance(array, np.ndarray)}
    if not tensors:
        raise UserError(f"{path} holds no tensors.")
    return tensors

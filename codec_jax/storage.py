"""A saved codec on disk: config.json, model.safetensors and, after an import, upstream_extras.safetensors."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from codec_jax.errors import UserError

CONFIG, WEIGHTS, EXTRAS = "config.json", "model.safetensors", "upstream_extras.safetensors"
_FORMAT = 1


def write(directory: epath.PathLike, config: dict[str, Any], params: Any, extras: Mapping[str, np.ndarray]) -> None:
    """Writes the directory; every file gets its name only once it is complete, the config last."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(array) for name, array in flatten(params).items()}
    _write(directory / WEIGHTS, lambda path: _write_tensors(path, tensors))
    if extras:
        contiguous = {name: np.ascontiguousarray(array) for name, array in extras.items()}
        _write(directory / EXTRAS, lambda path: _write_tensors(path, contiguous))
    text = json.dumps({"format": _FORMAT, **config}, indent=2) + "\n"
    _write(directory / CONFIG, lambda path: path.write_text(text))


def read(directory: epath.PathLike) -> tuple[dict[str, Any], Any, dict[str, np.ndarray]]:
    """Config, params and extras. Raises UserError naming what is missing or broken."""
    directory = epath.Path(directory)
    config = read_json(directory / CONFIG)
    if config.pop("format", _FORMAT) > _FORMAT:
        raise UserError(f"{directory} was written by a newer codec_jax: upgrade to read it.")
    if not (directory / WEIGHTS).exists():
        raise UserError(f"{directory} has a {CONFIG} but no {WEIGHTS}: copy the weights there or give another model.")
    extras = read_tensors(directory / EXTRAS) if (directory / EXTRAS).exists() else {}
    return config, unflatten(read_tensors(directory / WEIGHTS)), extras


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError."""
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"there is no {path}.")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    return value


def read_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file. Raises UserError where it is damaged."""
    path = epath.Path(path)
    try:
        if is_remote(path):
            return safetensors.numpy.load(path.read_bytes())
        return safetensors.numpy.load_file(path)
    except Exception as error:  # safetensors raises its own, undocumented kinds
        raise UserError(f"{path} cannot be read as safetensors: {error}.") from error


def flatten(tree: Any, prefix: str = "", leaf: Callable[[Any], Any] = np.asarray) -> dict[str, Any]:
    """{"a": {"b": x}} to {"a.b": leaf(x)}."""
    if not isinstance(tree, Mapping):
        return {prefix: leaf(tree)}
    return {
        name: array
        for key, value in tree.items()
        for name, array in flatten(value, f"{prefix}.{key}" if prefix else key, leaf).items()
    }


def unflatten(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *parents, leaf = name.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = array
    return tree


def _write(path: epath.Path, write_to: Callable[[epath.Path], object]) -> None:
    """Under a temporary name first, so that no reader ever meets half a file."""
    partial = path.with_name(path.name + ".partial")
    write_to(partial)
    partial.replace(path)


def _write_tensors(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    if is_remote(path):
        path.write_bytes(safetensors.numpy.save(dict(tensors)))
    else:
        safetensors.numpy.save_file(dict(tensors), path)


def is_remote(path: epath.Path) -> bool:
    """True on an object store."""
    return path.as_posix().startswith(("gs://", "s3://"))

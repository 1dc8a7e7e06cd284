"""A saved codec on disk: config.json, model.safetensors and, after an import, upstream_extras.safetensors."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from codec_jax.errors import UserError

CONFIG, WEIGHTS, EXTRAS = "config.json", "model.safetensors", "upstream_extras.safetensors"
STATISTICS = "batch_stats"
_FORMAT = 1


class Extras(NamedTuple):
    """What an import brought that has no place in the parameters, kept for the way back.

    tensors: upstream's buffers, verbatim. upstream: JSON, its parsed config and the metadata of its weights file.
    """

    tensors: Mapping[str, np.ndarray] = {}
    upstream: Mapping[str, Any] = {}


# ---- a saved codec -----------------------------------------------------------------------------


def write(directory: epath.PathLike, config: Mapping[str, Any], variables: Mapping[str, Any], extras: Extras) -> None:
    """Writes the directory, one tensor in memory at a time; every file gets its name once complete, the config last.

    variables: "params", and "batch_stats" where the model keeps running statistics: trees of arrays, or of anything
    with a shape and a dtype that np.asarray turns into one.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / WEIGHTS, flatten(merged(variables)))
    if any(extras):
        metadata = {"upstream": json.dumps(extras.upstream)} if extras.upstream else {}
        write_tensors(directory / EXTRAS, extras.tensors, metadata)
    else:
        (directory / EXTRAS).unlink(missing_ok=True)
    write_json(directory / CONFIG, {"format": _FORMAT, **config})


def read(directory: epath.PathLike) -> tuple[dict[str, Any], dict[str, Any], Extras]:
    """Config, variables (mapped, not yet read) and extras. Raises UserError naming what is missing or broken."""
    directory = epath.Path(directory)
    config = read_json(directory / CONFIG)
    if config.pop("format", _FORMAT) > _FORMAT:
        raise UserError(f"{directory} was written by a newer codec_jax: upgrade to read it.")
    if not (directory / WEIGHTS).exists():
        raise UserError(f"{directory} has a {CONFIG} but no {WEIGHTS}: copy the weights there or give another model.")
    params = unflatten(read_tensors(directory / WEIGHTS)[0])
    statistics = params.pop(STATISTICS, None)
    extras = Extras()
    if (directory / EXTRAS).exists():
        tensors, metadata = read_tensors(directory / EXTRAS)
        extras = Extras(tensors, json.loads(metadata.get("upstream", "{}")))
    return config, {"params": params} | ({STATISTICS: statistics} if statistics else {}), extras


def merged(variables: Mapping[str, Any]) -> dict[str, Any]:
    """One tree of all variables: parameters at the top, statistics under their own name, as on disk."""
    return {**variables["params"], **({STATISTICS: variables[STATISTICS]} if variables.get(STATISTICS) else {})}


# ---- JSON --------------------------------------------------------------------------------------


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


def write_json(path: epath.PathLike, value: Mapping[str, Any]) -> None:
    """A JSON object, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: epath.PathLike, text: str) -> None:
    """A text file, whole or not at all."""
    _write(epath.Path(path), lambda partial: partial.write_text(text))


# ---- safetensors: mapped when read, streamed when written, neither of which the library does for NumPy ----

# In the library's order: it writes wide types first, then by name, and so the bytes here are the bytes it would write.
_DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_tensors(path: epath.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of a safetensors file, mapped into memory and read-only, and the file's metadata.

    Raises UserError where the file is damaged.
    """
    path = epath.Path(path)
    try:
        if is_remote(path):
            data = np.frombuffer(path.read_bytes(), np.uint8)
        else:
            with safetensors.safe_open(path, "numpy"):  # the library's own checks of the header
                data = np.memmap(path, np.uint8, "r")
        length = int(data[:8].view("<u8")[0])
        header = json.loads(data[8 : 8 + length].tobytes())
        metadata = header.pop("__metadata__", {})
        body = data[8 + length :].view(np.ndarray)
        return {name: _view(body, entry) for name, entry in header.items()}, metadata
    except Exception as error:  # safetensors raises its own, undocumented kinds
        raise UserError(f"{path} cannot be read as safetensors: {error}.") from error


def _view(body: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    return body[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def write_tensors(path: epath.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, one tensor computed at a time, byte for byte what the library writes of the same tensors."""
    rank = {dtype: i for i, dtype in enumerate(_DTYPES.values())}
    order = sorted(tensors, key=lambda name: (-rank[np.dtype(tensors[name].dtype)], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        dtype, shape = np.dtype(tensors[name].dtype), tuple(tensors[name].shape)
        end = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def write_to(partial: epath.Path) -> None:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.write(np.ascontiguousarray(np.asarray(tensors[name])).reshape(-1).view(np.uint8).data)

    _write(epath.Path(path), write_to)


# ---- trees and files ---------------------------------------------------------------------------


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} to {"a.b": x}."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else key).items()
    }


def unflatten(tensors: Mapping[str, Any]) -> dict[str, Any]:
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
    try:
        write_to(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_remote(path: epath.Path) -> bool:
    """True on an object store."""
    return path.as_posix().startswith(("gs://", "s3://"))

"""Upstream's model directories into a TAAE or an ESC; the safetensors format is read by hand."""

import json
import math
import os
import pathlib
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .esc import ESC
from .taae import TAAE

SAFETENSORS = "model.safetensors"
CHECKPOINTS = ("model.ckpt", "model.pth")
_STATE_DICTS = ("state_dict", "model_state_dict")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_DTYPES |= {"I32": torch.int32, "I64": torch.int64}


def load(directory: str | os.PathLike[str]) -> TAAE | ESC:
    """Opens upstream's config with `model.safetensors`, `model.ckpt` or `model.pth`: a float32 codec in eval mode.

    `model_config.json` makes it a TAAE, `config.yaml` (read with PyYAML) an ESC. Float32 weights of a safetensors file
    are mapped, not read: they share memory with other processes until written to.

    FileNotFoundError: one of the files is missing. ValueError: it is broken, or weights and config do not fit.
    """
    directory = pathlib.Path(directory)
    family, config = _read_config(directory)
    tensors = _read_weights(directory)
    with torch.device("meta"):  # shapes alone: no memory, no initialisation
        model = family(config, **family.sizes(tensors))
    tensors = _fitted(model.state_dict(), tensors)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, floats as float32. ValueError: no such format, or a dtype of no weights.

    The file is 8 bytes of little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and data.
    """
    path = pathlib.Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{path} is no safetensors file, or was cut short.")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ValueError(f"{path} is no safetensors file: its header is no JSON.") from None
    header.pop("__metadata__", None)
    file_bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return {name: _tensor(file_bytes[8 + length :], entry, f"{name} of {path}") for name, entry in header.items()}


def _tensor(data: Tensor, entry: Mapping[str, Any], who: str) -> Tensor:
    """A view of one tensor's bytes in the data behind the header, converted where it is not float32."""
    dtype, shape, (begin, end) = _DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"{who} is {entry['dtype']}, but weights are one of {', '.join(_DTYPES)}.")
    if not 0 <= begin <= end <= len(data) or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{who} lies outside its file, or has another size than its shape says.")
    found = data[begin:end]
    if found.storage_offset() % dtype.itemsize:
        found = found.clone()  # bytes must be aligned to be viewed as another dtype
    return _float(found.view(dtype).view(shape))


def _float(tensor: Tensor) -> Tensor:
    """Floats as float32; integers, of buffers, as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _read_config(directory: pathlib.Path) -> tuple[type[TAAE] | type[ESC], Any]:
    """The family and its parsed config."""
    known = ((TAAE, "model_config.json", "JSON", json.loads), (ESC, "config.yaml", "YAML", _yaml))
    for family, name, kind, parse in known:
        path = directory / name
        if path.is_file():
            try:
                config = parse(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is no {kind}: {error}") from None
            if not isinstance(config, dict):
                raise ValueError(f"{path} holds no config: it is {kind}, but no mapping.")
            return family, config
    raise FileNotFoundError(f"{directory} has no model_config.json or config.yaml.")


def _yaml(text: str) -> Any:
    import yaml  # needed here alone: the models themselves take a parsed config

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _read_weights(directory: pathlib.Path) -> dict[str, Tensor]:
    if (directory / SAFETENSORS).is_file():
        return read_safetensors(directory / SAFETENSORS)
    path = next((directory / name for name in CHECKPOINTS if (directory / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{directory} has neither {SAFETENSORS} nor {' nor '.join(CHECKPOINTS)}.")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint of plain tensors.") from error
    for name in _STATE_DICTS:
        if isinstance(checkpoint, dict) and name in checkpoint:
            return {key: _float(tensor) for key, tensor in checkpoint[name].items()}
    raise ValueError(f"{path} holds no {' or '.join(_STATE_DICTS)}.")


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _scalar(*_: Any) -> None:
    """Stands for a NumPy scalar."""


# ESC's training checkpoints hold a score beside the weights, as a NumPy scalar. It is read as nothing, without NumPy.
_NUMPY_SCALARS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_Dtype, "numpy.dtype"),
]


def _fitted(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found`, integers of the wanted kind. ValueError naming the first tensor that is not what the config implies."""
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"the weights have no tensor {name}, which the config implies.")
        if name not in wanted:
            raise ValueError(f"the weights have a tensor {name}, which the config does not imply.")
        if wanted[name].shape != found[name].shape:
            shapes = f"{list(found[name].shape)}, but the config implies {list(wanted[name].shape)}"
            raise ValueError(f"{name} has the shape {shapes}.")
        if wanted[name].is_floating_point() != found[name].is_floating_point():
            raise ValueError(f"{name} is {found[name].dtype}, but the config implies {wanted[name].dtype}.")
    return {name: tensor.to(wanted[name].dtype) for name, tensor in found.items()}

"""Upstream's model directories into a TAAE; the safetensors format is read by hand."""

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

from .taae import TAAE

CONFIG = "model_config.json"
SAFETENSORS = "model.safetensors"
CHECKPOINT = "model.ckpt"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def load(directory: str | os.PathLike[str]) -> TAAE:
    """Opens upstream's `model_config.json` with `model.safetensors` or `model.ckpt`: a float32 TAAE in eval mode.

    Float32 weights of a safetensors file are mapped, not read: they share memory with other processes until written to.

    FileNotFoundError: one of the files is missing. ValueError: it is broken, or weights and config do not fit.
    """
    directory = pathlib.Path(directory)
    config = _read_config(directory / CONFIG)
    tensors = _read_weights(directory)
    with torch.device("meta"):  # shapes alone: no memory, no initialisation
        model = TAAE(config, dim_heads=_head_dim(tensors))
    _check_fit(model.state_dict(), tensors)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, as float32. ValueError: no such format, or another dtype than a float.

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
    return found.view(dtype).view(shape).float()


def _read_config(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is no JSON.") from None


def _read_weights(directory: pathlib.Path) -> dict[str, Tensor]:
    if (directory / SAFETENSORS).is_file():
        return read_safetensors(directory / SAFETENSORS)
    path = directory / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has neither {SAFETENSORS} nor {CHECKPOINT}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint of plain tensors.") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} holds no state_dict.")
    return {name: tensor.float() for name, tensor in checkpoint["state_dict"].items()}


def _head_dim(tensors: Mapping[str, Tensor]) -> int | None:
    """Upstream's configs do not name the head dim: its query norms have that length, less in narrower stages."""
    lengths = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith("self_attn.q_norm.weight")]
    return max(lengths, default=None)


def _check_fit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"the weights have no tensor {name}, which the config implies.")
        if name not in wanted:
            raise ValueError(f"the weights have a tensor {name}, which the config does not imply.")
        if wanted[name].shape != found[name].shape:
            shapes = f"{list(found[name].shape)}, but the config implies {list(wanted[name].shape)}"
            raise ValueError(f"{name} has the shape {shapes}.")

"""PyTorch's files, read without PyTorch and without running what is in them.

A file of torch.save is a zip of one pickle and the raw bytes of every storage. The unpickler here admits tensors, NumPy
scalars and plain containers; any other name in the pickle is an error, and nothing of it is imported or called.
"""

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from codec_jax.errors import UserError

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(bool),
}


def read(path: os.PathLike | str) -> Any:
    """The object in a file of torch.save, its tensors as read-only arrays that are mapped, not yet read.

    Raises UserError for a file that is damaged, older than PyTorch 1.6, or asks for anything but tensors and numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if member is None:
                raise UserError(f"{path} is a zip file, but not one of torch.save.")
            root = member.removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise UserError(f"{path} was written on a big-endian machine: load and save it again on another.")
            return _Unpickler(io.BytesIO(archive.read(member)), _Storages(path, archive, f"{root}data/")).load()
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} cannot be read: it is damaged, or was saved by a PyTorch older than 1.6 (save it again)."
        ) from error
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a hostile or damaged pickle may raise anything
        raise UserError(f"{path} cannot be read as a file of torch.save: {error}.") from error


class _Storages:
    """The storages of an archive as flat arrays: mapped where the zip holds them as they are, as torch.save writes."""

    def __init__(self, path: os.PathLike | str, archive: zipfile.ZipFile, prefix: str):
        self._archive, self._prefix = archive, prefix
        self._bytes = np.memmap(path, np.uint8, "r").view(np.ndarray)

    def __call__(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        info = self._archive.getinfo(f"{self._prefix}{key}")
        if info.compress_type == zipfile.ZIP_STORED:
            # The central directory's entry and the local header may differ in their extra field, where padding lives.
            name, extra = self._bytes[info.header_offset + 26 :][:4].view("<u2")
            begin = info.header_offset + 30 + int(name) + int(extra)
            data = self._bytes[begin : begin + info.file_size]
        else:
            data = np.frombuffer(self._archive.read(info), np.uint8)
        if len(data) < count * dtype.itemsize:
            raise UserError(f"storage {key} is cut short.")
        return data[: count * dtype.itemsize].view(dtype)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storages: Callable[[str, np.dtype, int], np.ndarray]):
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        raise UserError(
            f"it asks for {module}.{name}, and a weights file holds tensors and numbers only. Nothing of it was run; "
            "if you trust it, save its state_dict alone with PyTorch."
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise UserError("it refers to something that is no storage.")
        return self._storages(str(key), storage_type.dtype, int(count))


class _StorageType(NamedTuple):
    """Stands for a class such as torch.FloatStorage."""

    dtype: np.dtype


def _tensor(storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2, inside the bounds of its storage."""
    size, stride = tuple(size), tuple(stride)
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise UserError("it holds a tensor of impossible shape.")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 not in size and last >= storage.size:
        raise UserError("it holds a tensor that reaches beyond its storage.")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
    return tensor


class _Dtype:
    """A NumPy dtype being unpickled: numbers only."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise UserError(f"it holds a NumPy scalar of type {code}, which is no number.")

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype, 1)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise UserError(f"it asks for the encoding {encoding}.")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}

"""How one tensor of upstream's becomes one parameter of ours and back: rows that a family's table is made of.

Never imports torch: tensors are NumPy arrays, or lazily computed ones, under upstream's names.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from codec_jax.errors import UserError

Tensors = Mapping[str, Any]
"""Upstream's names to arrays, or to anything with a shape and a dtype that np.asarray turns into one."""


@dataclasses.dataclass(frozen=True)
class Lazy:
    """An array to come: np.asarray computes it, anew every time, so that a large model converts tensor by tensor.

    layers: of a stacked one, each to be had alone.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    compute: Callable[[], np.ndarray]
    layers: tuple["Lazy", ...] = ()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.compute(), dtype)

    def __getitem__(self, layer: int) -> "Lazy":
        return self.layers[layer]


class Leaf(NamedTuple):
    """One parameter. path: in our tree. names: upstream's, one per layer where stacked. shape: upstream's, of each.

    Ours is upstream's transposed by `axes` (empty: as it is) and reshaped to `ours` (empty: as transposed).
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    ours: tuple[int, ...] = ()
    stacked: bool = False

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        """One layer of upstream's in our layout."""
        array = array.transpose(self.axes) if self.axes else array
        return array.reshape(self.ours) if self.ours else array

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """One layer of ours in upstream's layout: the inverse of `to_jax`."""
        if not self.axes:
            return array.reshape(self.shape)
        transposed = array.reshape([self.shape[axis] for axis in self.axes])
        return transposed.transpose(np.argsort(self.axes))

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Of one layer of ours."""
        return self.ours or tuple(self.shape[axis] for axis in self.axes) or self.shape


def params_from_torch(leaves: Iterable[Leaf], tensors: Tensors) -> dict[str, Any]:
    """The parameter tree, lazily: every tensor is checked now and read when its parameter is.

    Raises UserError naming a tensor that is missing, has another shape than the config implies, or holds no floats.
    """
    params: dict[str, Any] = {}
    for leaf in leaves:
        for name in leaf.names:
            _check(tensors, name, leaf.shape)
        _insert(params, leaf.path, _stacked(leaf, tensors) if leaf.stacked else _one(leaf, tensors[leaf.names[0]]))
    return params


def tensors_from_params(leaves: Iterable[Leaf], params: Mapping[str, Any]) -> dict[str, Lazy]:
    """Upstream's state_dict without its buffers, lazily: the inverse of `params_from_torch`."""
    tensors = {}
    for leaf in leaves:
        stacked = _find(params, leaf.path)
        for layer, name in enumerate(leaf.names):
            tensors[name] = Lazy(leaf.shape, np.dtype(np.float32), _writer(leaf, stacked, layer))
    return tensors


def materialise(tree: Any) -> Any:
    """A tree of lazy arrays as NumPy arrays."""
    if isinstance(tree, Mapping):
        return {key: materialise(value) for key, value in tree.items()}
    return np.asarray(tree)


def _one(leaf: Leaf, tensor: Any) -> Lazy:
    """One layer of a parameter."""
    return Lazy(
        leaf.layer_shape, np.dtype(np.float32), lambda: leaf.to_jax(np.asarray(tensor)).astype(np.float32, copy=False)
    )


def _stacked(leaf: Leaf, tensors: Tensors) -> Lazy:
    layers = tuple(_one(leaf, tensors[name]) for name in leaf.names)

    def compute() -> np.ndarray:
        out = np.empty((len(layers), *leaf.layer_shape), np.float32)
        for target, layer in zip(out, layers):
            target[...] = layer.compute()
        return out

    return Lazy((len(layers), *leaf.layer_shape), np.dtype(np.float32), compute, layers)


def _writer(leaf: Leaf, params: Any, layer: int) -> Callable[[], np.ndarray]:
    return lambda: leaf.to_torch(np.asarray(params[layer] if leaf.stacked else params))


def _check(tensors: Tensors, name: str, shape: tuple[int, ...]) -> None:
    if name not in tensors:
        raise UserError(f"the checkpoint has no tensor {name}, which its config implies.")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
        raise UserError(f"{name} has shape {tuple(tensor.shape)} in the checkpoint, but its config implies {shape}.")
    if tensor.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
        raise UserError(f"{name} holds {tensor.dtype.name}, and weights are floating-point numbers.")


def _insert(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _find(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def names(leaves: Iterable[Leaf]) -> Iterator[str]:
    """Every upstream name in the table."""
    for leaf in leaves:
        yield from leaf.names

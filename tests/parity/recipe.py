"""Weights from a recipe instead of a file (spec TAAE section 11): every tensor is a pure function of its name."""

import hashlib

import numpy as np

from codec_jax.convert.layout import Lazy
from codec_jax.ops.rope import inverse_frequencies


class RecipeTensors(dict):
    """Upstream names to lazy arrays, each computed when it is read and forgotten again."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], salt: str):
        super().__init__(shapes)
        self._salt = salt

    def __getitem__(self, name: str) -> Lazy:
        shape = super().__getitem__(name)
        return Lazy(shape, np.dtype(np.float32), lambda: recipe_tensor(name, shape, self._salt))


def recipe_tensor(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """value = a · u + c in float32, u uniform in [-1, 1) from a PCG64 seeded by the name."""
    if name.endswith("inv_freq"):
        return inverse_frequencies(4 * shape[0])
    a, c = _range(name, shape)
    seed = int.from_bytes(hashlib.sha256(f"{salt}/{name}".encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    uniform = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return (np.float32(a) * uniform + np.float32(c)).reshape(shape)


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    last = name.rsplit(".", 1)[-1]
    if last == "beta":
        return 0.0, 0.0
    if last in ("weight_g", "gamma") or name.endswith(("q_norm.weight", "k_norm.weight")):
        return 0.1, 1.0
    if last == "weight_v":
        return float(np.sqrt(3 / np.prod(shape[1:]))), 0.0
    if last == "scale":
        return 0.05, 0.15
    if last == "bias":
        return 0.05, 0.0
    return float(np.sqrt(3 / shape[1])), 0.0

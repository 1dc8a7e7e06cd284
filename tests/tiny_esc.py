"""The smallest ESC codecs with every part of a real one, and what upstream would publish of them. Nothing is compiled."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch

from codec_jax.convert import configs, esc_config
from codec_jax.convert import esc as convert
from codec_jax.convert.layout import Leaf
from tests.models.test_esc import ABLATIONS, CONFIG, noise

__all__ = ["ABLATIONS", "CONFIG", "noise", "upstream", "variables", "write_upstream"]


@functools.cache
def _checkpoint(name: str):
    cfg, rng = ABLATIONS[name], np.random.default_rng(0)
    leaves = [*convert.leaves(cfg), *convert.statistics(cfg)]
    tensors = {theirs: _random(leaf, theirs, rng) for leaf in leaves for theirs in leaf.names}
    return esc_config.write(cfg, {}, "upstream"), tensors | dict(convert.buffers(cfg))


def _random(leaf: Leaf, name: str, rng: np.random.Generator) -> np.ndarray:
    """Scales that keep activations near one; norms and biases that are not what they start as."""
    draw = rng.standard_normal(leaf.shape).astype(np.float32)
    if "embedding" in name:
        return draw * np.float32(math.sqrt(2 / leaf.shape[1]))
    if len(leaf.shape) > 1 and "bias_table" not in name:
        return draw / np.float32(math.sqrt(math.prod(leaf.shape[1:])))
    if name.endswith("running_var"):
        return 1 + abs(draw)
    centre = 0.0 if name.endswith(("bias", "running_mean", "bias_table")) else 0.25 if leaf.shape == (1,) else 1.0
    return np.float32(centre) + np.float32(0.1) * draw


def upstream(name: str = "csvq+transformer"):
    """Upstream's config, and its state_dict as arrays."""
    config, tensors = _checkpoint(name)
    return {**config, "model": dict(config["model"])}, dict(tensors)


@functools.cache
def variables(name: str = "csvq+transformer"):
    """The same in JAX."""
    config, tensors = _checkpoint(name)
    return jax.tree.map(jnp.asarray, convert.from_torch(tensors, config)[1])


def write_upstream(directory: pathlib.Path, config, tensors) -> pathlib.Path:
    """As upstream's trainer saves it: a score as a NumPy scalar beside the weights."""
    directory.mkdir(parents=True)
    configs.write(directory / "config.yaml", config)
    state = {name: torch.tensor(array) for name, array in tensors.items()}
    torch.save({"step": 7, "model_state_dict": state, "best_perf": np.float64(3.2)}, directory / "model.pth")
    return directory

"""The smallest ESC codecs with every part of a real one, and what upstream would publish of them. Nothing is compiled."""

import dataclasses
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
from codec_jax.experiment import Experiment, LossConfig, StageConfig
from codec_jax.models.discriminators import DACDiscriminatorConfig
from tests import tiny
from tests.models.test_esc import ABLATIONS, CONFIG, noise

__all__ = ["ABLATIONS", "CONFIG", "experiment", "noise", "upstream", "variables", "write_upstream"]


def experiment(name: str = "csvq+transformer", **training) -> Experiment:
    """Two scales; continuous, then quantised with everything a stage can ask for. Smooth losses, to compare meshes by."""
    base = tiny.experiment(**training)
    smooth = LossConfig(l1=0.0, l2=1.0, stft=0.0, spectrum=0.0, gan="least_squares")
    judged = dataclasses.replace(smooth, adversarial=0.5, feature_matching=2.0)
    return dataclasses.replace(
        base,
        family="esc",
        model=dataclasses.replace(
            ABLATIONS[name].model,
            in_freq=24,
            win_length=40,
            stft_hop_length=16,
            h_dims=(8, 12),
            num_heads=(2,),
            depth=1,
            conv_depth=1,
        ),
        bottleneck=dataclasses.replace(
            ABLATIONS[name].bottleneck, num_streams=2, codebook_dims=ABLATIONS[name].bottleneck.codebook_dims[:2]
        ),
        data=dataclasses.replace(base.data, crop_seconds=0.151),
        losses=smooth,
        stages={
            "continuous": StageConfig(1.0, quantise=False),
            "adversarial": StageConfig(2.0, losses=judged, discriminate=True, kmeans=2, revive_after=2),
        },
        discriminator=DACDiscriminatorConfig(periods=(3,), period_widths=(4, 8), fft_sizes=(64,), band_width=4),
    )


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

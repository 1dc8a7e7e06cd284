"""µP for Adam (Tensor Programs V, arXiv 2203.03466, Table 3): what is tuned at one width holds at others.

A parameter's role follows from its shape at two widths, the run's and `mup.base_channels`. With n the growth of its
fan in:

    both fan in and fan out grow (hidden)   initial values as they are (variance 1 / fan in)   rate 1 / n
    only fan in grows (output)              initial values 1 / sqrt(n) of what they are        rate 1 / n
    only fan out grows, and vectors         as they are                                        rate 1

At the base width all is as without µP. Two things are particular here. Weight-normalised convolutions keep
w = g v / ‖v‖: v is treated as the kernel it would be, and the g of an output layer starts and moves by 1 / sqrt(n).
Attention divides by the root of the head dim, which stays 128 from a width of 128 on; narrower models have one head of
their width, where µP asks for 1 / head dim: the scale of the norm of queries starts at sqrt(base head dim / head dim)
instead. Depth is no part of it: layer scales near zero let every depth start as the identity.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from codec_jax import models
from codec_jax.experiment import Experiment

PyTree = Any


class Factors(NamedTuple):
    """By parameter, in the order of the codec's leaves: of initial values, and of Adam's steps."""

    initial: tuple[float, ...]
    rate: tuple[float, ...]


def factors(experiment: Experiment) -> Factors | None:
    """None where the experiment does without µP."""
    if not experiment.mup.base_channels:
        return None
    base = dataclasses.replace(experiment.model, channels=experiment.mup.base_channels)
    ours, theirs = (_leaves(dataclasses.replace(experiment, model=model)) for model in (experiment.model, base))
    heads = [min(model.head_dim, min(model.widths)) for model in (experiment.model, base)]
    sharper = math.sqrt(heads[1] / heads[0])
    found = [_role(name, ours, theirs, sharper) for name in ours]
    return Factors(*zip(*found, strict=True))


def scaled(tree: PyTree, by: Sequence[float]) -> PyTree:
    """Every leaf times its factor, boxed or not."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [leaf if f == 1 else leaf * f for leaf, f in zip(leaves, by, strict=True)])


class _Leaf(NamedTuple):
    """shape, and how many of its leading axes are inputs; the axis of stacked layers left out."""

    shape: tuple[int, ...]
    inputs: int

    @property
    def fan_in(self) -> int:
        return math.prod(self.shape[: self.inputs])

    @property
    def fan_out(self) -> int:
        return math.prod(self.shape[self.inputs :])


def _leaves(experiment: Experiment) -> dict[str, _Leaf]:
    family = models.FAMILIES[experiment.family]
    boxed = jax.eval_shape(lambda: family.init(experiment.codec, jax.random.key(0))["params"])
    found = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    leaves = {}
    for path, box in found:
        axes, shape = box.names, box.value.shape
        if axes and axes[0] == "layers":
            axes, shape = axes[1:], shape[1:]
        leaves["/".join(str(getattr(key, "key", key)) for key in path)] = _Leaf(shape, _inputs(axes))
    return leaves


def _inputs(axes: Sequence[str | None]) -> int:
    """Axes that a kernel contracts, by their logical names (nn/linear.py, nn/conv.py); of vectors none."""
    if len(axes) < 2 or axes[0] is None:
        return 0
    if axes[:2] == ("heads", "head_dim"):
        return 2
    return axes.index("conv_out") if "conv_out" in axes else 1


def _role(name: str, ours: dict[str, _Leaf], theirs: dict[str, _Leaf], sharper: float) -> tuple[float, float]:
    """Factors of the initial values and of the rate of one parameter."""
    if name.endswith("/q_norm/scale"):
        return sharper, 1.0
    module, _, kind = name.rpartition("/")
    kernel = f"{module}/v" if kind == "g" else name
    grown_in = ours[kernel].fan_in / theirs[kernel].fan_in
    output = ours[kernel].inputs and grown_in != 1 and ours[kernel].fan_out == theirs[kernel].fan_out
    start = grown_in**-0.5 if output else 1.0
    if kind == "g":
        return start, start
    return start, 1 / grown_in if ours[kernel].inputs else 1.0

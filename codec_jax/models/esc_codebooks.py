"""The codebooks of an ESC in the care of its trainer: seeded from data, and dead words revived."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from codec_jax.models.esc_config import Config
from codec_jax.models.esc_network import Network
from codec_jax.models.protocol import Variables
from codec_jax.quantizers import codebooks, vq

PyTree = Any


def seeded(
    cfg: Config,
    variables: Variables,
    spectrum: Float[Array, "batch bin frame 2"],
    iterations: int,
    key: PRNGKeyArray,
) -> Variables:
    """The variables with every codebook from k-means of what it is to quantise.

    Stream after stream: what a stream sees depends on how those before it are quantised.
    """
    params, (streams, groups) = variables["params"], _shape(cfg)
    for stream in range(streams):
        points = _points(cfg, {**variables, "params": params}, spectrum)
        for group in range(groups):
            here = jax.random.fold_in(key, stream * groups + group)
            found = _kmeans(cfg, iterations, _get(cfg, points, stream, group), here)
            params = _set(cfg, params, stream, group, found)
    return {**variables, "params": params}


def revived(
    cfg: Config, params: PyTree, points: PyTree, dead: Bool[Array, "codebook word"], key: PRNGKeyArray
) -> PyTree:
    """The parameters with a vector of the batch in place of every dead word.

    points: the collection `vq.POINTS` of a forward pass. The same key draws the same vectors, also for an average.
    """
    streams, groups = _shape(cfg)
    for number in range(streams * groups):
        at = divmod(number, groups)
        words, vectors = _get(cfg, params, *at), _get(cfg, points, *at)
        flat = vectors.reshape(-1, vectors.shape[-1])
        params = _set(cfg, params, *at, codebooks.revived(words, flat, dead[number], jax.random.fold_in(key, number)))
    return params


@functools.partial(jax.jit, static_argnums=0)
def _points(cfg: Config, variables: Variables, spectrum: Array) -> PyTree:
    _, moved = Network(cfg).apply(variables, spectrum, cfg.bottleneck.num_streams, mutable=[vq.POINTS])
    return moved[vq.POINTS]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _kmeans(cfg: Config, iterations: int, points: Array, key: PRNGKeyArray) -> Array:
    flat = points.reshape(-1, points.shape[-1])
    return codebooks.kmeans(flat, cfg.bottleneck.codebook_size, iterations, cfg.bottleneck.product.l2norm, key)


def _shape(cfg: Config) -> tuple[int, int]:
    return cfg.bottleneck.num_streams, cfg.bottleneck.num_groups


def _get(cfg: Config, tree: PyTree, stream: int, group: int) -> Array:
    """A codebook, or what it is to quantise; residual ones are stacked over streams."""
    if cfg.bottleneck.quantiser == "rvq":
        return tree["quantizer"][f"codebook_{group}"][stream]
    return tree[f"quantizer_{stream}"][f"codebook_{group}"]


def _set(cfg: Config, tree: PyTree, stream: int, group: int, value: Array) -> PyTree:
    name, leaf = "quantizer" if cfg.bottleneck.quantiser == "rvq" else f"quantizer_{stream}", f"codebook_{group}"
    if cfg.bottleneck.quantiser == "rvq":
        value = jnp.asarray(tree[name][leaf]).at[stream].set(value)
    return {**tree, name: {**tree[name], leaf: value}}

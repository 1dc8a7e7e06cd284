"""Vector quantisation of ESC: product VQ, and product residual VQ of its ablations (spec ESC section 4).

A grid of features [batch, row, column, channel] becomes one vector per code frame (`to_vectors`), cut into groups;
every group is projected down, replaced by its nearest codeword, and projected up again. All float32, and products
that decide a code at HIGHEST precision. Streams count from 0; `streams` is how many of them are kept, maybe traced.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from codec_jax.nn.linear import partitioned, torch_uniform

Streams = int | Int[Array, ""]
_NORM_FLOOR = 1e-12
POINTS = "points"  # the collection of what codebooks had to quantise, at the paths of their parameters


class Quantised(NamedTuple):
    """What quantising a grid gives. stream: one of a product VQ, all of a residual one.

    grid: dequantised. losses: (commitment, codebook) of every clip, summed over streams.
    """

    grid: Float[Array, "batch row column dim"]
    codes: Int32[Array, "batch stream group frame"]
    losses: Float[Array, "loss batch"]


@dataclasses.dataclass(frozen=True)
class ProductConfig:
    """What all quantisers of a codec share. overlap: columns per code frame. groups: codebooks per stream."""

    overlap: int = 2
    groups: int = 3
    codebook_size: int = 1024
    l2norm: bool = True


# ---- layout ------------------------------------------------------------------------------------


def to_vectors(grid: Float[Array, "batch row column dim"], overlap: int) -> Float[Array, "batch frame vector"]:
    """One vector per `overlap` columns, indexed (column, channel, row); columns are a multiple of the overlap."""
    batch, rows, columns, dim = grid.shape
    return grid.transpose(0, 2, 3, 1).reshape(batch, columns // overlap, overlap * dim * rows)


def to_grid(
    vectors: Float[Array, "batch frame vector"], overlap: int, rows: int
) -> Float[Array, "batch row column dim"]:
    """The inverse of `to_vectors`."""
    batch, frames, size = vectors.shape
    return vectors.reshape(batch, frames * overlap, size // overlap // rows, rows).transpose(0, 3, 1, 2)


def group_sizes(size: int, groups: int) -> tuple[int, ...]:
    """Lengths of contiguous groups of a vector: equal, and what is left over goes to the last."""
    return (size // groups,) * (groups - 1) + (size // groups + size % groups,)


def split(vectors: Float[Array, "batch frame vector"], groups: int) -> list[Array]:
    """The groups of every vector, [batch, frame, size] each."""
    return jnp.split(vectors, np.cumsum(group_sizes(vectors.shape[-1], groups))[:-1], axis=-1)


# ---- one codebook ------------------------------------------------------------------------------


def nearest(
    z: Float[Array, "batch frame dim"], codebook: Float[Array, "codeword dim"], l2norm: bool
) -> Int32[Array, "batch frame"]:
    """Index of the nearest codeword, the first of equally near ones. l2norm: by direction alone."""
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    if l2norm:
        z, codebook = _unit(z), _unit(codebook)
    product = jnp.matmul(z, codebook.T, precision=jax.lax.Precision.HIGHEST)
    # |z|² decides nothing but which distances are equal in float32, and so the code that upstream takes.
    distances = jnp.square(z).sum(-1, keepdims=True) - 2 * product + jnp.square(codebook).sum(-1)
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def losses(z: Float[Array, "batch frame dim"], q: Float[Array, "batch frame dim"]) -> Float[Array, "loss batch"]:
    """Commitment and codebook loss of every clip: the same number, one with gradients to z, one to q."""
    commitment = jnp.square(jax.lax.stop_gradient(q) - z).mean((1, 2))
    codebook = jnp.square(q - jax.lax.stop_gradient(z)).mean((1, 2))
    return jnp.stack([commitment, codebook])


def straight_through(z: Float[Array, "batch frame dim"], q: Float[Array, "batch frame dim"]) -> Array:
    """The value of q with the gradient of z."""
    return z + jax.lax.stop_gradient(q - z)


def counts(codes: Int[Array, "batch codebook frame"], codebook_size: int) -> Int32[Array, "codebook codeword"]:
    """How often every word of every codebook occurs."""
    return jax.nn.one_hot(codes, codebook_size, dtype=jnp.int32).sum((0, 2))


def draw_streams(key: PRNGKeyArray, most: int, dropout: float) -> Int[Array, ""]:
    """With probability `dropout` 1 to `most` streams, each equally likely, else all."""
    whether, which = jax.random.split(key)
    drawn = jax.random.randint(which, (), 1, most + 1)
    return jnp.where(jax.random.bernoulli(whether, dropout), drawn, most)


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)), _NORM_FLOOR)


# ---- modules -----------------------------------------------------------------------------------


class ProductVQ(nn.Module):
    """One stream of cross-scale VQ on a grid of `rows` × column × `dim`: one codebook per group.

    Parameters of group g: down_g [size, codebook_dim], codebook_g [codeword, codebook_dim], up_g back.
    """

    config: ProductConfig
    rows: int
    dim: int
    codebook_dim: int

    def setup(self):
        self.down, self.up = _projections(self, self.config, self.rows * self.dim, self.codebook_dim)
        shape = (self.config.codebook_size, self.codebook_dim)
        self.codebooks = [declare_codebook(self, f"codebook_{g}", shape) for g in range(self.config.groups)]

    def __call__(
        self, grid: Float[Array, "batch row column dim"], *, train: bool = False, quantise: bool = True
    ) -> Quantised:
        """quantise: else the grid is only projected down and up, and the losses are zero (upstream's pre-training).

        train: gradients pass straight through the codewords, and the codebook learns from its loss alone.
        """
        chunks = split(to_vectors(grid.astype(jnp.float32), self.config.overlap), self.config.groups)
        codes, out, total = [], [], jnp.zeros((2, len(grid)))
        for g, (chunk, down, codebook, up) in enumerate(zip(chunks, self.down, self.codebooks, self.up)):
            z = project(chunk, down)
            tell(self, f"codebook_{g}", z)
            codes.append(nearest(jax.lax.stop_gradient(z), codebook, self.config.l2norm))
            q = z
            if quantise:
                q = codebook[codes[-1]]
                total = total + losses(z, q) / self.config.groups
                q = straight_through(z, q) if train else q
            out.append(project(q, up))
        return Quantised(self._grid(out), jnp.stack(codes, 1)[:, None], total)

    def dequantise(self, codes: Int[Array, "batch group frame"]) -> Float[Array, "batch row column dim"]:
        """The grid of these codes."""
        chunks = [self.codebooks[g][codes[:, g]] for g in range(self.config.groups)]
        return self._grid([project(q, up) for q, up in zip(chunks, self.up)])

    def _grid(self, chunks: list[Array]) -> Array:
        return to_grid(jnp.concatenate(chunks, -1), self.config.overlap, self.rows)


class ProductResidualVQ(nn.Module):
    """All streams of residual VQ at one scale: per group one projection, and one codebook per stream.

    Parameters of group g: down_g and up_g as in ProductVQ, none where a group has codebook_dim entries already, and
    codebook_g [stream, codeword, codebook_dim].
    """

    config: ProductConfig
    rows: int
    dim: int
    codebook_dim: int
    streams: int

    def setup(self):
        self.down, self.up = _projections(self, self.config, self.rows * self.dim, self.codebook_dim, True)
        shape = (self.streams, self.config.codebook_size, self.codebook_dim)
        self.codebooks = [declare_codebook(self, f"codebook_{g}", shape) for g in range(self.config.groups)]

    def __call__(
        self,
        grid: Float[Array, "batch row column dim"],
        streams: Streams,
        *,
        train: bool = False,
        quantise: bool = True,
    ) -> Quantised:
        """As ProductVQ; streams from `streams` on give codes, but add neither to the grid nor to the losses.

        Passing straight through, no gradient reaches a residual: only the first stream's commitment reaches the grid.
        """
        chunks = split(to_vectors(grid.astype(jnp.float32), self.config.overlap), self.config.groups)
        codes, out, total = [], [], jnp.zeros((2, len(grid)))
        for g, (chunk, down, codebooks, up) in enumerate(zip(chunks, self.down, self.codebooks, self.up)):
            z = residual = project(chunk, down)
            mixed, indices, points = jnp.zeros_like(z), [], []
            for stream in range(self.streams):
                points.append(residual)
                indices.append(nearest(jax.lax.stop_gradient(residual), codebooks[stream], self.config.l2norm))
                q = codebooks[stream][indices[-1]]
                kept = jnp.asarray(stream < streams, jnp.float32)
                total = total + kept * losses(residual, q) / self.config.groups
                q = straight_through(residual, q) if train else q
                mixed, residual = mixed + kept * q, residual - q
            tell(self, f"codebook_{g}", jnp.stack(points))
            codes.append(jnp.stack(indices, 1))
            out.append(project(mixed if quantise else z, up))
        total = total if quantise else jnp.zeros_like(total)
        return Quantised(self._grid(out), jnp.stack(codes, 2), total)

    def dequantise(self, codes: Int[Array, "batch stream group frame"]) -> Float[Array, "batch row column dim"]:
        """The grid of the first streams' codes, as many as there are."""
        out = []
        for g, up in enumerate(self.up):
            words = [self.codebooks[g][stream][codes[:, stream, g]] for stream in range(codes.shape[1])]
            out.append(project(sum(words[1:], words[0]), up))
        return self._grid(out)

    def _grid(self, chunks: list[Array]) -> Array:
        return to_grid(jnp.concatenate(chunks, -1), self.config.overlap, self.rows)


def _projections(
    module: nn.Module, config: ProductConfig, column: int, dim: int, identity: bool = False
) -> tuple[list[Array | None], list[Array | None]]:
    """Declares down_g and up_g of every group on `module`. identity: None for groups that are `dim` long already."""
    down: list[Array | None] = []
    up: list[Array | None] = []
    for g, size in enumerate(group_sizes(config.overlap * column, config.groups)):
        none = identity and size == dim
        init_down = partitioned(torch_uniform(size), ("embed", None))
        init_up = partitioned(torch_uniform(dim), (None, "embed"))
        down.append(None if none else module.param(f"down_{g}", init_down, (size, dim)))
        up.append(None if none else module.param(f"up_{g}", init_up, (dim, size)))
    return down, up


def declare_codebook(module: nn.Module, name: str, shape: tuple[int, ...]) -> Array:
    """Kaiming normal, as upstream: every word about as long as the square root of two."""
    init = nn.initializers.normal(math.sqrt(2 / shape[-1]))
    return module.param(name, partitioned(init, (None,) * len(shape)), shape)


def tell(module: nn.Module, name: str, points: Array) -> None:
    """Leaves the points of the codebook `name` in the collection `POINTS`, for callers that make it mutable."""
    if not module.is_initializing():
        module.sow(POINTS, name, jax.lax.stop_gradient(points), reduce_fn=lambda _, new: new)


def project(x: Array, kernel: Array | None) -> Array:
    """A product that decides codes; None leaves x as it is."""
    return x if kernel is None else jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)

"""Residual VQ with factorised codebooks of low dimension, looked up by direction, as in DAC (arXiv 2306.06546, section
3.3; after SoundStream's residual VQ, arXiv 2107.03312, and ViT-VQGAN's normalised codes, arXiv 2110.04627).

Codebook i sees what those before it left of the latents: it projects that down, takes the word of the nearest
direction, projects the word up again, and what is still missing goes on to the next. All float32, and products that
decide a code at HIGHEST precision. Projections have no bias.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from codec_jax.nn.linear import partitioned, torch_uniform
from codec_jax.quantizers import codebooks, vq

CODEBOOK = "codebook"
Params = Mapping[str, Array]


class Quantised(NamedTuple):
    """latents: the sum of the kept codebooks' words, projected up. codes: of all codebooks, kept or not.

    losses: (commitment, codebook) of every clip, each a mean over entries, summed over its kept codebooks.
    """

    latents: Float[Array, "batch frame latent"]
    codes: Int32[Array, "batch codebook frame"]
    losses: Float[Array, "loss batch"]


class ResidualVQ(nn.Module):
    """Parameters: down [codebook, latent, dim], codebook [codebook, word, dim], up [codebook, dim, latent]."""

    latent_dim: int
    num_codebooks: int
    codebook_size: int
    codebook_dim: int

    def setup(self):
        count, latent, dim = self.num_codebooks, self.latent_dim, self.codebook_dim
        init_down = partitioned(torch_uniform(latent), (None, "embed", None))
        init_up = partitioned(torch_uniform(dim), (None, None, "embed"))
        self.down = self.param("down", init_down, (count, latent, dim))
        self.codebook = vq.declare_codebook(self, CODEBOOK, (count, self.codebook_size, dim))
        self.up = self.param("up", init_up, (count, dim, latent))

    def __call__(
        self,
        latents: Float[Array, "batch frame latent"],
        kept: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Quantised:
        """kept: of every clip, how many codebooks count (None: all); the others add neither words nor losses.

        train: gradients pass straight through the words, and a codebook learns from its loss alone.
        """
        residual = latents.astype(jnp.float32)
        kept = jnp.full(len(latents), self.num_codebooks) if kept is None else kept
        out, losses = jnp.zeros_like(residual), jnp.zeros((2, len(latents)))
        codes, points = [], []
        for number in range(self.num_codebooks):
            z = vq.project(residual, self.down[number])
            points.append(z)
            codes.append(self._nearest(z, number))
            q = self.codebook[number][codes[-1]]
            counts = (number < kept).astype(jnp.float32)
            losses += counts * vq.losses(z, q)
            word = vq.project(vq.straight_through(z, q) if train else q, self.up[number])
            out, residual = out + counts[:, None, None] * word, residual - word
        vq.tell(self, CODEBOOK, jnp.stack(points))
        return Quantised(out, jnp.stack(codes, 1), losses)

    def encode(self, latents: Float[Array, "batch frame latent"], count: int) -> Int32[Array, "batch codebook frame"]:
        """Codes of the first `count` codebooks."""
        residual, codes = latents.astype(jnp.float32), []
        for number in range(count):
            codes.append(self._nearest(vq.project(residual, self.down[number]), number))
            residual -= self._word(codes[-1], number)
        return jnp.stack(codes, 1)

    def decode(self, codes: Int[Array, "batch codebook frame"]) -> Float[Array, "batch frame latent"]:
        """Latents of the first codebooks' codes, as many as there are."""
        words = [self._word(codes[:, number], number) for number in range(codes.shape[1])]
        return sum(words[1:], words[0])

    def _nearest(self, z: Array, number: int) -> Array:
        return vq.nearest(jax.lax.stop_gradient(z), self.codebook[number], l2norm=True)

    def _word(self, codes: Array, number: int) -> Array:
        return vq.project(self.codebook[number][codes], self.up[number])


def seeded(
    module: ResidualVQ,
    params: Params,
    latents: Float[Array, "batch frame latent"],
    iterations: int,
    key: PRNGKeyArray,
) -> Params:
    """The parameters with codebooks from k-means of these latents, codebook after codebook: what one of them sees
    depends on the words of those before.
    """
    for number in range(module.num_codebooks):
        points = _points(module, params, latents)[number]
        words = _kmeans(points, module.codebook_size, iterations, jax.random.fold_in(key, number))
        params = {**params, CODEBOOK: jnp.asarray(params[CODEBOOK]).at[number].set(words)}
    return params


def revived(
    params: Params,
    points: Float[Array, "codebook batch frame dim"],
    dead: Bool[Array, "codebook word"],
    key: PRNGKeyArray,
) -> Params:
    """The parameters with one of its codebook's points in place of every dead word."""
    books = [
        codebooks.revived(words, vectors.reshape(-1, vectors.shape[-1]), gone, jax.random.fold_in(key, number))
        for number, (words, vectors, gone) in enumerate(zip(params[CODEBOOK], points, dead))
    ]
    return {**params, CODEBOOK: jnp.stack(books)}


def _points_of(module: ResidualVQ, params: Params, latents: Array) -> Array:
    _, told = module.apply({"params": params}, latents, mutable=[vq.POINTS])
    return told[vq.POINTS][CODEBOOK]


def _kmeans_of(points: Array, words: int, iterations: int, key: Array) -> Array:
    return codebooks.kmeans(points.reshape(-1, points.shape[-1]), words, iterations, True, key)


_points = jax.jit(_points_of, static_argnums=0)
_kmeans = jax.jit(_kmeans_of, static_argnums=(1, 2))

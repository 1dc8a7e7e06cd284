"""Health of codebooks beyond upstream: k-means from data, and words that nobody uses brought back to life.

Points are the vectors that a codebook is to quantise, of one batch or several.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from codec_jax.quantizers.vq import nearest


def kmeans(
    points: Float[Array, "point dim"], words: int, iterations: int, l2norm: bool, key: PRNGKeyArray
) -> Float[Array, "word dim"]:
    """Lloyd's algorithm from random points; a word that gets none stays where it is.

    Points are assigned as `nearest` assigns them; a word is the mean of its points. Of fewer points than words, some
    make several.
    """
    start = points[_choice(key, len(points), words)]

    def step(_, codebook):
        codes = nearest(points[None], codebook, l2norm)[0]
        counts = jnp.zeros(words).at[codes].add(1.0)
        sums = jnp.zeros_like(codebook).at[codes].add(points)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1.0)[:, None], codebook)

    return jax.lax.fori_loop(0, iterations, step, start)


def revived(
    codebook: Float[Array, "word dim"], points: Float[Array, "point dim"], dead: Bool[Array, " word"], key: PRNGKeyArray
) -> Float[Array, "word dim"]:
    """The codebook with a random point in place of every dead word."""
    fresh = points[jax.random.randint(key, (len(codebook),), 0, len(points))]
    return jnp.where(dead[:, None], fresh, codebook)


def _choice(key: PRNGKeyArray, points: int, words: int) -> Int[Array, " word"]:
    """Indices of random points, none twice while they last."""
    rounds = -(-words // points)
    keys = jax.random.split(key, rounds)
    return jnp.concatenate([jax.random.permutation(k, points) for k in keys])[:words]

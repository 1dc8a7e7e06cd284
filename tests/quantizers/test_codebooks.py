"""k-means and revival of codewords, against scipy and by what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster.vq import kmeans2

from codec_jax.quantizers import codebooks


def blobs(words, dim, each=40, seed=0):
    """Points around well separated centres, shuffled."""
    rng = np.random.default_rng(seed)
    centres = 10 * rng.standard_normal((words, dim))
    points = np.repeat(centres, each, axis=0) + 0.1 * rng.standard_normal((words * each, dim))
    return rng.permutation(points).astype(np.float32)


def test_kmeans_is_scipys_from_the_same_start():
    points, key = blobs(6, 3), jax.random.key(1)
    start = codebooks.kmeans(jnp.asarray(points), 6, 0, False, key)
    assert {tuple(word) for word in np.asarray(start)} <= {tuple(point) for point in points}
    assert len(np.unique(start, axis=0)) == 6
    theirs, _ = kmeans2(points, np.asarray(start), iter=5, minit="matrix", missing="raise")
    np.testing.assert_allclose(codebooks.kmeans(jnp.asarray(points), 6, 5, False, key), theirs, rtol=1e-5)


def test_kmeans_by_direction():
    angles, rng = np.array([0.0, 2.0, 4.0]), np.random.default_rng(0)
    radii = rng.uniform(0.5, 2, (50, 3))
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1).reshape(-1, 2).astype(np.float32)
    found = [codebooks.kmeans(jnp.asarray(points), 3, 10, True, jax.random.key(seed)) for seed in range(8)]
    best = max(found, key=lambda words: len(np.unique(np.round(np.arctan2(words[:, 1], words[:, 0]), 3))))
    np.testing.assert_allclose(np.sort(np.arctan2(best[:, 1], best[:, 0]) % (2 * np.pi)), angles, atol=1e-3)


def test_fewer_points_than_words():
    points = jnp.asarray(blobs(2, 3, each=2))
    words = np.asarray(codebooks.kmeans(points, 10, 3, True, jax.random.key(0)))
    assert words.shape == (10, 3)
    assert np.isfinite(words).all()


@pytest.mark.parametrize("dead", [[], [1], [0, 2, 3]])
def test_the_dead_become_points_and_the_living_stay(dead):
    points, codebook = jnp.asarray(blobs(3, 2)), jnp.zeros((4, 2))
    mask = jnp.isin(jnp.arange(4), jnp.array(dead, int))
    now = np.asarray(codebooks.revived(codebook, points, mask, jax.random.key(0)))
    for word in range(4):
        assert (tuple(now[word]) in {tuple(p) for p in np.asarray(points)}) == (word in dead)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from codec_jax.ops import counter_random
from codec_jax.ops.counter_random import quick


@pytest.fixture(scope="module")
def streams():
    """Uniform numbers [key, number] of keys that are neighbours."""
    keys = jax.random.split(quick(jax.random.key(3)), 200)
    return np.asarray(jax.jit(jax.vmap(lambda key: jax.random.uniform(key, (5_000,))))(keys))


def test_numbers_are_uniform_in_every_stream(streams):
    p_values = [stats.kstest(stream, "uniform").pvalue for stream in streams]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    means = (streams.mean(1) - 0.5) * np.sqrt(12 * streams.shape[1])
    assert stats.kstest(means, "norm").pvalue > 1e-3


def test_neither_neighbours_nor_streams_are_correlated(streams):
    scale = np.sqrt(streams.shape[1])
    for lag in (1, 2, 16):
        lagged = [np.corrcoef(stream[:-lag], stream[lag:])[0, 1] * scale for stream in streams]
        assert abs(np.mean(lagged)) < 4 / np.sqrt(len(streams))
    across = np.corrcoef(streams)[np.triu_indices(len(streams), 1)] * scale
    assert across.std() == pytest.approx(1, abs=0.03)
    assert np.abs(across).max() < 6


def test_every_bit_is_fair():
    bits = np.asarray(jax.random.bits(quick(jax.random.key(0)), (50_000,)))
    ones = ((bits[:, None] >> np.arange(32)) & 1).mean(0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(len(bits))


def test_keys_differ_and_arrays_do_not_depend_on_how_they_are_computed():
    key = quick(jax.random.key(0))
    assert not np.array_equal(jax.random.key_data(key), jax.random.key_data(quick(jax.random.key(1))))
    folded = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(jnp.arange(10_000))
    assert len(np.unique(np.asarray(folded), axis=0)) == 10_000
    whole = jax.random.bits(key, (4, 6, 8))
    np.testing.assert_array_equal(whole.reshape(-1), jax.random.bits(key, (192,)))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "x"))
    sharded = jax.jit(lambda: jax.random.bits(key, (4, 6, 8)), out_shardings=where)
    np.testing.assert_array_equal(sharded(), whole)
    text = sharded.lower().compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


def test_more_numbers_than_counters_are_refused():
    with pytest.raises(ValueError, match="counters"):
        jax.eval_shape(lambda: counter_random._bits(jnp.zeros(2, jnp.uint32), 32, (2**17, 2**16)))

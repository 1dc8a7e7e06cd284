import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.errors import UserError
from codec_jax.models.protocol import spread
from codec_jax.quantizers import fsq

SETS = ["17x17x17x17x17x17", "9x9x9x9x9x9", "5x5x5x5x5x5", "2x2x2x2x2x2", "5x9x17x6x3x4"]
PAPER = ((5,) * 6, (9,) * 6, (17,) * 6)


def torch_arithmetic(z, levels, scale=1.0):
    """Upstream's operations, in NumPy float32: digits and codes."""
    h, s = fsq.step_size(levels, scale), np.float32(scale)
    digits = np.round((z + s) / h)
    return digits.astype(np.int64), digits * h - s


def margin(x, levels):
    """Distance of the float64 level position from the nearest decision boundary, smallest over dimensions."""
    u = (np.tanh(x.astype(np.float64)) + 1) / (2 / (np.asarray(levels) - 1.0))
    return np.abs(u - np.floor(u) - 0.5).min(-1)


def all_floats_around(levels, scale):
    """Every boundary and level of each dimension with its float32 neighbours, dimensions side by side."""
    points = []
    for level in levels:
        grid = (np.arange(-2, 2 * level + 2) / (2 * (level - 1)) * 2 - 1) * scale
        values = [grid.astype(np.float32)]
        for direction in (-np.inf, np.inf):
            near = values[0]
            for _ in range(4):
                near = np.nextafter(near, np.float32(direction))
                values.append(near)
        points.append(np.concatenate([*values, np.float32([0, -0.0, 1e-38, -1e-38, scale, -scale])]))
    size = max(map(len, points))
    return np.stack([np.resize(p, size) for p in points], axis=1)


@pytest.mark.parametrize("name", SETS)
def test_tokens_and_codes_are_upstreams(golden, name):
    levels = tuple(map(int, name.split("x")))
    tensors = golden("taae/fsq/tensors.safetensors")
    get = lambda key: tensors[f"train_{name}/{key}"][0]
    x, tokens, safe = get("x"), get("indices")[:, 0], margin(get("x"), levels) > 1e-6
    ours = np.asarray(fsq.encode(jnp.asarray(x), levels))
    assert safe.mean() > 0.5
    np.testing.assert_array_equal(ours[safe], tokens[safe])
    assert np.mean(ours != tokens) < 0.05  # the rest: ties, at the mercy of the last bit of tanh
    assert ours.min() >= 0
    assert ours.max() < math.prod(levels)
    np.testing.assert_array_equal(fsq.codes_to_indices(jnp.asarray(get("codes")), levels), tokens)
    back = np.asarray(fsq.decode(jnp.asarray(tokens, jnp.int32), levels))
    np.testing.assert_array_equal(back, get("back"))  # every bit


def test_65_levels_are_too_many_for_int32_but_halves_agree_with_upstream(golden):
    tensors = golden("taae/fsq/tensors.safetensors")
    x, codes, tokens = (tensors[f"train_65x65x65x65x65x65/{key}"][0] for key in ("x", "codes", "indices"))
    with pytest.raises(UserError, match="2\\^31"):
        fsq.encode(jnp.asarray(x), (65,) * 6)
    for half, index in ((slice(3), tokens[:, 0] % 65**3), (slice(3, 6), tokens[:, 0] // 65**3)):
        levels, safe = (65,) * 3, margin(x[:, half], (65,) * 3) > 1e-5  # u reaches 64: its last bit is 4e-6
        assert safe.mean() > 0.5
        ours = np.asarray(fsq.encode(jnp.asarray(x[:, half]), levels))
        np.testing.assert_array_equal(ours[safe], index[safe])
        assert np.mean(ours != index) < 0.05
        np.testing.assert_array_equal(fsq.codes_to_indices(jnp.asarray(codes[:, half]), levels), index)
        np.testing.assert_array_equal(fsq.decode(jnp.asarray(index, jnp.int32), levels), codes[:, half])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.3])
@pytest.mark.parametrize("levels", [(17,) * 6, (6, 3, 4, 2, 65, 7)])
def test_ties_and_their_neighbours_are_bit_equal_to_torch_arithmetic(levels, scale, jit):
    z = all_floats_around(levels, scale)
    digits, codes = torch_arithmetic(z, levels, scale)
    inside = np.all((digits >= 0) & (digits < np.asarray(levels)), axis=-1)
    wrap = jax.jit if jit else lambda f: f
    ours = wrap(lambda z: fsq.codes_to_indices(z, levels, scale))(jnp.asarray(z))
    clipped = np.clip(digits, 0, np.asarray(levels) - 1)
    np.testing.assert_array_equal(ours, (clipped * fsq.basis(levels)).sum(-1))
    hard = wrap(lambda z: fsq.round_to_level(z, fsq.grid(levels, scale)))(jnp.asarray(z))
    assert inside.sum() > 10
    np.testing.assert_array_equal(np.asarray(hard)[inside], codes[inside])


def test_step_is_divided_as_torch_does():
    torch = pytest.importorskip("torch")
    levels = tuple(range(2, 20))
    for scale in (1.0, 0.3, 1 / 3, 0.125):
        np.testing.assert_array_equal(fsq.step_size(levels, scale), (scale * 2 / (torch.tensor(levels) - 1)).numpy())
    assert fsq.step_size((6,))[0] == np.float32(0.4)


@pytest.mark.parametrize("levels", [(3,) * 6, (5,) * 6, (6,) * 6, (5, 9, 17, 6, 3, 4), (2,) * 6, (2, 3), (7,)])
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_whole_code_space_round_trips(levels, scale):
    indices = np.arange(math.prod(levels), dtype=np.int32)
    codes = fsq.indices_to_codes(jnp.asarray(indices), levels, scale)
    np.testing.assert_array_equal(fsq.codes_to_indices(codes, levels, scale), indices)
    assert len(np.unique(codes, axis=0)) == len(indices)
    assert codes[1, 0] > codes[0, 0]  # the first dimension runs fastest


def test_large_code_spaces_round_trip_beyond_float32_integers(rng):
    for levels in ((17,) * 6, (65, 65, 65, 65, 65), (2,) * 30):
        size = math.prod(levels)
        corners = [0, 1, 2**24 - 1, 2**24 + 1, size - 2, size - 1]
        indices = np.concatenate([corners, rng.integers(0, size, 20_000)]).astype(np.int32)
        codes = fsq.indices_to_codes(jnp.asarray(indices), levels)
        np.testing.assert_array_equal(fsq.codes_to_indices(codes, levels), indices)
    faces = np.array(list(itertools.product([-1.0, 1.0], repeat=6)), np.float32)
    expected = ((faces > 0) * 16) @ fsq.basis((17,) * 6)
    np.testing.assert_array_equal(fsq.codes_to_indices(jnp.asarray(faces), (17,) * 6), expected)


@pytest.mark.parametrize("levels", [(17,) * 6, (5, 9, 17, 6, 3, 4)])
def test_infinite_huge_and_nan_latents(levels):
    top = math.prod(levels) - 1
    for value, token in ((np.inf, top), (3e38, top), (-np.inf, 0), (-3e38, 0), (np.nan, 0)):
        latents = jnp.full((2, 6), value, jnp.float32)
        np.testing.assert_array_equal(fsq.encode(latents, levels), token)
        np.testing.assert_array_equal(jax.jit(fsq.encode, static_argnums=1)(latents, levels), token)
        np.testing.assert_array_equal(fsq.codes_to_indices(latents, levels), token)
    codes, indices = fsq.train(jnp.full((3, 2, 6), jnp.nan), *spread(jax.random.key(0), jnp.arange(3)), PAPER, 0.5)
    assert np.isnan(codes).all()  # seen by whoever guards the loss
    assert (np.asarray(indices) == 0).all()


@pytest.mark.parametrize("name", ["A", "E"])
def test_training_mixture_is_upstreams(golden, name):
    tensors = golden(f"taae/{name}/tensors.safetensors")
    levels = {"A": (17,) * 6, "E": (9,) * 6}[name]
    z = jnp.tanh(tensors["train/latents"].swapaxes(1, 2))
    raw, hard = (jnp.asarray(tensors[f"train/mask_keep_{m}"][..., 0] > 0) for m in ("raw", "quant"))
    uniform = jnp.asarray(tensors["train/rand_u"][:, :, 0])
    codes = fsq.dither(z, fsq.grid(levels), raw, hard, uniform)
    np.testing.assert_allclose(codes, tensors["train/codes"].swapaxes(1, 2), atol=1e-6, rtol=0)
    np.testing.assert_array_equal(fsq.codes_to_indices(codes, levels), tensors["train/indices"][..., 0])
    assert 0 < np.sum(hard) < hard.size  # the recorded draws took both branches


def test_mixture_statistics(rng):
    z = jnp.asarray(rng.uniform(-0.99, 0.99, (4000, 3, 2)), jnp.float32)
    constants = fsq.grid((5, 5))
    draws = fsq.sample_draws(jax.random.split(jax.random.key(1), len(z)), z.shape, 0.5)
    codes = np.asarray(fsq.dither(z, constants, *draws))
    raw = (codes == z).all((1, 2))
    hard = (codes == fsq.round_to_level(z, constants)).all((1, 2))
    assert abs(raw.mean() - 0.25) < 0.03
    assert abs(hard.mean() - 0.25) < 0.03
    noise = (codes - z)[~raw & ~hard]
    assert abs(len(noise) / len(z) - 0.5) < 0.03
    assert np.abs(noise).max() <= 0.25 + 1e-6  # half a step
    assert abs(noise.mean()) < 0.005
    assert abs(noise.std() - 0.5 / math.sqrt(12)) < 0.003
    always = fsq.dither(z, constants, *fsq.sample_draws(jax.random.split(jax.random.key(1), len(z)), z.shape, 0.0))
    assert not np.any(np.all(always == z, axis=(1, 2)))


def test_gradients():
    z = jnp.asarray(np.random.default_rng(0).uniform(-0.99, 0.99, (4, 5, 2)), jnp.float32)
    weight = jnp.arange(z.size, dtype=jnp.float32).reshape(z.shape)
    constants = fsq.grid((5, 9))
    np.testing.assert_array_equal(jax.grad(lambda z: (fsq.round_to_level(z, constants) * weight).sum())(z), weight)
    draws = fsq.sample_draws(jax.random.split(jax.random.key(3), len(z)), z.shape, 0.5)
    np.testing.assert_array_equal(jax.grad(lambda z: (fsq.dither(z, constants, *draws) * weight).sum())(z), weight)
    loss = lambda x: (fsq.train(x, *spread(jax.random.key(0), jnp.arange(3)), PAPER, 0.5)[0] * 2).sum()
    x = jnp.full((3, 2, 6), 0.3)
    np.testing.assert_allclose(jax.grad(loss)(x), 2 / np.cosh(x) ** 2, rtol=1e-5)


def test_train_draws_every_set_and_tokens_belong_to_it():
    sets = ((2, 3), (5, 4), (9, 17))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 2)) * 2, jnp.float32)
    step = jax.jit(lambda key: fsq.train(x, *spread(key, jnp.arange(2)), sets, 0.0))
    counts = dict.fromkeys(sets, 0)
    for key in jax.random.split(jax.random.key(7), 90):
        codes, indices = step(key)
        matching = [s for s in sets if np.array_equal(fsq.codes_to_indices(codes, s), indices)]
        assert len(matching) == 1
        width = np.abs(codes - jnp.tanh(x)).max(axis=(0, 1))
        assert np.all(width <= fsq.step_size(matching[0]) / 2 + 1e-6)
        counts[matching[0]] += 1
    assert step._cache_size() == 1
    assert min(counts.values()) > 15


def test_a_clips_draws_are_its_own():
    x, keys = (
        jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 6)), jnp.float32),
        spread(jax.random.key(5), jnp.arange(6)),
    )
    codes, _ = fsq.train(x, *keys, ((17,) * 6,), 0.5)
    expected = fsq.dither(jnp.tanh(x), fsq.grid((17,) * 6), *fsq.sample_draws(keys.clips, x.shape, 0.5))
    np.testing.assert_array_equal(codes, expected)
    parts = [fsq.train(x[i : i + 2], keys.step, keys.clips[i : i + 2], PAPER, 0.5) for i in (0, 2, 4)]
    for whole, pieces in zip(fsq.train(x, *keys, PAPER, 0.5), zip(*parts)):
        np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_level_counts():
    levels = (3, 5)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, 2)), jnp.float32)
    digits = np.stack([np.asarray(fsq.encode(x, levels)) % 3, np.asarray(fsq.encode(x, levels)) // 3])
    counts = np.asarray(fsq.level_counts(x, levels))
    np.testing.assert_array_equal(counts[0], [*np.bincount(digits[0].ravel(), minlength=3), -1, -1])
    np.testing.assert_array_equal(counts[1], np.bincount(digits[1].ravel(), minlength=5))


def test_bfloat16_latents_are_quantised_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, 6)), jnp.bfloat16)
    np.testing.assert_array_equal(fsq.encode(x, (17,) * 6), fsq.encode(x.astype(jnp.float32), (17,) * 6))
    codes, indices = fsq.train(x, *spread(jax.random.key(0), jnp.arange(2)), PAPER, 0.5)
    assert codes.dtype == jnp.float32
    assert indices.dtype == jnp.int32


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=5).map(tuple),
    st.floats(0.01, 8),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_constants_split_the_line_as_torch_arithmetic(levels, scale, seed):
    z = np.random.default_rng(seed).uniform(-scale, scale, (64, len(levels))).astype(np.float32)
    digits, codes = torch_arithmetic(z, levels, scale)
    constants = fsq.grid(levels, scale)
    ours = (z[..., None] >= constants.boundaries).sum(-1)
    np.testing.assert_array_equal(ours, digits)
    np.testing.assert_array_equal(constants.codes[np.arange(len(levels)), ours], codes)


@pytest.mark.parametrize("levels", [(), (5, 1), (0,), (-3, 4), (2,) * 31, (65,) * 6 + (2,)])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(UserError, match="FSQ levels"):
        fsq.validate(levels)


def test_level_sets_of_unequal_size_are_refused():
    for sets in ((), ((5, 5), (5,))):
        with pytest.raises(UserError, match="dimensions"):
            fsq.train(jnp.zeros((1, 1, 2)), *spread(jax.random.key(0), jnp.arange(1)), sets, 0.5)

"""The twin's FSQ and residual FSQ: upstream's tokens and codes, bit by bit, and our JAX side's."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from codec_jax.pytorch import fsq
from codec_jax.quantizers import fsq as jax_fsq
from codec_jax.quantizers import residual_fsq as jax_residual

SETS = ["17x17x17x17x17x17", "9x9x9x9x9x9", "5x5x5x5x5x5", "2x2x2x2x2x2", "5x9x17x6x3x4", "65x65x65x65x65x65"]
PRESETS = list(fsq.PRESETS)
STAGES = [(name, i) for name in PRESETS for i in range(len(fsq.PRESETS[name]))]


@pytest.fixture(scope="module")
def tables(golden):
    return {name: torch.from_numpy(array) for name, array in golden("taae/fsq/tensors.safetensors").items()}


@pytest.mark.parametrize("name", SETS)
def test_training_fsq_is_upstreams(tables, name):
    levels = tuple(map(int, name.split("x")))
    x, codes, tokens, back = (tables[f"train_{name}/{key}"][0] for key in ("x", "codes", "indices", "back"))
    ours = fsq.encode(x, levels)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, tokens[:, 0])  # near-ties included: the arithmetic is upstream's own
    assert torch.equal(fsq.quantise(x, levels), codes)
    assert torch.equal(fsq.decode(tokens[:, 0], levels), back)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_stage_tables_are_upstreams(tables, name, stage):
    get = lambda key: tables[f"{name}/stage{stage}/{key}"]
    levels, scale = fsq.PRESETS[name][stage]
    assert torch.equal(fsq.step_size(levels, scale), get("half_l"))
    digits = fsq._digits(get("z")[0], levels, scale)
    codes = fsq._codes(digits, levels, scale, torch.float64)
    unclipped = torch.round((get("codes")[0] + scale) / get("half_l").double())
    inside = ((unclipped >= 0) & (unclipped < torch.tensor(levels))).all(-1)  # the tables go beyond on purpose
    assert inside.sum() > 100
    assert torch.equal(codes[inside], get("codes")[0][inside])
    assert torch.equal(fsq._tokens(digits, levels)[inside], get("indices")[0, inside, 0])


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", PRESETS)
def test_residual_fsq_is_upstreams(tables, name, dtype):
    stages = fsq.PRESETS[name]
    get = lambda key: tables[f"{name}/{dtype}/{key}"]
    tokens = torch.stack([get(f"tokens{i}")[..., 0] for i in range(len(stages))], dim=1)
    ours = fsq.encode_residual(get("x").mT, stages)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, tokens)
    assert torch.equal(fsq.decode_residual(tokens, stages), get("decoded").mT)


@pytest.mark.parametrize("name", PRESETS)
def test_any_tokens_decode_as_upstream(tables, name):
    tokens = tables[f"{name}/decode_only/idx"][..., 0]
    for i, stage in enumerate(fsq.PRESETS[name]):
        assert torch.equal(fsq.decode_residual(tokens[:, None], [stage]), tables[f"{name}/decode_only/codes{i}"])


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("levels", [(17,) * 6, (6, 3, 4, 2, 65, 7)])
def test_both_frameworks_agree_beyond_the_tables(levels, scale):
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(fsq.step_size(levels, scale), jax_fsq.step_size(levels, scale))
    tokens = rng.integers(0, math.prod(levels), 500)
    stages = ((levels, scale), (levels, scale / 3))
    both = np.stack([tokens, tokens[::-1]])[None]
    ours = fsq.decode_residual(torch.from_numpy(both), stages)
    np.testing.assert_array_equal(ours, jax_residual.decode(both, stages))
    np.testing.assert_array_equal(
        fsq.decode(torch.from_numpy(tokens), levels), jax_fsq.decode(jnp.asarray(tokens, jnp.int32), levels)
    )
    x = rng.normal(size=(2, 400, 6)).astype(np.float32)
    np.testing.assert_array_equal(fsq.encode_residual(torch.from_numpy(x), stages), jax_residual.encode(x, stages))
    # With random latents none lies so near a tie that the two tanh disagree about it.
    np.testing.assert_array_equal(fsq.encode(torch.from_numpy(x), levels), jax_fsq.encode(jnp.asarray(x), levels))


def test_infinite_huge_and_nan_latents():
    levels, top = (5, 9, 17, 6, 3, 4), math.prod((5, 9, 17, 6, 3, 4)) - 1
    for value, token in ((math.inf, top), (3e38, top), (-math.inf, 0), (-3e38, 0), (math.nan, 0)):
        latents = torch.full((1, 2, 6), value)
        assert (fsq.encode(latents, levels) == token).all()
        assert (fsq.encode_residual(latents, [(levels, 1.0)]) == token).all()


def test_rounding_is_straight_through():
    x = torch.randn(3, 4, 6, requires_grad=True)
    weight = torch.arange(72.0).reshape(3, 4, 6)
    codes = fsq.quantise(x, (17,) * 6)
    assert torch.equal(codes, fsq.decode(fsq.encode(x, (17,) * 6), (17,) * 6))
    (codes * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight * (1 - torch.tanh(x.detach()) ** 2))


def test_half_precision_latents_are_quantised_in_float32():
    x = torch.randn(2, 50, 6, dtype=torch.bfloat16)
    assert torch.equal(fsq.encode(x, (17,) * 6), fsq.encode(x.float(), (17,) * 6))


def test_presets_are_the_jax_sides():
    assert fsq.PRESETS == jax_residual.PRESETS
    assert fsq.parse("2x15625_700bps") == fsq.parse([([5] * 6, 1), ([5] * 6, 0.25)])


@pytest.mark.parametrize(
    "bad", ["train", None, [], [5], [([5] * 6,)], [([5.5] * 6, 1.0)], [([5], "x")], [([5], 1.0), ([5, 5], 1.0)]]
)
def test_what_is_no_bottleneck_is_refused(bad):
    with pytest.raises(ValueError, match="bottleneck"):
        fsq.parse(bad)


@pytest.mark.parametrize("bad", [[([1] * 6, 1.0)], [([], 1.0)], [([2**32] * 2, 1.0)], [([5], 0.0)], [([5], math.nan)]])
def test_impossible_stages_are_refused(bad):
    with pytest.raises(ValueError, match="FSQ"):
        fsq.parse(bad)


@pytest.mark.parametrize("token", [-1, 15625])
def test_foreign_tokens_are_refused(token):
    tokens = torch.zeros(1, 2, 3, dtype=torch.int64)
    tokens[0, 1, 2] = token
    with pytest.raises(ValueError, match=f"Codebook 1 .*{token}.* 0 to 15624"):
        fsq.decode_residual(tokens, fsq.PRESETS["2x15625_700bps"])
    with pytest.raises(ValueError, match=f"{token}.* 0 to 15624"):
        fsq.decode(tokens, (5,) * 6)
    with pytest.raises(ValueError, match=r"\[..., 1, frame\]"):
        fsq.decode_residual(tokens, fsq.PRESETS["1x46656_400bps"])
    with pytest.raises(ValueError, match="integers"):
        fsq.decode(tokens.float(), (5,) * 6)
    with pytest.raises(ValueError, match="4 dimensions"):
        fsq.encode(torch.zeros(2, 4), (5,) * 6)

import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.errors import UserError
from codec_jax.quantizers import fsq, residual_fsq

PRESETS = list(residual_fsq.PRESETS)
STAGES = [(name, i) for name in PRESETS for i in range(len(residual_fsq.PRESETS[name]))]


@pytest.fixture(scope="module")
def tables(golden):
    return golden("taae/fsq/tensors.safetensors")


def margin(x, stages):
    """Distance of the nearest decision boundary of any stage and dimension in level units, float64."""
    residual, smallest = np.tanh(x.astype(np.float64)), np.inf
    for levels, scale in stages:
        step = fsq.step_size(levels, scale).astype(np.float64)
        u = (residual + scale) / step
        smallest = np.minimum(smallest, np.abs(u - np.floor(u) - 0.5).min(-1))
        residual = residual - residual_fsq.stage_quantise(residual, levels, scale)[0]
    return smallest


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_stage_tables_are_upstreams(tables, name, stage):
    get = lambda key: tables[f"{name}/stage{stage}/{key}"][0]
    levels, scale = residual_fsq.PRESETS[name][stage]
    np.testing.assert_array_equal(fsq.step_size(levels, scale), tables[f"{name}/stage{stage}/half_l"])
    codes, indices = residual_fsq.stage_quantise(get("z"), levels, scale)
    top = np.asarray(levels) - 1
    digits = np.round((get("codes") + scale) / fsq.step_size(levels, scale).astype(np.float64))
    inside = np.all((digits >= 0) & (digits <= top), axis=-1)  # the tables go beyond the levels on purpose
    assert inside.sum() > 100
    np.testing.assert_array_equal(codes[inside], get("codes")[inside])
    np.testing.assert_array_equal(indices[inside], get("indices")[inside, 0])
    clipped = np.clip(digits, 0, top).astype(int) @ fsq.basis(levels)
    np.testing.assert_array_equal(indices, clipped)
    back = residual_fsq.decode(indices[inside][None, None], ((levels, scale),))
    np.testing.assert_array_equal(back[0], get("indices_to_codes")[inside])


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", PRESETS)
def test_tokens_and_decoded_latents_are_upstreams(tables, name, dtype):
    stages = residual_fsq.PRESETS[name]
    x = tables[f"{name}/{dtype}/x"].swapaxes(1, 2)
    expected = np.stack([tables[f"{name}/{dtype}/tokens{i}"][..., 0] for i in range(len(stages))], axis=1)
    ours = residual_fsq.encode(x, stages)
    assert ours.dtype == np.int32
    safe = margin(x, stages) > 1e-12  # float64 all the way
    assert safe.mean() > 0.5
    differs = (ours != expected).any(1)
    assert not differs[safe].any()
    assert differs.mean() < 0.02  # exact ties: tanh of NumPy and of torch differ in the last bit
    same = ~differs[0]
    decoded = residual_fsq.decode(ours, stages)
    np.testing.assert_array_equal(decoded[0][same], tables[f"{name}/{dtype}/decoded"][0].T[same])


@pytest.mark.parametrize("name", PRESETS)
def test_any_tokens_decode_as_upstream(tables, name):
    stages = residual_fsq.PRESETS[name]
    indices = tables[f"{name}/decode_only/idx"][..., 0]
    total = np.zeros((*indices.shape, 6), np.float32)
    for i, stage in enumerate(stages):
        codes = tables[f"{name}/decode_only/codes{i}"]
        np.testing.assert_array_equal(residual_fsq.decode(indices[:, None], (stage,)), codes)
        total = total + codes
    np.testing.assert_array_equal(residual_fsq.decode(np.stack([indices] * len(stages), 1), stages), total)


@pytest.mark.parametrize("model", ["A", "E"])
@pytest.mark.parametrize("name", PRESETS)
def test_model_tokens_are_upstreams(golden, model, name):
    stages, tensors = residual_fsq.PRESETS[name], golden(f"taae/{model}/tensors.safetensors")
    x = tensors["pre_bottleneck_latents"].swapaxes(1, 2)
    expected = [tensors[f"posthoc/{name}/tokens{i}"][..., 0] for i in range(len(stages))]
    ours = residual_fsq.encode(jnp.asarray(x), stages)
    assert margin(x, stages).min() > 1e-6
    np.testing.assert_array_equal(ours, np.stack(expected, axis=1))
    latents = tensors[f"posthoc/{name}/latents"].swapaxes(1, 2)
    np.testing.assert_array_equal(residual_fsq.decode(jnp.asarray(ours), stages), latents)


@pytest.mark.parametrize("name", PRESETS)
def test_whole_code_space_of_every_stage_is_its_own_fixed_point(name):
    for levels, scale in residual_fsq.PRESETS[name]:
        indices = np.arange(math.prod(levels), dtype=np.int32)
        codes = residual_fsq.decode(indices[None, None], ((levels, scale),))
        again = residual_fsq.stage_quantise(codes[0].astype(np.float64), levels, scale)[1]
        np.testing.assert_array_equal(again, indices)
        device = fsq.indices_to_codes(jnp.asarray(indices), levels, scale)
        np.testing.assert_array_equal(device, codes[0])  # host and device agree in every bit


@pytest.mark.parametrize("name", PRESETS)
def test_infinite_huge_and_nan_latents(name):
    stages = residual_fsq.PRESETS[name]
    for value, far in ((np.inf, 1), (3e38, 1), (-np.inf, -1), (-3e38, -1)):
        tokens = residual_fsq.encode(np.full((1, 2, 6), value, np.float32), stages)
        np.testing.assert_array_equal(residual_fsq.decode(tokens, stages), np.float32(far))
    tokens = residual_fsq.encode(np.full((1, 2, 6), np.nan), stages)
    assert (tokens == 0).all()


def test_stages_refine_and_any_float_dtype_is_taken(rng):
    x = rng.normal(size=(2, 300, 6)).astype(np.float32)
    for name in PRESETS:
        stages, target = residual_fsq.PRESETS[name], np.tanh(x)
        errors = []
        for count in range(1, len(stages) + 1):
            tokens = residual_fsq.encode(x, stages[:count])
            errors.append(np.abs(residual_fsq.decode(tokens, stages[:count]) - target).max())
            half_step = fsq.step_size(*stages[count - 1])[0] / 2
            assert errors[-1] <= half_step + 1e-6
        assert errors == sorted(errors, reverse=True)
    for narrow in (np.float16, ml_dtypes.bfloat16):
        np.testing.assert_array_equal(
            residual_fsq.encode(x.astype(narrow), stages),
            residual_fsq.encode(x.astype(narrow).astype(np.float64), stages),
        )


def test_inputs_are_left_alone(rng):
    x = rng.normal(size=(1, 5, 6))
    before = x.copy()
    tokens = residual_fsq.encode(x, residual_fsq.PRESETS["4x729_1000bps"])
    kept = tokens.copy()
    residual_fsq.decode(tokens, residual_fsq.PRESETS["4x729_1000bps"])
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(tokens, kept)


def test_parse():
    parse = residual_fsq.parse
    assert list(residual_fsq.PRESETS) == ["1x46656_400bps", "2x15625_700bps", "4x729_1000bps"]
    sizes = [residual_fsq.codebook_sizes(parse(name)) for name in PRESETS]
    assert [sum(25 * math.ceil(math.log2(n)) for n in stage) for stage in sizes] == [400, 700, 1000]
    assert parse([([5] * 6, 1.0), ([5] * 6, 0.25)]) == residual_fsq.PRESETS["2x15625_700bps"]
    stages = parse([(np.array([5, 7]), 1), ((3, 3), np.float32(0.5))])
    assert stages == (((5, 7), 1.0), ((3, 3), 0.5))
    assert parse(stages) == stages
    hash(stages)
    assert residual_fsq.codebook_sizes(stages) == (35, 9)


BAD = [
    "train",
    "",
    "1x46656",
    None,
    5,
    [],
    [5, 5],
    [([5] * 6,)],
    [([5.5] * 6, 1.0)],
    [("55", 1.0)],
    [([5] * 6, "x")],
]
BAD += [[([5] * 6, 10**400)], {"a": 1}, {"ab": 1}, [([5] * 6, None)]]


@pytest.mark.parametrize("bottleneck", BAD)
def test_what_is_no_bottleneck_is_refused_by_naming_the_presets(bottleneck):
    with pytest.raises(UserError, match=r'"1x46656_400bps", "2x15625_700bps", "4x729_1000bps"'):
        residual_fsq.parse(bottleneck)


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        ([([1] * 6, 1.0)], "at least 2"),
        ([([], 1.0)], "at least 2"),
        ([([65] * 6, 1.0)], r"2\^31"),
        ([([5] * 6, 0.0)], "scale"),
        ([([5] * 6, -1.0)], "scale"),
        ([([5] * 6, math.nan)], "scale"),
        ([([5] * 6, 1e-200)], "scale"),
        ([([5] * 6, 1.0), ([5] * 5, 0.25)], "dimensions"),
    ],
)
def test_impossible_stages_are_refused(stages, match):
    with pytest.raises(UserError, match=match):
        residual_fsq.parse(stages)


def test_decode_refuses_foreign_tokens():
    stages = residual_fsq.PRESETS["2x15625_700bps"]
    with pytest.raises(UserError, match=r"1 codebooks.* 2 stages"):
        residual_fsq.decode(np.zeros((1, 1, 3), np.int32), stages)
    for bad in (-1, 15625):
        tokens = np.zeros((1, 2, 3), np.int32)
        tokens[0, 1, 2] = bad
        with pytest.raises(UserError, match=f"Codebook 1 .*{bad}.* 0 to 15624"):
            residual_fsq.decode(tokens, stages)


@given(
    st.lists(st.integers(2, 20), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 2), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_tokens_stay_in_range_and_decode_for_any_stages(levels, scales, seed):
    stages = residual_fsq.parse([(levels, scale) for scale in scales])
    x = np.random.default_rng(seed).normal(size=(2, 9, len(levels))) * 10
    tokens = residual_fsq.encode(x, stages)
    assert tokens.shape == (2, len(scales), 9)
    assert (tokens >= 0).all()
    assert (tokens < np.array(residual_fsq.codebook_sizes(stages))[:, None]).all()
    assert residual_fsq.decode(tokens, stages).shape == x.shape

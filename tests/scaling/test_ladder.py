"""The ladder: every rung near what was asked for, counted exactly, and worth the FLOPs that the compiler counts."""

import dataclasses
import math
import pathlib

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec_jax import models
from codec_jax.errors import UserError
from codec_jax.experiment import load_config
from codec_jax.models import taae
from codec_jax.scaling import ladder
from tests import tiny

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
BASES = {
    "nano": load_config(f"{CONFIGS}/taae.py:nano"),
    "paper": load_config(f"{CONFIGS}/taae.py:1b"),
    "esc": load_config(f"{CONFIGS}/esc.py:base"),
}


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("30m", 30_000_000),
        ("0.1m", 100_000),
        ("2b", 2_000_000_000),
        ("300000", 300_000),
        ("1.5K", 1500),
        ("3e5", 300_000),
    ],
)
def test_sizes_are_read(text, size):
    assert ladder.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "30x", "-1m", "0", "nan", "1 m m"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="no number of parameters"):
        ladder.parse_size(text)


@given(st.integers(100, 5 * 10**9))
def test_a_name_says_the_size_within_five_per_cent(params):
    """Two digits and more; lower case, digits, no point, so that it can be part of any name."""
    name = ladder.size_name(params)
    assert name.isalnum()
    assert name == name.lower()
    assert ladder.parse_size(name) == pytest.approx(params, rel=0.0501)


# ---- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "low", "high", "worst"),
    [("paper", 1e6, 2e9, 0.10), ("nano", 1e6, 2e9, 0.11), ("nano", 1e5, 1e6, 0.18), ("esc", 1e6, 2e9, 0.05)],
)
def test_how_far_a_rung_may_miss(base, low, high, worst):
    """Over the whole ladder, by the rule's own count, which the next test holds to be exact."""
    experiment, family = BASES[base], BASES[base].family
    shapes = {"taae": ladder._taae_shapes, "esc": ladder._esc_shapes}[family]

    def score(shape, asked):
        return abs(math.log(shape[3] / asked)) + 0.1 * abs(math.log(shape[1] / shape[2] / ladder.ASPECT[family]))

    for asked in map(float, np.geomspace(low, high, 12 if family == "esc" else 60)):
        chosen = min(shapes(experiment.codec, asked, None), key=lambda shape: score(shape, asked))
        assert abs(chosen[3] / asked - 1) <= worst, asked


@pytest.mark.parametrize(
    ("base", "asked"), [("nano", 1e5), ("nano", 5e6), ("paper", 3e7), ("paper", 2e9), ("esc", 1e7)]
)
def test_counts_are_those_of_the_parameters(base, asked):
    """What initialising gives, and, of the rule's own formula, the same."""
    rung = ladder.rung(BASES[base], int(asked))
    family, codec = models.FAMILIES[rung.experiment.family], rung.experiment.codec
    shapes = jax.eval_shape(lambda: nn.unbox(family.init(codec, jax.random.key(0)))["params"])
    assert rung.params == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    formula = ladder._taae_parameters(codec.model) if base != "esc" else ladder._esc_parameters(codec)
    assert rung.params == formula
    assert abs(rung.miss) < 0.1
    assert rung.miss == rung.params / asked - 1


def test_the_papers_billion_is_a_rung():
    """Its aspect is the rule's: the shape is found again from the number alone."""
    model = ladder.rung(BASES["paper"], 953_319_756).experiment.model
    assert (model.channels, model.transformer_depths) == (1024, (8, 20))


@pytest.mark.parametrize("base", ["nano", "paper"])
def test_a_rung_changes_width_and_depth_alone(base):
    experiment = ladder.resize(BASES[base], 3_000_000)
    model = dataclasses.replace(
        experiment.model, channels=BASES[base].model.channels, transformer_depths=BASES[base].model.transformer_depths
    )
    assert dataclasses.replace(experiment, model=model) == BASES[base]


@pytest.mark.parametrize(
    ("asked", "base"), [(1.3e5, "nano"), (7e5, "nano"), (1.4e6, "paper"), (6e6, "paper"), (7e8, "paper")]
)
def test_widths_are_upstreams(asked, base):
    """One head below 128, heads of 128 from there on; valid as they are."""
    experiment = ladder.resize(BASES[base], round(asked))
    experiment.validate()
    width = experiment.model.channels
    assert width % 8 == 0 if width < 128 else width % 128 == 0


def test_a_depth_of_ones_own():
    """Twelve layers a half, spread as in the paper, and the width to fit."""
    rung = ladder.rung(BASES["paper"], 30_000_000, layers=12)
    assert (rung.layers, rung.experiment.model.transformer_depths, rung.width) == (12, (3, 9), 256)
    flat = ladder.rung(BASES["paper"], 30_000_000, layers=3)
    assert flat.width > rung.width
    assert flat.experiment.model.transformer_depths == (1, 2)


@given(st.integers(2, 60), st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_layers_are_spread_in_proportion(total, shares):
    if total < len(shares):
        with pytest.raises(ValueError, match="layers for"):
            ladder.spread_layers(total, tuple(shares))
        return
    found = ladder.spread_layers(total, tuple(shares))
    assert sum(found) == total
    assert min(found) >= 1
    if min(total * share / sum(shares) for share in shares) >= 1:  # nobody had to be helped to a first layer
        assert all(abs(n - total * share / sum(shares)) < 1 for n, share in zip(found, shares))


def test_other_shapes_are_counted_too():
    """A conformer is in no formula: what was asked for is still met, by counting."""
    base = tiny.changed(BASES["nano"], model=tiny.changed(BASES["nano"].model, conformer=True))
    rung = ladder.rung(base, 3_000_000)
    assert abs(rung.miss) < 0.1
    assert rung.params == ladder.parameters(rung.experiment) > ladder._taae_parameters(rung.experiment.model)


def test_the_esc_rule():
    """Blocks in pairs, heads as many as upstream's, all widths by about one factor."""
    rung = ladder.rung(BASES["esc"], 100_000_000)
    model, base = rung.experiment.model, BASES["esc"].model
    assert model.depth % 2 == 0
    assert model.num_heads == base.num_heads
    factors = [ours / theirs for ours, theirs in zip(model.h_dims, base.h_dims)]
    assert max(factors) / min(factors) < 1.15


@pytest.mark.parametrize("variant", ["taae.py:ladder-1m", "taae.py:ladder-30m-d12", "esc.py:ladder-10m"])
def test_shipped_variants(variant):
    experiment = load_config(f"{CONFIGS}/{variant}")
    assert ladder.bitrate(experiment) == (625 if experiment.family == "taae" else 9000)


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [
        ("taae.py:ladder-x", "no rung"),
        ("taae.py:ladder-30m-w12", "no rung"),
        ("taae.py:ladder-1m-d1", "2 layers at least"),
        ("esc.py:ladder-10m-d3", "even number"),
        ("taae.py:ladder-10", "no shape of this taae"),
        ("taae.py:ladder-900b", "no shape of this taae"),
    ],
)
def test_bad_rungs(variant, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config(f"{CONFIGS}/{variant}")


# ---- FLOPs -------------------------------------------------------------------------------------


def compiled_flops(experiment, gradient):
    """The compiler's count of the codec on one crop, layers written out, as it is traced for this CPU."""
    model = dataclasses.replace(experiment.model, unroll=True, dtype="float32", remat="none")
    cfg = dataclasses.replace(experiment, model=model).codec
    params = jax.eval_shape(lambda: nn.unbox(taae.init(cfg, jax.random.key(0)))["params"])

    def heard(params, audio):
        variables = {"params": params}
        return taae.synthesise(cfg, variables, taae.analyse(cfg, variables, audio)).sum()

    audio = jax.ShapeDtypeStruct((1, experiment.crop_samples, 1), jnp.float32)
    function = jax.value_and_grad(heard) if gradient else heard
    return jax.jit(function).lower(params, audio).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("base", "asked", "layers", "seconds", "within"),
    [
        ("nano", 5e6, 2, 0.25, 0.02),  # 256 wide
        pytest.param("nano", 5e6, None, 0.5, 0.035, marks=pytest.mark.slow),  # 128 wide
        pytest.param("nano", 1e7, None, 0.5, 0.02, marks=pytest.mark.slow),
        pytest.param("paper", 1e7, None, 5.12, 0.02, marks=pytest.mark.slow),
    ],
)
def test_flops_are_the_compilers(base, asked, layers, seconds, within):
    """Within 2 % from a width of 256 on. The compiler also counts what works element by element, 2.6 / width of it."""
    experiment = ladder.resize(BASES[base], int(asked), layers)
    experiment = dataclasses.replace(experiment, data=tiny.changed(experiment.data, crop_seconds=seconds))
    work = ladder.work(experiment)
    assert work.forward * seconds == pytest.approx(compiled_flops(experiment, False), rel=within)
    assert (work.forward + work.backward) * seconds == pytest.approx(compiled_flops(experiment, True), rel=within)


@pytest.mark.parametrize(("base", "asked"), [("nano", 1e5), ("nano", 1e6), ("paper", 1e6)])
def test_products_of_narrow_rungs(base, asked):
    """Of narrow models the products alone, which are what a law's FLOPs mean, in JAX's own program of the gradient."""
    experiment = ladder.resize(BASES[base], int(asked))
    cfg = dataclasses.replace(experiment, model=tiny.changed(experiment.model, remat="none")).codec
    params = jax.eval_shape(lambda: nn.unbox(taae.init(cfg, jax.random.key(0)))["params"])

    def heard(params, audio):
        variables = {"params": params}
        return taae.synthesise(cfg, variables, taae.analyse(cfg, variables, audio)).sum()

    audio = jax.ShapeDtypeStruct((1, experiment.crop_samples, 1), jnp.float32)
    program = jax.make_jaxpr(jax.grad(heard))(params, audio)
    work, seconds = ladder.work(experiment), experiment.crop_samples / 16_000
    assert (work.forward + work.backward) * seconds == pytest.approx(products(program.jaxpr), rel=0.02)


def products(jaxpr):
    """FLOPs of matrix products and convolutions; the body of a scan as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, shapes = (
            equation.primitive.name,
            [v.aval.shape for v in (*equation.invars, *equation.outvars) if hasattr(v, "aval")],
        )
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2.0 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            kernel = shapes[1]
            total += 2.0 * math.prod(shapes[-1]) * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        else:
            times = equation.params.get("length", 1) if name == "scan" else 1
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                total += times * products(inner)
    return total


def test_what_a_second_costs():
    """The whole step is more than the codec, a longer run of more stages no different, and backward about twice forward."""
    work = ladder.work(BASES["nano"])
    assert work.step > work.forward + work.backward
    assert work.backward == pytest.approx(2 * work.forward, rel=0.03)
    longer = tiny.changed(BASES["nano"], training=tiny.changed(BASES["nano"].training, steps=10_000))
    assert ladder.work(longer) == pytest.approx(work)
    assert ladder.work(BASES["nano"], "tpu").step != work.step  # transforms as matrix products

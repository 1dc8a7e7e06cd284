"""µP: roles of all parameters, nothing at the base width, and activations that do not move with the width."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax import experiment as experiments
from codec_jax.errors import UserError
from codec_jax.experiment import LossConfig, MupConfig, OptimConfig
from codec_jax.models.taae import BottleneckConfig
from codec_jax.scaling import mup as check
from codec_jax.train import mup, optim, stages, state
from tests import tiny, tiny_esc


def experiment(channels=32, base=16, **fields):
    plain = tiny.experiment()
    model = tiny.changed(tiny.MODEL, channels=channels)
    return dataclasses.replace(plain, model=model, mup=MupConfig(base), **fields)


def by_name(config):
    factors = mup.factors(config)
    return dict(zip(mup._leaves(config), zip(factors.initial, factors.rate)))


def test_roles():
    """Twice the base's width: every kind of parameter by hand, Tensor Programs V Table 3 for Adam."""
    found = by_name(experiment())
    half, root = 0.5, 0.5**0.5
    block = "encoder/stage_0/transformer/blocks"
    expected = {
        "encoder/conv_in/v": (1, 1),  # from a patch: input
        "encoder/conv_in/g": (1, 1),
        "decoder/conv_in/v": (1, 1),  # from latents
        "encoder/conv_out/v": (root, half),  # to latents: output
        "encoder/conv_out/g": (root, root),
        "decoder/conv_out/v": (root, half),  # to a patch
        "decoder/conv_out/g": (root, root),
        "encoder/stage_1/resample/v": (1, half),  # hidden
        "encoder/stage_1/resample/g": (1, 1),
        "decoder/stage_1/resample/v": (1, half),
        f"{block}/self_attn/to_qkv/kernel": (1, half),
        f"{block}/self_attn/to_out/kernel": (1, half),
        f"{block}/ff/proj/kernel": (1, half),
        f"{block}/ff/out/kernel": (1, half),
        f"{block}/ff/proj/bias": (1, 1),
        f"{block}/pre_norm/scale": (1, 1),
        f"{block}/self_attn_scale/scale": (1, 1),
        f"{block}/self_attn/q_norm/scale": (1, 1),  # heads as wide as the base's
    }
    for name, factors in expected.items():
        assert found[name] == pytest.approx(factors), name
    assert len(found) == len(jax.tree.leaves(state_of(experiment()).players["codec"].params))


def state_of(config):
    (stage,) = stages.resolve(config)
    return jax.eval_shape(lambda: nn.unbox(state.init(config, stage)))


def test_narrow_heads_start_sharper():
    """One head of 32 instead of 64: logits of normed queries and keys over its root, and over its width in µP."""
    base = experiment(32, 64)
    base = dataclasses.replace(base, model=tiny.changed(base.model, head_dim=128))
    found = by_name(base)
    assert found["encoder/stage_0/transformer/blocks/self_attn/q_norm/scale"] == pytest.approx((2**0.5, 1))
    assert found["encoder/stage_0/transformer/blocks/self_attn/k_norm/scale"] == (1, 1)


def test_at_its_own_width_nothing_changes():
    factors = mup.factors(experiment(16, 16))
    assert set(factors.initial) == set(factors.rate) == {1.0}
    assert mup.factors(tiny.experiment()) is None


def test_initial_values_are_scaled():
    """The state of a run: output layers start smaller, all else as without."""
    config = experiment()
    (stage,) = stages.resolve(config)
    build = lambda c: nn.unbox(state.init(c, stage)).players["codec"]
    # Not jitted: fused with the factor, the draw's own product and sum may round otherwise.
    ours, plain = build(config), build(dataclasses.replace(config, mup=MupConfig()))
    for module in ("encoder", "decoder"):
        for name in ("v", "g"):
            a, b = ours.params[module]["conv_out"][name], plain.params[module]["conv_out"][name]
            np.testing.assert_allclose(a, b * 0.5**0.5, rtol=1e-6)
    np.testing.assert_array_equal(ours.params["encoder"]["conv_in"]["v"], plain.params["encoder"]["conv_in"]["v"])
    np.testing.assert_array_equal(ours.ema["encoder"]["conv_out"]["g"], ours.params["encoder"]["conv_out"]["g"])


def test_steps_are_scaled_and_decay_is_not():
    params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(3)}}
    grads = jax.tree.map(jnp.ones_like, params)
    config = OptimConfig(weight_decay=0.25)
    moved = []
    for rates in (None, (0.5, 1.0)):
        transform = optim.optimizer(config, rates)
        moved.append(transform.update(grads, transform.init(params), params)[0])
    plain, ours = moved
    np.testing.assert_allclose(plain["a"]["kernel"], 1.25, rtol=1e-5)
    np.testing.assert_allclose(ours["a"]["kernel"], 0.75, rtol=1e-5)
    np.testing.assert_allclose(ours["b"]["kernel"], plain["b"]["kernel"])


@pytest.mark.slow
def test_the_coordinate_check():
    """What three updates change in every layer's output: grows with the width without µP, and not with it.

    Heads as wide as the base's throughout. Below zero, exponents come from what starts smaller in output layers.
    """
    base = dataclasses.replace(
        tiny.experiment(),
        model=tiny.changed(tiny.MODEL, channels=32, head_dim=32),
        losses=LossConfig(l1=0.0, l2=1.0, stft=0.0),
        optim=OptimConfig(learning_rate=3e-3, ema_decay=0.0, clip_norm=1e9),
        data=tiny.changed(tiny.experiment().data, batch_size=4),
    )
    plain, ours = (check.slopes(check.coordinate_check(e, (32, 128), 3)) for e in (base, check.with_mup(base)))
    assert plain.keys() == ours.keys()
    assert sum("conv" in name or "resample" in name for name in ours) == 6
    assert max(ours.values()) < 0.2, ours
    assert np.mean(list(plain.values())) > np.mean(list(ours.values())) + 0.5
    assert np.mean([slope > 0.25 for slope in plain.values()]) > 0.7


def test_slopes():
    """Of exact powers, exactly."""
    found = {w: {"a": 3.0 * w**0.5, "b": 2.0} for w in (8, 32, 128)}
    assert check.slopes(found) == pytest.approx({"a": 0.5, "b": 0.0}, abs=1e-9)


def test_configs_carry_it():
    config = experiment()
    config.validate()
    assert experiments.from_dict(json.loads(experiments.to_json(config))) == config
    older = experiments.to_dict(config)
    del older["mup"]
    assert experiments.from_dict(older).mup == MupConfig()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (experiment(base=10), "no width of this model"),
        (experiment(bottleneck=BottleneckConfig("residual_vq", codebook_dim=2)), "without learned codebooks"),
        (experiment(optim=OptimConfig(name="sgd")), "steps of Adam"),
        (dataclasses.replace(tiny_esc.experiment(), mup=MupConfig(8)), "without learned codebooks"),
    ],
)
def test_what_it_is_not_for(config, sentence):
    with pytest.raises(UserError, match=sentence):
        config.validate()

"""Parity of ESC's discriminators with upstream: feature maps, both players' losses, every gradient."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from codec_jax.convert.discriminators import dac_config, discriminator_from_torch, discriminator_to_torch, leaves
from codec_jax.errors import UserError
from codec_jax.experiment import LossConfig
from codec_jax.losses import adversarial
from codec_jax.models import discriminators
from codec_jax.models.discriminators import DACDiscriminatorConfig
from codec_jax.train import objective
from tests.parity.esc_cases import by_upstreams_name, relative

SET = "esc/disc_small"
LOSSES = LossConfig(l1=0.0, stft=0.0, adversarial=1.0, feature_matching=2.0, gan="least_squares")


@pytest.fixture(scope="module")
def case(golden):
    """Config, upstream's state_dict, golden tensors, and what its meta.json tells."""
    state = golden(f"{SET}/model.safetensors")
    meta = json.loads((golden.path(SET) / "meta.json").read_text())
    return dac_config(meta["config"], state), state, golden(f"{SET}/golden.safetensors"), meta


@pytest.fixture(scope="module")
def judged(case):
    """Judgements by all of the two clips of fake audio, behind them the two of real audio; losses of either pair."""
    cfg, state, tensors, _ = case
    game = adversarial.GAMES["least_squares"]

    def judge(params, audio):
        judgements = discriminators.judge_all(cfg, params, audio)
        losses = []
        for clip in range(2):
            fake, real = (jax.tree.map(lambda x, at=at: x[at], judgements) for at in (clip, clip + 2))
            pairs = list(zip(real, fake))
            losses.append(
                {
                    "gen_loss": sum(game.generator(f.logits) for f in fake),
                    "disc_loss": sum(game.discriminator(r.logits, f.logits) for r, f in pairs),
                    "feat_loss": sum(adversarial.feature_distance(r.features, f.features) for r, f in pairs),
                }
            )
        return judgements, losses

    audio = np.concatenate([tensors["fake"], tensors["real"]])[..., None]
    return jax.tree.map(np.asarray, jax.jit(judge)(discriminator_from_torch(state, cfg), audio))


def verdict(case, cfg):
    """Of fake against real audio, as a training step asks for it."""
    _, state, tensors, _ = case
    params = discriminator_from_torch(state, case[0])
    own = {name: params[name] for name in discriminators.judges(cfg)}
    quick = {"xla_backend_optimization_level": 0}  # compiles in half the time
    judge = jax.jit(
        lambda params, real, fake: objective.judge(cfg, params, LOSSES, real, fake, train=True), compiler_options=quick
    )
    return judge(own, tensors["real"][..., None], tensors["fake"][..., None])


def test_the_config_is_read_off_yaml_and_tensors(case):
    cfg, state, _, meta = case
    widths = {"period_widths": (2, 8, 32, 64, 64), "band_width": 2}
    assert cfg == DACDiscriminatorConfig(periods=(2, 3, 5), fft_sizes=(512, 256, 128), **widths)
    with pytest.raises(UserError, match="rates"):
        dac_config({**meta["config"], "rates": [2]}, state)
    with pytest.raises(UserError, match="colour"):
        dac_config({**meta["config"], "colour": 1}, state)
    with pytest.raises(UserError, match=r"no tensor discriminators\.0\.convs\.0\.0\.bias"):
        dac_config(meta["config"], {})


def test_feature_maps_and_logits(case, judged):
    cfg, _, tensors, _ = case
    compared = 0
    for number, (name, judgement) in enumerate(zip(discriminators.judges(cfg), judged[0])):
        axes = (0, 3, 2, 1) if name.startswith("period") else (0, 3, 1, 2)  # to [batch, channel, frame, phase or bin]
        for i, ours in enumerate((*judgement.features, judgement.logits)):
            theirs = tensors[f"fmap.{number}.{i}"]
            ours = np.transpose(ours[: len(theirs)], axes)
            assert ours.shape == theirs.shape
            assert relative(ours, theirs) < 1e-4, (name, i)
            compared += 1
    assert compared == sum(name.startswith("fmap") for name in tensors)


def test_losses_of_every_clip(case, judged):
    for clip, losses in enumerate(judged[1]):
        for name, value in losses.items():
            np.testing.assert_allclose(value, case[3][name][clip], rtol=1e-4, err_msg=name)


def compare_gradients(case, golden, grads):
    recorded = golden(f"{SET}/grads.safetensors")
    ours = by_upstreams_name([leaf for leaf in leaves(case[0]) if leaf.path[0] in grads], grads)
    for name, (leaf, array) in ours.items():
        assert relative(array, leaf.to_jax(recorded[f"disc_grad:{name}"])) < 1e-4, name
    return len(ours), len(recorded)


def test_gradients_of_one_judge_of_either_sort(case, golden):
    """They are sums over judges, so two judges alone have those that they have among six."""
    cfg = dataclasses.replace(case[0], periods=(3,), fft_sizes=(128,))
    found = verdict(case, cfg)
    assert compare_gradients(case, golden, found.grads) == (18 + 78, 288)


@pytest.mark.slow
def test_a_whole_verdict(case, golden):
    found = verdict(case, case[0])
    assert compare_gradients(case, golden, found.grads) == (288, 288)
    assert relative(found.audio_gradient[..., 0], case[2]["grad_(gen+2feat).mean_wrt_fake"]) < 1e-4
    for ours, theirs in {"adversarial": "gen_loss", "feature_matching": "feat_loss", "d_loss": "disc_loss"}.items():
        np.testing.assert_allclose(found.terms[ours], np.mean(case[3][theirs]), rtol=1e-4, err_msg=ours)


def test_there_and_back_again(case):
    cfg, state, _, _ = case
    again = discriminator_to_torch(cfg, discriminator_from_torch(state, cfg))
    assert again.keys() == state.keys()
    for name, array in again.items():
        assert array.dtype == state[name].dtype == np.float32
        np.testing.assert_array_equal(array.view(np.int32), state[name].view(np.int32), err_msg=name)


def test_the_full_discriminators_are_upstreams():
    """Spec ESC section 6 and appendix B: 42,519,760 parameters."""
    shapes = {name: leaf.shape for leaf in leaves(DACDiscriminatorConfig()) for name in leaf.names}
    assert sum(np.prod(shape) for shape in shapes.values()) == 42_519_760
    assert shapes["discriminators.4.convs.4.0.weight_v"] == (1024, 1024, 5, 1)
    assert shapes["discriminators.7.band_convs.4.4.0.weight_v"] == (32, 32, 3, 3)
    fresh = jax.eval_shape(lambda: discriminators.init(DACDiscriminatorConfig(), jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(fresh)) == 42_519_760

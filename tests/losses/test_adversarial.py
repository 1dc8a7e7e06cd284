"""Adversarial losses: worked by hand, and with their gradients against upstream on the golden sets."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.convert.discriminators import discriminator_from_torch
from codec_jax.losses import adversarial
from codec_jax.models import discriminators


def test_hinge_by_hand():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.0])
    np.testing.assert_allclose(adversarial.hinge_discriminator(real, fake), (0 + 0.5) / 2 + (0 + 1) / 2)
    np.testing.assert_allclose(adversarial.hinge_generator(fake), 1.5)


def test_least_squares_by_hand():
    real, fake = jnp.array([[2.0, 0.5], [1.0, -1.0]]), jnp.array([[-3.0, 0.0], [0.5, 1.0]])
    wanted = (1 + 0.25 + 0 + 4) / 4 + (9 + 0 + 0.25 + 1) / 4
    np.testing.assert_allclose(adversarial.least_squares_discriminator(real, fake), wanted, rtol=1e-6)
    np.testing.assert_allclose(adversarial.least_squares_generator(fake), (16 + 1 + 0.25 + 0) / 4, rtol=1e-6)
    undecided = jnp.full((3, 2), adversarial.GAMES["least_squares"].boundary)
    assert adversarial.least_squares_discriminator(undecided, undecided) == 0.5


def test_feature_distance_is_a_plain_sum():
    real, fake = [jnp.array([1.0, -3.0]), jnp.full((2, 2), 10.0)], [jnp.array([2.0, -3.0]), jnp.zeros((2, 2))]
    np.testing.assert_allclose(adversarial.feature_distance(real, fake), 0.5 + 10, rtol=1e-6)


def test_feature_matching_by_hand():
    real, fake = [jnp.array([1.0, -3.0]), jnp.full((2, 2), 10.0)], [jnp.array([2.0, -3.0]), jnp.zeros((2, 2))]
    plain = adversarial.feature_matching(real, fake, normalize=False)
    np.testing.assert_allclose(plain, (0.5 + 10) / 2, rtol=1e-6)
    normalized = adversarial.feature_matching(real, fake, normalize=True)
    np.testing.assert_allclose(normalized, (0.5 / 2.001 + 10 / 10.001) / 2, rtol=1e-6)


def test_scales_count_alike_whatever_their_size():
    small = discriminators.Judgement(jnp.full((1, 2, 2, 1), 1.0), (jnp.zeros((1, 2, 2, 3)),))
    large = discriminators.Judgement(jnp.full((1, 9, 9, 1), 3.0), (jnp.zeros((1, 9, 9, 3)),))
    np.testing.assert_allclose(adversarial.generator_loss([small, large]), -2.0)
    np.testing.assert_allclose(adversarial.discriminator_loss([small, large], [small, large]), (2 + 4) / 2)
    assert adversarial.feature_matching_loss([small, large], [small, large], normalize=True) == 0


def test_bfloat16_maps_are_averaged_in_float32():
    real = jnp.ones((1000, 1000), jnp.bfloat16)
    loss = adversarial.feature_matching([real], [real * 0], normalize=False)
    assert loss.dtype == jnp.float32
    assert loss == 1


@pytest.fixture(scope="module", params=("A", "E"))
def case(request, golden):
    """Discriminator's config, golden tensors, and ({name: loss}, gradient) under "" and under "train/".

    The first run's clips are repeated to the second's batch, which changes no mean and saves a compilation.
    """
    meta = json.loads((golden.path(f"taae/{request.param}") / "meta.json").read_text())["discriminator"]
    normalize = meta.pop("normalize_losses")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in meta.items()}
    cfg = discriminators.DiscriminatorConfig(**fields)
    tensors = golden(f"taae/{request.param}/tensors.safetensors")

    def losses(params, x, y):
        real, fake = (discriminators.judge_all(cfg, params, audio) for audio in (x, y))
        disc = adversarial.discriminator_loss(real, fake)
        fm = adversarial.feature_matching_loss(real, fake, normalize=normalize)
        return disc, {"disc": disc, "adv": adversarial.generator_loss(fake), "fm": fm}

    step = jax.jit(jax.grad(losses, has_aux=True))
    params = discriminator_from_torch(under("disc_sd/", tensors), cfg)
    batch, runs = len(tensors["train/input"]), {}
    for prefix in ("", "train/"):
        pair = [tensors[f"{prefix}{name}"].swapaxes(1, 2) for name in ("input", "decoded")]
        gradient, terms = step(params, *(np.tile(x, (batch // len(x), 1, 1)) for x in pair))
        runs[prefix] = terms, jax.tree.map(np.asarray, gradient)
    return cfg, tensors, runs


def under(prefix, tensors):
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_losses_are_upstreams(case, prefix):
    _, tensors, runs = case
    for name, value in runs[prefix][0].items():
        np.testing.assert_allclose(value, tensors[f"{prefix}loss/{name}"], rtol=1e-4, err_msg=name)


def test_discriminator_gradients_are_upstreams(case):
    cfg, tensors, runs = case
    theirs = discriminator_from_torch(under("grad_disc/", tensors), cfg)
    for scale, convs in theirs.items():
        for conv, kinds in convs.items():
            for kind, want in kinds.items():
                size = np.abs(want).max()
                if (conv, kind) == ("conv_post", "bias"):
                    # The real side's -1 and the fake side's +1 cancel wherever no logit is past the margin,
                    # so what is left is roundoff, or nearly: compare with one side's share.
                    size = 1 / len(theirs)
                error = np.abs(runs[""][1][scale][conv][kind] - want).max() / size
                assert error < 1e-3, (scale, conv, kind)

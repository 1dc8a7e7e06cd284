"""The distance of features against the formula of the spec in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from codec_jax.losses import perceptual


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_formula_and_gradient():
    real, fake = ({-1: draw(seed, 2, 7, 5), 3: 4 * draw(seed + 2, 2, 7, 6) + 1} for seed in (0, 1))
    theirs = {layer: torch.tensor(x, requires_grad=True) for layer, x in fake.items()}
    wanted = sum(
        (theirs[layer] - torch.tensor(x)).abs().mean() / (torch.tensor(x).std() + 1e-5) for layer, x in real.items()
    ) / len(real)
    wanted.backward()
    ours = {layer: jnp.asarray(x) for layer, x in fake.items()}
    heard = {layer: jnp.asarray(x) for layer, x in real.items()}
    found, (to_real, to_fake) = jax.value_and_grad(perceptual.feature_distance, (0, 1))(heard, ours)
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-6)
    for layer in real:
        np.testing.assert_allclose(to_fake[layer], theirs[layer].grad, rtol=1e-5, atol=1e-8)
        assert not np.any(to_real[layer])


def test_levels_of_a_batch_are_one():
    audio = 0.01 * draw(3, 2, 100) + np.array([[0.5], [0.0]], np.float32)
    wanted = torch.nn.functional.layer_norm(torch.tensor(audio), audio.shape)
    np.testing.assert_allclose(perceptual.levelled(jnp.asarray(audio)), wanted, atol=1e-5)

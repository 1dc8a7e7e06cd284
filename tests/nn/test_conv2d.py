"""ESC's convolutions against torch.nn, in value and running statistics, and that none looks ahead."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from codec_jax.nn import conv2d


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def to_torch(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("scale", [None, "down", "up"])
@pytest.mark.parametrize("rows", [6, 7])
def test_torch_agrees_after_its_crops(scale, rows):
    x = noise(2, rows, 5, 3)
    module = conv2d.Convolution(4, scale)
    params = nn.unbox(module.init(jax.random.key(0), x))["params"]
    kernel = torch.tensor(np.asarray(params["kernel"]))
    bias = torch.tensor(np.asarray(params["bias"]))
    if scale == "up":
        want = torch.nn.functional.conv_transpose2d(to_torch(x), kernel.permute(2, 3, 0, 1), bias, (2, 1), (1, 0))
        want = want[:, :, : 2 * rows, :5]
    else:
        strides = (2, 1) if scale else (1, 1)
        want = torch.nn.functional.conv2d(to_torch(x), kernel.permute(3, 2, 0, 1), bias, strides, (2, 1))
        want = want[:, :, : rows // 2 if scale else rows, :5]
    y = module.apply({"params": params}, x)
    np.testing.assert_allclose(y, want.permute(0, 2, 3, 1), atol=1e-5)
    later = x.at[:, :, 3:].set(9)
    np.testing.assert_array_equal(module.apply({"params": params}, later)[:, :, :3], y[:, :, :3])


def test_batch_norm_is_torchs():
    x = noise(2, 3, 5, 4) * 3 + 1
    module, theirs = conv2d.BatchNorm(), torch.nn.BatchNorm2d(4)
    variables = nn.unbox(module.init(jax.random.key(0), x, True))
    assert not np.asarray(variables["batch_stats"]["mean"]).any()  # initialising is no step
    for step in range(2):
        fed = x + step
        y, moved = module.apply(variables, fed, True, mutable=["batch_stats"])
        want = theirs(to_torch(fed)).permute(0, 2, 3, 1).detach()
        np.testing.assert_allclose(y, want, atol=1e-5)
        variables = {**variables, **moved}
    np.testing.assert_allclose(variables["batch_stats"]["var"], theirs.running_var.numpy(), rtol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], theirs.running_mean.numpy(), rtol=1e-5)
    theirs.eval()
    want = theirs(to_torch(x)).permute(0, 2, 3, 1).detach()
    np.testing.assert_allclose(module.apply(variables, x), want, atol=1e-5)


def test_prelu_and_remat():
    x = noise(1, 4, 5, 3)
    slope = {"params": {"slope": jnp.array([0.25])}}
    np.testing.assert_allclose(conv2d.PReLU().apply(slope, x), np.where(x > 0, x, 0.25 * x))
    stages = [conv2d.ConvStage(1, 4, "down", remat) for remat in ("none", "full")]
    variables = nn.unbox(stages[0].init(jax.random.key(0), x, None, True))
    outs = [stage.apply(variables, x, None, True, mutable=["batch_stats"]) for stage in stages]
    np.testing.assert_allclose(outs[0][0], outs[1][0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), outs[0][1], outs[1][1])

"""GELU against PyTorch, in value and slope, and in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from codec_jax.ops.gelu import gelu


def test_as_pytorch_has_it():
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, 50, -50]]).astype(np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.gelu(theirs)
    y.sum().backward()
    np.testing.assert_allclose(gelu(jnp.asarray(x)), y.detach(), atol=1e-6, rtol=2e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.asarray(x)), theirs.grad, atol=1e-6, rtol=1e-6)


def test_half_precision_rounds_once():
    x = jnp.linspace(-6, 6, 1001, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))

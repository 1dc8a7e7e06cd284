"""CTC against PyTorch, golden values and hand-made cases; error rates against their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.losses import ctc
from codec_jax.models import phone_head

PHONES = st.lists(st.integers(0, 3), max_size=6)


def padded(targets, blank, most=8):
    return np.stack([np.pad(np.asarray(t, np.int32), (0, most - len(t)), constant_values=blank + 1) for t in targets])


@pytest.fixture(scope="module")
def recorded(golden):
    """Head, latents, logits, targets (the last one infeasible), loss, gradient and error rate of upstream."""
    return {k.removeprefix("ctc/"): v for k, v in golden("taae/misc/tensors.safetensors").items() if k[:4] == "ctc/"}


def upstreams_head(recorded):
    names = zip(("linear_1", "linear_2", "linear_3"), (1, 3, 5))
    return {
        name: {
            "kernel": recorded[f"head/proj_head.{i}.weight"].T,
            "bias": recorded[f"head/proj_head.{i}.bias"],
        }
        for name, i in names
    }


def test_upstreams_head_loss_gradient_and_error_rate(recorded):
    targets = [recorded[f"target{i}"] for i in range(3)]
    head, phones = upstreams_head(recorded), jnp.asarray(padded(targets, 80, most=max(map(len, targets))))
    latents = jnp.asarray(recorded["latents"]).swapaxes(1, 2)

    def loss(latents):
        logits = phone_head.logits(head, latents)
        return ctc.ctc_loss(logits, phones), logits

    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(latents)
    np.testing.assert_allclose(logits, recorded["logits"], atol=1e-4 * np.abs(recorded["logits"]).max())
    np.testing.assert_allclose(value, recorded["loss"], rtol=1e-4)
    theirs = recorded["grad_latents"].swapaxes(1, 2)
    np.testing.assert_allclose(gradient, theirs, atol=1e-4 * np.abs(theirs).max())
    assert not np.any(gradient[2])
    rate = ctc.phone_error_rate(list(np.asarray(logits)), targets)
    assert rate == pytest.approx(float(recorded["per"]), rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(PHONES, min_size=3, max_size=3), st.integers(0, 2**31))
def test_loss_and_gradient_as_pytorch(targets, seed):
    """Empty, repeated and infeasible targets too."""
    logits = np.random.default_rng(seed).normal(size=(3, 5, 5)).astype(np.float32)
    theirs = torch.tensor(logits, requires_grad=True)
    phones = padded(targets, 4)
    loss = torch.nn.functional.ctc_loss(
        theirs.log_softmax(-1).transpose(0, 1),
        torch.tensor(np.where(phones > 4, 0, phones)),
        torch.full((3,), 5),
        torch.tensor([len(t) for t in targets]),
        blank=4,
        zero_infinity=True,
    )
    loss.backward()
    ours, gradient = value_and_gradient(jnp.asarray(logits), jnp.asarray(phones))
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-5)


@functools.cache
def _compiled():
    return jax.jit(jax.value_and_grad(ctc.ctc_loss))


def value_and_gradient(logits, phones):
    return _compiled()(logits, phones)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_greedy_decoding(path):
    """Repeats are one, and a blank (4) between equal phones keeps both."""
    logits = np.eye(5, dtype=np.float32)[path]
    wanted = [p for p, before in zip(path, [None, *path]) if p != before and p != 4]
    assert ctc.greedy(logits) == wanted


@given(PHONES, PHONES)
def test_edit_distance(a, b):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert ctc.edit_distance(a, b) == distance(len(a), len(b))


def test_error_rates_are_means_over_clips_that_say_something():
    logits = np.eye(5, dtype=np.float32)[[0, 4, 1]]
    assert ctc.phone_error_rate([logits] * 3, [np.array(t, int) for t in ([0, 1], [1], ())]) == 0.5
    assert np.isnan(ctc.phone_error_rate([logits], [np.array([], int)]))

"""Parity of ESC's training with upstream: losses, running statistics, gradients, five steps of AdamW.

A gradient that is zero in theory (that of a bias before a BatchNorm, of the bias of attention's keys) is roundoff in
both, and AdamW turns it into whole steps: the first is measured by the gradient of its own kernel, the second is left
out of the trajectory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codec_jax.convert import esc as convert
from tests.parity.esc_cases import SMALL, by_upstreams_name, open_case, relative, total_loss

LOSSES = ("cm_loss", "cb_loss", "mel_loss", "stft_loss")


class Training:
    """A golden set with its compiled step: one compilation quantised, one not."""

    def __init__(self, golden, name):
        self.case = open_case(golden, name)
        self.recorded = golden(f"esc/{name}/train.safetensors")
        self.step = jax.jit(
            jax.value_and_grad(total_loss(self.case.cfg, self.case.meta["loss_weights"]), has_aux=True),
            static_argnames="quantise",
        )
        self.rest = {k: v for k, v in self.case.variables.items() if k != "params"}

    def run(self, run, params=None, rest=None, pin=False):
        """run: "s1", "s2", ..., "freeze". pin: differentiate at the recorded spectrum and audio."""
        streams = self.case.cfg.bottleneck.num_streams if run == "freeze" else int(run[1:])
        return self.step(
            self.case.variables["params"] if params is None else params,
            self.rest if rest is None else rest,
            self.case.audio,
            jnp.int32(streams),
            self.pin(run, pin),
            quantise=run != "freeze",
        )

    def pin(self, run, on):
        spectrum = jnp.zeros((*self.case.tensors["stft"].shape[:1], *self.case.tensors["stft"].shape[2:], 2))
        recorded = spectrum, jnp.zeros_like(self.case.audio)
        if on:
            spectrum = jnp.moveaxis(jnp.asarray(self.recorded[f"train.{run}.recon_feat"]), 1, -1)
            recorded = spectrum, jnp.asarray(self.recorded[f"train.{run}.recon"])[..., None]
        return (*recorded, jnp.float32(on))


@pytest.fixture(scope="module", params=SMALL)
def training(request, golden):
    return Training(golden, request.param)


def compare_losses(ours, theirs):
    for name in LOSSES:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)


def test_losses_for_every_number_of_streams(training):
    for run, theirs in training.case.meta["train"].items():
        (total, (losses, *_)), _ = training.run(run)
        compare_losses(losses, theirs)
        np.testing.assert_allclose(total, theirs["mean_loss"], rtol=1e-4)


@pytest.mark.parametrize("run", ["s3", "freeze"])
def test_outputs_and_running_statistics(training, run):
    (_, (_, out, decoded, rest)), _ = training.run(run)
    np.testing.assert_array_equal(out.codes, training.recorded[f"train.{run}.codes"])
    np.testing.assert_allclose(decoded[..., 0], training.recorded[f"train.{run}.recon"], atol=1e-5)
    theirs = training.recorded[f"train.{run}.recon_feat"]
    assert relative(jnp.moveaxis(out.spectrum, -1, 1), theirs) < 1e-5
    statistics = by_upstreams_name(convert.statistics(training.case.cfg), rest.get("batch_stats", {}))
    recorded = {k.removeprefix(f"train.{run}.bn:") for k in training.recorded if k.startswith(f"train.{run}.bn:")}
    assert set(statistics) == recorded
    for name, (_, ours) in statistics.items():
        np.testing.assert_allclose(ours, training.recorded[f"train.{run}.bn:{name}"], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("run", ["s3", "freeze"])
def test_gradients(training, golden, run):
    """Of set A's freeze run at the recorded outputs: see `test_the_loss_is_ill_conditioned`."""
    recorded = golden(f"esc/{training.case.name}/grads.safetensors")
    theirs = {k.removeprefix(f"{run}:"): v for k, v in recorded.items() if k.startswith(f"{run}:")}
    _, gradients = training.run(run, pin=True)
    ours = by_upstreams_name(convert.leaves(training.case.cfg), gradients)
    assert set(theirs) == set(ours)
    errors = {}
    for name, (leaf, array) in ours.items():
        scale = np.abs(theirs[name]).max()
        if ".conv.bias" in name and name.replace("conv.bias", "conv.weight") in theirs and "_nn" not in name:
            scale = np.abs(theirs[name.replace("conv.bias", "conv.weight")]).max()  # zero in theory
        errors[name] = np.abs(array - leaf.to_jax(theirs[name])).max() / max(scale, 1e-30)
    worst = max(errors, key=errors.get)
    print(training.case.name, run, worst, errors[worst])
    assert errors[worst] < 1e-3, worst


@pytest.mark.parametrize("name", ["A", "A_csvq_conv"])
def test_five_steps_of_adamw(golden, name):
    """Two steps of pre-training, then three with 2, 4, 1 streams; as upstream, all parameters decay."""
    training = Training(golden, name)
    trajectory = training.case.meta["trajectory"]["steps"]
    optimiser = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)
    )
    params, rest = training.case.variables["params"], training.rest
    state = optimiser.init(params)

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, optax.global_norm(gradients)

    for theirs in trajectory:
        run = "freeze" if theirs["freeze"] else f"s{theirs['num_streams']}"
        (total, (losses, _, _, rest)), gradients = training.run(run, params, rest)
        for loss in LOSSES:
            np.testing.assert_allclose(losses[loss].mean(), theirs[loss], rtol=1e-3, err_msg=loss)
        np.testing.assert_allclose(total, theirs["loss"], rtol=1e-3)
        params, state, norm = update(gradients, state, params)
        np.testing.assert_allclose(norm, theirs["grad_norm_before_clip"], rtol=1e-3)
    compare_parameters(training.case.cfg, params, rest, golden(f"esc/{name}/trajectory.safetensors"))


def compare_parameters(cfg, params, rest, recorded):
    ours = by_upstreams_name(convert.leaves(cfg), params)
    ours |= by_upstreams_name(convert.statistics(cfg), rest.get("batch_stats", {}))
    compared = 0
    for name in recorded.keys() & ours.keys():
        leaf, array = ours[name]
        theirs = leaf.to_jax(recorded[name])
        if name.endswith("qkv.bias"):
            array, theirs = array[::2], theirs[::2]  # queries and values
        if name.endswith("conv.bias") and "blocks" in name:
            continue
        np.testing.assert_allclose(array, theirs, atol=1e-3 * np.abs(theirs).max(), err_msg=name)
        compared += 1
    assert compared > 10

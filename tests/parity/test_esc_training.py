"""Parity of ESC's training with upstream: losses, running statistics, gradients, five steps of AdamW.

The power-law loss has a slope of up to 3e6 near zero, so that roundoff in a spectrum decides gradients: last bits of
the audio move our own by up to 28 % (a PReLU slope of A_csvq_conv; set A: 1.5 %, upstream's are 0.6 % away). Gradients
are therefore compared at upstream's spectra and audio: `pinned` replaces values, not derivatives, and the values have
tests of their own.

A gradient that is zero in theory (that of a bias before a BatchNorm, of the bias of attention's keys) is roundoff in
both, and AdamW turns it into whole steps: the first is measured by the gradient of its own kernel, and both are left
out of the trajectory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codec_jax.convert import esc as convert
from tests.parity.esc_cases import SMALL, by_upstreams_name, open_case, relative, total_loss

pytestmark = pytest.mark.slow  # a minute of compilation per set
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
        given = jnp.moveaxis(jnp.asarray(self.case.tensors["stft"]), 1, -1)
        recorded = given, jnp.zeros_like(given), jnp.zeros_like(self.case.audio)
        if on:
            spectrum = jnp.moveaxis(jnp.asarray(self.recorded[f"train.{run}.recon_feat"]), 1, -1)
            recorded = given, spectrum, jnp.asarray(self.recorded[f"train.{run}.recon"])[..., None]
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
    assert errors[worst] < 1e-3, worst


@pytest.fixture(scope="module", params=["A", "A_csvq_conv"])
def trajectory(request, golden):
    """Two steps of pre-training, then three with 2, 4, 1 streams; as upstream, all parameters decay."""
    training = Training(golden, request.param)
    return request.param, training.case.meta["trajectory"]["steps"], *five_steps(training)


def compare_steps(trajectory, steps):
    for step in steps:
        _, theirs, ours, _ = trajectory
        for loss, value in ours[step].items():
            assert value == pytest.approx(theirs[step][loss], rel=1e-3), (step, loss)


def test_the_first_two_steps_of_adamw(trajectory):
    compare_steps(trajectory, range(2))


@pytest.mark.xfail(strict=True, reason="the losses of steps 3 to 5 are up to 1.6 % (total) and 8.6 % (codebook) off")
def test_five_steps_of_adamw(trajectory):
    """What is wanted, and not reached. Why is not settled: roundoff moves our own losses there by 0.5 to 1.5 % (codes
    flip, the loss's slope is 3e6 near zero), which is less than the distance to upstream's.
    """
    compare_steps(trajectory, range(5))


def test_five_steps_go_upstreams_way(golden, trajectory):
    """A coarse net under the test above: cosines of the whole movement are 0.95 (A) and 0.9999; large tensors decide."""
    name, _, _, parameters = trajectory
    before, after, ways = golden(f"esc/{name}/model.safetensors"), golden(f"esc/{name}/trajectory.safetensors"), []
    for tensor in after.keys() & parameters.keys():
        if tensor.endswith("conv.bias") and "blocks" in tensor:
            continue
        leaf, ours = parameters[tensor]
        arrays = (ours, leaf.to_jax(after[tensor]), leaf.to_jax(before[tensor]))
        if tensor.endswith("qkv.bias"):
            arrays = tuple(array[::2] for array in arrays)  # queries and values
        ours, theirs, start = arrays
        ways.append([(array - start).ravel() for array in (ours, theirs)])
    assert len(ways) > 10
    ours, theirs = (np.concatenate(way) for way in zip(*ways))
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert cosine > 0.9


def five_steps(training):
    """Means of the losses of every step, and the parameters and statistics after them by upstream's names."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)
    )
    params, rest, steps = training.case.variables["params"], training.rest, []
    state = optimiser.init(params)

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for step in training.case.meta["trajectory"]["steps"]:
        run = "freeze" if step["freeze"] else f"s{step['num_streams']}"
        (total, (losses, _, _, rest)), gradients = training.run(run, params, rest)
        params, state = update(gradients, state, params)
        steps.append({"loss": float(total), **{loss: float(losses[loss].mean()) for loss in LOSSES}})
    tensors = by_upstreams_name(convert.leaves(training.case.cfg), params)
    return steps, tensors | by_upstreams_name(convert.statistics(training.case.cfg), rest.get("batch_stats", {}))

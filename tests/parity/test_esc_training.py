"""Parity of ESC's training with upstream: losses, running statistics, gradients, five steps of AdamW.

The power-law loss has a slope of up to 3e6 near zero, so that roundoff in a spectrum decides gradients: last bits of
the audio move our own by up to 28 % (a PReLU slope of A_csvq_conv; set A: 1.5 %, upstream's are 0.6 % away). Gradients
are therefore compared at upstream's spectra and audio: `pinned` replaces values, not derivatives, and the values have
tests of their own.

A gradient that is zero in theory (that of a bias before a BatchNorm, of the bias of attention's keys) is roundoff in
both, and AdamW turns it into whole steps: the first is measured by the gradient of its own kernel, and both are left
out of the trajectory.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from codec_jax import pytorch
from codec_jax.convert import esc as convert
from codec_jax.losses import spectral
from codec_jax.ops.mel import mel_filterbank
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

    def run(self, run, params=None, rest=None, pin=False, seed=0):
        """run: "s1", "s2", ..., "freeze". pin: differentiate at the recorded spectrum and audio."""
        streams = self.case.cfg.bottleneck.num_streams if run == "freeze" else int(run[1:])
        return self.step(
            self.case.variables["params"] if params is None else params,
            self.rest if rest is None else rest,
            last_bits_changed(self.case.audio, seed),
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
    return training, training.case.meta["trajectory"]["steps"], *five_steps(training, 0)


def compare_steps(trajectory, steps):
    for step in steps:
        _, theirs, ours, _ = trajectory
        for loss, value in ours[step].items():
            assert value == pytest.approx(theirs[step][loss], rel=1e-3), (step, loss)


def test_the_first_two_steps_of_adamw(trajectory):
    compare_steps(trajectory, range(2))


@pytest.mark.xfail(strict=True, reason="PyTorch itself does not return to the recorded steps 3 to 5 within 1e-3")
def test_five_steps_of_adamw(trajectory):
    """What was wanted. Below is why it cannot be had, and what is true instead."""
    compare_steps(trajectory, range(5))


def test_later_steps_are_as_near_as_pytorch_comes(golden, trajectory):
    """AdamW makes whole steps of gradients that roundoff decides, so that a single run is a draw: the twin's, in
    float64 and with last bits of the audio changed, are up to 2 % (total) and 12 % (codebook term) from the recorded
    one. Of as many draws of ours the middle one is asked to be no farther off than the farthest of those.

    How far is one number a draw, the mean over steps and losses in units of the farthest twin's: of equals, the middle
    of nine beats the farthest of nine once in 68 comparisons, and fifteen of them would fail on one CPU in ten.
    """
    training, recorded, ours, _ = trajectory
    name, seeds = training.case.name, range(1, 9)
    theirs = [twin_steps(golden, name, torch.float64, 0), *(twin_steps(golden, name, torch.float32, s) for s in seeds)]
    draws = [ours, *(five_steps(training, seed)[0] for seed in seeds)]
    figures = [(n, loss) for n in range(2, 5) for loss in ("loss", *LOSSES)]

    def off(runs):
        return np.array([[abs(steps[n][loss] - recorded[n][loss]) for n, loss in figures] for steps in runs])

    farthest = off(theirs).max(0)
    assert np.median((off(draws) / farthest).mean(1)) <= (off(theirs) / farthest).mean(1).max()
    totals = [figures.index((n, "loss")) for n in range(2, 5)]
    assert max(farthest[totals] / [recorded[n]["loss"] for n in range(2, 5)]) > 2e-3  # else the test above should pass


def test_five_steps_go_upstreams_way(golden, trajectory):
    """A coarse net under the test above: cosines of the whole movement are 0.95 (A) and 0.9999; large tensors decide."""
    training, _, _, parameters = trajectory
    name = training.case.name
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


def five_steps(training, seed):
    """Means of the losses of every step, and the parameters and statistics after them by upstream's names. seed: see
    `last_bits_changed`.
    """
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
        (total, (losses, _, _, rest)), gradients = training.run(run, params, rest, seed=seed)
        params, state = update(gradients, state, params)
        steps.append({"loss": float(total), **{loss: float(losses[loss].mean()) for loss in LOSSES}})
    tensors = by_upstreams_name(convert.leaves(training.case.cfg), params)
    return steps, tensors | by_upstreams_name(convert.statistics(training.case.cfg), rest.get("batch_stats", {}))


def last_bits_changed(audio, seed):
    """The audio with noise in its last bits; with seed 0 as it is."""
    noise = np.random.default_rng(seed).standard_normal(audio.shape) if seed else 0.0
    return (np.asarray(audio) * (1 + 1e-7 * noise)).astype(np.float32)


def twin_steps(golden, name, dtype, seed):
    """`five_steps` by the twin and PyTorch's AdamW. seed: see `last_bits_changed`."""
    meta = json.loads((golden.path(f"esc/{name}") / "meta.json").read_text())
    twin, weights = pytorch.load(golden.path(f"esc/{name}")).to(dtype).train(), meta["loss_weights"]
    audio = torch.from_numpy(last_bits_changed(golden(f"esc/{name}/golden.safetensors")["audio"], seed)).to(dtype)
    optimiser = torch.optim.AdamW(twin.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    steps = []
    for step in meta["trajectory"]["steps"]:
        out = twin.train_pass(audio, step["num_streams"], quantise=not step["freeze"])
        losses = {
            "cm_loss": out.losses["commitment"],
            "cb_loss": out.losses["codebook"],
            "mel_loss": twin_mel_distance(audio, out.audio[:, 0]),
            "stft_loss": out.losses["spectrum"],
        }
        total = sum(weights[part] * losses[f"{part}_loss"] for part in ("stft", "mel", "cm", "cb"))
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimiser.step()
        steps.append({"loss": total.item(), **{loss: value.item() for loss, value in losses.items()}})
    return steps


def twin_mel_distance(x, y):
    total = 0.0
    for length, bands in spectral.ESC_MEL_SCALES:
        filters = mel_filterbank(16_000, length, bands, htk=True, norm=None)
        window, filters = torch.hann_window(length, dtype=x.dtype), torch.from_numpy(np.array(filters)).to(x.dtype)
        spectra = [torch.stft(a, length, length // 4, length, window, return_complex=True).abs() for a in (x, y)]
        mels = [spectrum.mT @ filters for spectrum in spectra]
        logs = [2 * torch.log10(m.clamp(min=1e-5)) for m in mels]
        total += (mels[0] - mels[1]).abs().mean() + (logs[0] - logs[1]).abs().mean()
    return total

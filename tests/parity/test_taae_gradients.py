"""Parity of gradients with upstream on the golden sets A and E: the whole generator loss, every parameter.

The golden sets differentiate total = 1.0 mrstft + 0.5 adv + 2.0 fm + 1.0 l1 through hard FSQ (`grad/*`) and
through the training mixture with recorded draws (`train/grad/*`). `grad/input` is the gradient of the codec's
input alone: the same audio as target of every loss, and as the discriminator's real side, is constant.

Float32 cannot decide E's training run end to end: most of its codes are not rounded, so roundoff reaches the
decoder. Random last bits on the input move the codes by 2e-5 and our own gradients by up to 4.7e-3;
upstream's are 4.5e-3 away. That run alone is therefore differentiated at the recorded codes and audio (2.7e-4
away): `pinned` replaces values, not derivatives, and the values have tests of their own.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.convert import taae as convert
from codec_jax.convert.discriminators import discriminator_from_torch
from codec_jax.losses import adversarial, spectral, waveform
from codec_jax.models import discriminators, taae
from codec_jax.quantizers import fsq

GRADIENT_TOLERANCE = 1e-3


def frozen(fields):
    """JSON to the keyword arguments of a frozen dataclass."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def pinned(value, recorded, weight):
    """`recorded` where weight is 1, `value` where it is 0; the derivative is that of `value`."""
    return value + weight * jax.lax.stop_gradient(recorded - value)


def total_loss(cfg, meta):
    """The discriminator's config, and (params, audio, discriminator, draws, pin) -> the golden sets' loss.

    pin: (recorded codes, recorded audio, weight).
    """
    fields = frozen(meta["discriminator"])
    normalize = fields.pop("normalize_losses")
    disc_cfg = discriminators.DiscriminatorConfig(**fields)
    stft_cfg = spectral.STFTLossConfig(**frozen(meta["spectral"]))

    def total(params, audio, disc, draws, pin):
        variables = {"params": params}
        latents = taae.analyse(cfg, variables, audio)
        codes = fsq.dither(jnp.tanh(latents), fsq.grid(cfg.bottleneck.levels), *draws)
        decoded = taae.synthesise(cfg, variables, pinned(codes, pin[0], pin[2]))
        decoded = pinned(decoded, pin[1], pin[2])
        target = jax.lax.stop_gradient(audio)
        real, fake = (discriminators.judge_all(disc_cfg, disc, x) for x in (target, decoded))
        adv = adversarial.generator_loss(fake)
        fm = adversarial.feature_matching_loss(real, fake, normalize=normalize)
        x, y = (a.swapaxes(1, 2) for a in (target, decoded))
        return spectral.multi_resolution_stft(x, y, stft_cfg) + 0.5 * adv + 2.0 * fm + waveform.l1(x, y)

    return disc_cfg, total


@pytest.fixture(scope="module", params=("A", pytest.param("E", marks=pytest.mark.slow)))
def case(request, golden):
    """Config, golden tensors, and (loss, gradients of parameters and input) under "" and under "train/".

    One compilation serves both: every loss is a mean over the batch, so the clips of the first run, repeated
    to the second's batch, give the same loss and parameter gradients, and the copies' input gradients add up.
    """
    directory = golden.path(f"taae/{request.param}")
    config = json.loads((directory / "model_config.json").read_text())
    meta = json.loads((directory / "meta.json").read_text())
    cfg, variables, _ = convert.from_torch(golden(f"taae/{request.param}/model.safetensors"), config)
    tensors = golden(f"taae/{request.param}/tensors.safetensors")
    disc_cfg, total = total_loss(cfg, meta)
    disc = discriminator_from_torch(under("disc_sd/", tensors), disc_cfg)
    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))

    batch = len(tensors["train/input"])
    recorded = fsq.Draws(
        jnp.asarray(tensors["train/mask_keep_raw"][..., 0] != 0),
        jnp.asarray(tensors["train/mask_keep_quant"][..., 0] != 0),
        jnp.asarray(tensors["train/rand_u"][:, :, 0]),
    )
    hard = fsq.Draws(jnp.zeros((batch, 1, 1), bool), jnp.ones((batch, 1, 1), bool), jnp.zeros_like(recorded.uniform))
    recorded_values = tuple(jnp.asarray(tensors[f"train/{name}"].swapaxes(1, 2)) for name in ("codes", "decoded"))
    runs = {}
    for prefix, draws in (("", hard), ("train/", recorded)):
        audio = tensors[f"{prefix}input"]
        copies = batch // len(audio)
        tiled = jnp.asarray(np.tile(audio, (copies, 1, 1)).swapaxes(1, 2))
        pin = (*recorded_values, jnp.float32(request.param == "E" and prefix == "train/"))
        loss, (of_params, of_input) = step(variables["params"], tiled, disc, draws, pin)
        of_input = np.asarray(of_input).swapaxes(1, 2).reshape(copies, *audio.shape).sum(0)
        runs[prefix] = float(loss), jax.tree.map(np.asarray, of_params), of_input
    return cfg, tensors, runs


def under(prefix, tensors):
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def errors(model, wanted, gradients):
    """Largest difference over largest golden magnitude, for every tensor of upstream's that the set holds.

    The unrotated half of a k norm's bias has a gradient of zero in theory; it shares its tensor, and so the
    scale it is measured by, with the rotated half.
    """
    rows = {}
    for leaf in convert.leaves(model):
        ours = gradients
        for key in leaf.path:
            ours = ours[key]
        for layer, name in enumerate(leaf.names):
            if name in wanted:
                theirs = leaf.to_jax(wanted[name])
                difference = np.abs((ours[layer] if leaf.stacked else ours) - theirs).max()
                rows[name] = difference / np.abs(theirs).max()
    return rows


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_total_loss(case, prefix):
    _, tensors, runs = case
    np.testing.assert_allclose(runs[prefix][0], tensors[f"{prefix}loss/total"], rtol=1e-4)


@pytest.mark.parametrize(("prefix", "least"), [("", 157), ("train/", 56)])
def test_gradients_of_parameters(case, prefix, least):
    cfg, tensors, runs = case
    wanted = under(f"{prefix}grad/", tensors)
    wanted.pop("input", None)
    rows = errors(cfg.model, wanted, runs[prefix][1])
    assert set(rows) == set(wanted)
    assert len(rows) >= least
    worst = max(rows, key=rows.get)
    assert rows[worst] < GRADIENT_TOLERANCE, worst


def test_gradient_of_the_input(case):
    _, tensors, runs = case
    theirs = tensors["grad/input"]
    error = np.abs(runs[""][2] - theirs).max() / np.abs(theirs).max()
    assert error < GRADIENT_TOLERANCE

"""Parity with upstream on the golden sets A and E: activations, latents, tokens, audio, losses, gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.convert import taae as convert
from codec_jax.losses import spectral, waveform
from codec_jax.models import taae
from codec_jax.quantizers import fsq, residual_fsq
from tests.parity import boundaries

SETS = ("A", "E")


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.fixture(scope="module", params=SETS)
def case(request, golden):
    """Config, variables, golden tensors and meta of one set."""
    directory = golden.path(f"taae/{request.param}")
    config = json.loads((directory / "model_config.json").read_text())
    cfg, variables, _ = convert.from_torch(golden(f"taae/{request.param}/model.safetensors"), config)
    variables = jax.tree.map(jnp.asarray, variables)
    meta = json.loads((directory / "meta.json").read_text())
    return cfg, variables, golden(f"taae/{request.param}/tensors.safetensors"), meta


def latents_of(cfg, variables, audio):
    return jax.jit(taae.analyse, static_argnums=0)(cfg, variables, jnp.asarray(audio).swapaxes(1, 2))


def test_every_boundary(golden):
    for name, least in (("A", 40), ("E", 80)):
        rows = boundaries.golden_errors(golden.path(f"taae/{name}"))
        assert len(rows) >= least
        assert max(rows.values()) < 1e-4, max(rows, key=rows.get)


@pytest.mark.parametrize("name", SETS)
def test_every_boundary_of_the_twin(golden, name):
    rows = boundaries.twin_errors(golden.path(f"taae/{name}"))
    assert len(rows) >= 140
    assert max(rows.values()) < 1e-5, max(rows, key=rows.get)


def test_latents_tokens_and_audio(case):
    cfg, variables, tensors, _ = case
    latents = latents_of(cfg, variables, tensors["input"])
    assert relative(latents.swapaxes(1, 2), tensors["pre_bottleneck_latents"]) < 1e-4
    codes = taae.quantise(latents, taae.rate(cfg))
    np.testing.assert_array_equal(codes[:, 0], tensors["fsq_indices"][..., 0])
    np.testing.assert_array_equal(taae.dequantise(codes, taae.rate(cfg)), tensors["codes_from_indices"])
    audio = taae.decode(cfg, variables, codes, None, taae.rate(cfg))
    assert relative(audio.swapaxes(1, 2), tensors["decoded_from_tokens"]) < 1e-4
    assert relative(audio.swapaxes(1, 2), tensors["decoded"]) < 1e-4


@pytest.mark.parametrize("preset", residual_fsq.PRESETS)
def test_posthoc_tokens_and_audio(case, preset):
    cfg, variables, tensors, _ = case
    rate = taae.rate(cfg, preset)
    codes = taae.quantise(latents_of(cfg, variables, tensors["input"]), rate)
    for stage in range(codes.shape[1]):
        np.testing.assert_array_equal(codes[:, stage], tensors[f"posthoc/{preset}/tokens{stage}"][..., 0])
    audio = taae.decode(cfg, variables, codes, None, rate)
    assert relative(audio.swapaxes(1, 2), tensors[f"posthoc/{preset}/decoded"]) < 1e-4


def test_an_input_that_ends_inside_a_hop(case):
    """The ragged input is `input` cut short and padded with zeros to whole hops.

    The set does not say where it ends, so every ending inside the last hop is tried; exactly one may fit.
    """
    cfg, variables, tensors, _ = case
    want, hop = tensors["len/ragged/latents"], cfg.model.hop_length
    samples = want.shape[2] * hop
    ends = np.arange(samples - hop + 1, samples + 1)
    audio = np.where(np.arange(samples) < ends[:, None], tensors["input"][0, :, :samples], 0)[:, None]
    latents = np.asarray(latents_of(cfg, variables, audio.astype(np.float32))).swapaxes(1, 2)
    errors = np.abs(latents - want).max((1, 2)) / np.abs(want).max()
    assert (errors < 1e-4).sum() == 1


@pytest.mark.parametrize("name", ["short", "ragged"])
def test_short_and_ragged_latents_decode(case, name):
    """Two latents are the least that upstream takes. (What was encoded to the short ones is not in the sets.)"""
    cfg, variables, tensors, _ = case
    rate = taae.rate(cfg)
    codes = taae.quantise(jnp.asarray(tensors[f"len/{name}/latents"]).swapaxes(1, 2), rate)
    audio = taae.decode(cfg, variables, codes, None, rate)
    assert relative(audio.swapaxes(1, 2), tensors[f"len/{name}/decoded"]) < 1e-4


def test_the_silent_full_attention_of_upstream_is_not_matched(golden, case):
    cfg, variables, tensors, _ = case
    if "noflash_fallback/latents" in tensors:
        latents = latents_of(cfg, variables, tensors["input"]).swapaxes(1, 2)
        assert relative(latents, tensors["noflash_fallback/latents"]) > 0.1
    else:
        assert cfg.model.use_snake


def reconstruction_terms(meta, real, fake):
    spectral_config = spectral.STFTLossConfig(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in meta["spectral"].items()}
    )
    return {
        "mrstft": spectral.multi_resolution_stft(real, fake, spectral_config),
        "mrstft_natural_order": spectral.multi_resolution_stft(fake, real, spectral_config),
        "l1": waveform.l1(real, fake),
        "mse": waveform.l2(real, fake),
    }


def test_losses(case):
    _, _, tensors, meta = case
    real, fake = jnp.asarray(tensors["input"]), jnp.asarray(tensors["decoded"])
    for name, value in reconstruction_terms(meta, real, fake).items():
        np.testing.assert_allclose(value, tensors[f"loss/{name}"], rtol=1e-4, err_msg=name)


def test_training_forward_and_losses_with_recorded_draws(case):
    cfg, variables, tensors, meta = case
    codes = training_codes(cfg, variables, tensors)
    assert relative(codes.swapaxes(1, 2), tensors["train/codes"]) < 1e-4
    audio = taae.synthesise(cfg, variables, codes).swapaxes(1, 2)
    assert relative(audio, tensors["train/decoded"]) < 1e-4
    real = jnp.asarray(tensors["train/input"])
    for name, value in reconstruction_terms(meta, real, audio).items():
        np.testing.assert_allclose(value, tensors[f"train/loss/{name}"], rtol=1e-4, err_msg=name)


def training_codes(cfg, variables, tensors):
    latents = taae.analyse(cfg, variables, jnp.asarray(tensors["train/input"]).swapaxes(1, 2))
    return fsq.dither(
        jnp.tanh(latents),
        fsq.grid(cfg.bottleneck.levels),
        jnp.asarray(tensors["train/mask_keep_raw"][..., 0] != 0),
        jnp.asarray(tensors["train/mask_keep_quant"][..., 0] != 0),
        jnp.asarray(tensors["train/rand_u"][:, :, 0]),
    )

"""Parity that a plain clone can prove: recipe weights, and upstream's figures for one short clip in JSON."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.codec import Codec
from codec_jax.convert.taae import from_torch
from codec_jax.models import taae
from tests.parity.recipe import RecipeTensors

FIXTURE = pathlib.Path(__file__).with_name("taae_recipe.json")


@pytest.fixture(scope="module")
def case():
    expected = json.loads(FIXTURE.read_text())
    weights = RecipeTensors({name: tuple(shape) for name, shape in expected["shapes"].items()}, expected["salt"])
    cfg, variables, _ = from_torch(weights, expected["config"])
    codec = Codec("taae", cfg, variables)
    return codec, expected, codec.latents(np.asarray(expected["input"], np.float32))


def test_latents_and_tokens(case):
    codec, expected, latents = case
    want = np.asarray(expected["latents"]).reshape(latents.shape)
    assert np.abs(latents - want).max() / np.abs(want).max() < 1e-4
    np.testing.assert_array_equal(
        taae.quantise(jnp.asarray(latents), taae.rate(codec.config))[0, 0], expected["indices"]
    )
    for preset, tokens in expected["posthoc"].items():
        np.testing.assert_array_equal(taae.quantise(jnp.asarray(latents), taae.rate(codec.config, preset))[0], tokens)


def test_audio(case):
    codec, expected, _ = case
    codes = np.asarray(expected["indices"], np.int32)[None, None]
    audio = codec.decode_latents(taae.dequantise(codes, taae.rate(codec.config)))[0]
    want = np.asarray(expected["decoded"])
    assert np.abs(audio - want).max() / np.abs(want).max() < 1e-4

"""What the ESC parity tests share: the golden sets, opened, and upstream's training loss."""

import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from codec_jax.convert import esc as convert
from codec_jax.losses import spectral
from codec_jax.models import esc

SMALL = ("A", *(pytest.param(name, marks=pytest.mark.slow) for name in ("A_csvq_conv", "A_rvq_swinT", "A_rvq_conv")))


class Case(NamedTuple):
    """One golden set. tensors: of golden.safetensors. audio: [batch, time, 1]."""

    name: str
    cfg: esc.Config
    variables: Any
    extras: Any
    tensors: dict[str, np.ndarray]
    meta: dict
    audio: jax.Array


def open_case(golden, name: str) -> Case:
    directory = golden.path(f"esc/{name}")
    config = yaml.safe_load((directory / "config.yaml").read_text())
    cfg, variables, extras = convert.from_torch(golden(f"esc/{name}/model.safetensors"), config)
    tensors = golden(f"esc/{name}/golden.safetensors")
    meta = json.loads((directory / "meta.json").read_text())
    audio = jnp.asarray(tensors["audio"])[..., None]
    return Case(name, cfg, jax.tree.map(jnp.asarray, variables), extras, tensors, meta, audio)


def grid(case: Case, array: np.ndarray, scale: int) -> np.ndarray:
    """Upstream's features, [batch, token, channel] or [batch, channel, row, column], in our layout."""
    if array.ndim == 3:
        return array.reshape(len(array), case.cfg.model.rows(scale), -1, array.shape[-1])
    return array.transpose(0, 2, 3, 1)


def relative(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def pinned(value, recorded, weight):
    """`recorded` where weight is 1, `value` where it is 0; the derivative is that of `value`."""
    return value + weight * jax.lax.stop_gradient(recorded - value)


def total_loss(cfg, weights):
    """(params, rest of the variables, audio, streams, pin, quantise) -> upstream's loss, and what it is made of.

    pin: (recorded spectrum of the input, of the output, recorded audio, weight).
    """

    def total(params, rest, audio, streams, pin, quantise):
        target = pinned(esc.to_spectrum(cfg, audio), pin[0], pin[3])
        variables = {**rest, "params": params}
        out, moved = esc.run(cfg, variables, target, streams, train=True, quantise=quantise)
        decoded = esc.to_audio(cfg, out.spectrum)
        spectrum, wave = pinned(out.spectrum, pin[1], pin[3]), pinned(decoded, pin[2], pin[3])
        losses = {
            "cm_loss": out.losses[0],
            "cb_loss": out.losses[1],
            "mel_loss": spectral.mel_distance(audio[..., 0], wave[..., 0]),
            "stft_loss": esc.power_law_distance(target, spectrum),
        }
        parts = [weights[name] * losses[f"{name}_loss"] for name in ("stft", "mel", "cm", "cb")]
        rest = {name: moved[name] for name in rest}
        return functools.reduce(jnp.add, parts).mean(), (losses, out, decoded, rest)

    return total


def by_upstreams_name(leaves, tree) -> dict[str, tuple[Any, np.ndarray]]:
    """Upstream's name to (leaf, our array)."""
    found = {}
    for leaf in leaves:
        array = tree
        for key in leaf.path:
            array = array[key]
        for layer, name in enumerate(leaf.names):
            found[name] = leaf, np.asarray(array[layer] if leaf.stacked else array)
    return found

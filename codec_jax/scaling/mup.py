"""The coordinate check of µP: what a few steps change in the activations must not depend on the width."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from codec_jax import models
from codec_jax.experiment import Experiment, MupConfig
from codec_jax.models.autoencoder import Decoder, Encoder, patch
from codec_jax.train import sharding, stages, step
from codec_jax.train.state import CODEC

Changes = dict[str, float]


def coordinate_check(experiment: Experiment, widths: Sequence[int], steps: int, seed: int = 0) -> dict[int, Changes]:
    """Per width, and per layer: the root mean square of what `steps` updates changed in its output.

    experiment: a TAAE, with or without µP; its depth stays, its learning rate is taken from the first update on. The
    batch is noise, the same at every step and width.
    """
    found = {}
    for channels in widths:
        model = dataclasses.replace(experiment.model, channels=channels)
        found[channels] = _changes(dataclasses.replace(experiment, model=model), steps, seed)
    return found


def slopes(found: dict[int, Changes]) -> Changes:
    """Per layer, the exponent b of changes ∝ width^b (least squares on logarithms): 0 where µP does what it should."""
    widths = sorted(found)
    logs = np.log(widths)
    return {
        name: float(np.polyfit(logs, [np.log(max(found[w][name], 1e-30)) for w in widths], 1)[0])
        for name in found[widths[0]]
    }


def with_mup(experiment: Experiment, base_channels: int | None = None) -> Experiment:
    """The experiment with µP from a base width (None: its own)."""
    return dataclasses.replace(experiment, mup=MupConfig(base_channels or experiment.model.channels))


def _changes(experiment: Experiment, steps: int, seed: int) -> Changes:
    optim = dataclasses.replace(experiment.optim, schedule="constant", warmup_steps=1)
    training = dataclasses.replace(experiment.training, seed=seed, steps=steps)
    experiment = dataclasses.replace(experiment, optim=optim, training=training, stages={})
    (stage,) = stages.resolve(experiment)
    auto = (jax.sharding.AxisType.Auto,) * len(sharding.AXES)
    mesh = jax.make_mesh((1,) * len(sharding.AXES), sharding.AXES, axis_types=auto, devices=jax.devices()[:1])
    abstract = step.abstract_state(experiment, stage, mesh)
    state = step.init_state(experiment, stage, abstract)
    clips, channels = experiment.data.batch_size, models.FAMILIES[experiment.family].geometry(experiment.codec).channels
    noise = np.random.default_rng(seed).standard_normal((clips, channels, experiment.crop_samples))
    batch = {"audio": jnp.asarray(0.1 * noise, jnp.float32), "place": jnp.arange(clips)}
    listen = jax.jit(lambda params: _activations(experiment, params, batch["audio"].swapaxes(1, 2)))
    before = jax.device_get(listen(state.players[CODEC].params))
    update = step.make_train_step(experiment, stage, abstract, mesh)
    for number in range(steps):
        state, _ = update(state, batch, number)
    after = jax.device_get(listen(state.players[CODEC].params))
    return {name: float(np.sqrt(np.mean(np.square(after[name] - before[name])))) for name in before}


def _activations(experiment: Experiment, params: Any, audio: jax.Array) -> dict[str, jax.Array]:
    """The outputs of all layers with parameters, encoder and decoder, latents passed on as they are, by module path."""
    cfg = experiment.model

    def kept(half: nn.Module, name: str, x: jax.Array) -> Any:
        """Its output, and the collection of all others."""
        variables = {"params": params[name]}
        return half.apply(variables, x, capture_intermediates=_whole, mutable="intermediates")

    latents, heard = kept(Encoder(cfg), "encoder", patch(audio, cfg.patch_size))
    _, played = kept(Decoder(cfg), "decoder", jnp.tanh(latents))
    every = {"encoder": heard["intermediates"], "decoder": played["intermediates"]}
    leaves = jax.tree_util.tree_leaves_with_path(every)
    return {"/".join(str(key.key) for key in path if hasattr(key, "key")): leaf for path, leaf in leaves}


def _whole(module: nn.Module, method: str) -> bool:
    """Layers that compute something of their own."""
    return method == "__call__" and type(module).__name__ in ("Conv", "TransposedConv", "Attention", "FeedForward")

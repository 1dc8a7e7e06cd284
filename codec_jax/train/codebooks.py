"""Options of a stage for codecs with codebooks: k-means at its start, dead codewords revived as it goes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from codec_jax import models
from codec_jax.experiment import Experiment
from codec_jax.train.stages import Stage
from codec_jax.train.state import CODEC, Player, State

PyTree = Any


def seed(experiment: Experiment, stage: Stage, state: State, audio: Array) -> State:
    """The state with codebooks from k-means of one batch, [batch, channel, time]; averaged ones are the same."""
    family, player = models.FAMILIES[experiment.family], state.players[CODEC]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step), 2)
    variables = {"params": player.params, "batch_stats": state.batch_stats}
    seeded = family.seed_codebooks(experiment.codec, variables, audio.swapaxes(1, 2), stage.kmeans, key)["params"]
    changed = jax.tree.map(lambda new, old: new is not old, seeded, player.params)

    def replaced(tree):
        put = lambda is_new, new, old: jax.device_put(jnp.copy(new), old.sharding) if is_new else old
        return jax.tree.map(put, changed, seeded, tree)

    player = dataclasses.replace(player, params=replaced(player.params), ema=player.ema and replaced(player.ema))
    return dataclasses.replace(state, players={**state.players, CODEC: player})


def revive(
    experiment: Experiment, stage: Stage, state: State, player: Player, usage: Array, points: PyTree
) -> tuple[Player, Int[Array, "codebook codeword"], Int[Array, ""]]:
    """The codec without words that went unused for `stage.revive_after` steps, the new `idle`, and how many they were.

    usage: counts [codebook, codeword] of this step. points: what its codebooks had to quantise.
    """
    family = models.FAMILIES[experiment.family]
    idle = jnp.where(usage > 0, 0, state.idle + 1)
    dead = idle >= stage.revive_after
    key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step), 2)
    params = family.revive(experiment.codec, player.params, points, dead, key)
    ema = None if player.ema is None else family.revive(experiment.codec, player.ema, points, dead, key)
    moved = dataclasses.replace(player, params=params, ema=ema)
    return moved, jnp.where(dead, 0, idle), dead.sum()

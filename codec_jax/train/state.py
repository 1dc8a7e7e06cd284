"""The training state: one pytree, everything that a restart needs except the data iterator's position."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from codec_jax import models
from codec_jax.experiment import Experiment, OptimConfig
from codec_jax.models import discriminators, phone_head
from codec_jax.train import mup, optim
from codec_jax.train.stages import Stage

PyTree = Any
CODEC, DISCRIMINATOR, HEAD = "codec", "discriminator", "phone_head"


@flax.struct.dataclass
class Player:
    """Parameters that one optimiser moves: the codec, its discriminators, a phone head. ema: None without one."""

    params: PyTree
    opt_state: PyTree
    ema: PyTree


@flax.struct.dataclass
class Guard:
    """Steps that were skipped, in all and in a row (int32 []); per player, norms seen and their running mean log."""

    skipped: Any
    streak: Any
    seen: dict[str, Any]
    log_norms: dict[str, Any]


@flax.struct.dataclass
class State:
    """step: updates done, int32 []. key: raw PRNG key data, folded with the step. players: by name. idle: int32
    [codebook, codeword], steps in a row without use, in stages that revive codewords (else None).

    Leaves are arrays, or their shapes, dtypes and shardings in an abstract state.
    """

    step: Any
    key: Any
    players: dict[str, Player]
    batch_stats: PyTree
    guard: Guard
    idle: Any


def to_tree(state: State) -> dict[str, PyTree]:
    """What a checkpoint holds of it: no word of what the stage has not, so that states may grow such parts."""
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: part for name, part in parts.items() if part is not None}


def from_tree(tree: dict[str, PyTree]) -> State:
    """The inverse of `to_tree`."""
    return State(**{"idle": None, **tree})


def init(experiment: Experiment, stage: Stage) -> State:
    """Fresh state for a stage, a pure function of the config; parameters come boxed with logical axis names."""
    seed = jax.random.key(experiment.training.seed)
    codec_key, train_key = jax.random.split(seed)
    variables = dict(models.FAMILIES[experiment.family].init(experiment.codec, codec_key))
    params, factors = variables.pop("params"), mup.factors(experiment)
    if factors:
        params = mup.scaled(params, factors.initial)
    players = {CODEC: _player(params, stage.optim, bool(experiment.optim.ema_decay), factors and factors.rate)}
    if stage.discriminator_optim is not None:
        params = discriminators.init(experiment.discriminator, jax.random.fold_in(seed, 1))
        players[DISCRIMINATOR] = _player(params, stage.discriminator_optim, False)
    if stage.losses.ctc:
        ctc, latent_dim = experiment.ctc, experiment.model.latent_dim
        params = phone_head.init(ctc.hidden, ctc.num_phones, latent_dim, jax.random.fold_in(seed, 2))
        players[HEAD] = _player(params, stage.optim, False)
    return State(
        step=jnp.int32(0),
        key=jax.random.key_data(train_key),
        players=players,
        batch_stats=variables.get("batch_stats", {}),
        guard=_guard(players),
        idle=_no_idle(experiment) if stage.revive_after else None,
    )


def _guard(players: Iterable[str]) -> Guard:
    # Discriminators always: runs that were saved before there were other players can go on.
    names, none = sorted({DISCRIMINATOR, *players}), jnp.int32(0)
    return Guard(none, none, dict.fromkeys(names, none), dict.fromkeys(names, jnp.float32(0.0)))


def _player(params: PyTree, config: OptimConfig, averaged: bool, rates: tuple[float, ...] | None = None) -> Player:
    opt_state = optim.optimizer(config, rates).init(params)
    return Player(params, opt_state, jax.tree.map(jnp.copy, params) if averaged else None)


def _no_idle(experiment: Experiment) -> Int[Array, "codebook codeword"]:
    family = models.FAMILIES[experiment.family]
    sizes = family.codebook_sizes(experiment.codec, family.rate(experiment.codec, None, None))
    return jnp.zeros((len(sizes), max(sizes)), jnp.int32)

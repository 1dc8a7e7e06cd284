"""The training state: one pytree, everything that a restart needs except the data iterator's position."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from codec_jax import models
from codec_jax.experiment import Experiment

PyTree = Any
CODEC = "codec"


@flax.struct.dataclass
class Player:
    """Parameters that one optimiser moves: the codec, later its discriminators and heads. ema: None without one."""

    params: PyTree
    opt_state: PyTree
    ema: PyTree


@flax.struct.dataclass
class State:
    """step: updates done, int32 []. key: raw PRNG key data, folded with the step. players: by name.

    Leaves are arrays, or their shapes, dtypes and shardings in an abstract state.
    """

    step: Any
    key: Any
    players: dict[str, Player]
    batch_stats: PyTree


def init(experiment: Experiment, optimizer: optax.GradientTransformation) -> State:
    """Fresh state, a pure function of the config; parameters come boxed with their logical axis names."""
    init_key, train_key = jax.random.split(jax.random.key(experiment.training.seed))
    variables = dict(models.FAMILIES[experiment.family].init(experiment.codec, init_key))
    params = variables.pop("params")
    ema = jax.tree.map(jnp.copy, params) if experiment.optim.ema_decay else None
    player = Player(params, optimizer.init(params), ema)
    return State(
        step=jnp.int32(0),
        key=jax.random.key_data(train_key),
        players={CODEC: player},
        batch_stats=variables.get("batch_stats", {}),
    )

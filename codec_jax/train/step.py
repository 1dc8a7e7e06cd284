"""The training step: a pure function of (state, batch), jitted with shardings and donation."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from codec_jax import models
from codec_jax.experiment import Experiment
from codec_jax.train import objective, optim, sharding
from codec_jax.train.state import CODEC, Player, State, init

PyTree = Any
Batch = dict[str, Float[Array, "batch channel time"]]
Metrics = dict[str, Float[Array, ""]]


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Inside, logical constraints on activations act. Tracing and calling both belong here."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(sharding.RULES.items())):
        yield


def abstract_state(experiment: Experiment, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state, nothing allocated; what a restore asks for."""
    optimizer = _optimizer(experiment)
    boxed = jax.eval_shape(lambda: init(experiment, optimizer))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        nn.unbox(boxed),
        sharding.shardings(boxed, mesh),
    )


def init_state(experiment: Experiment, abstract: State) -> State:
    """Fresh state, born with its shardings."""
    optimizer = _optimizer(experiment)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: nn.unbox(init(experiment, optimizer)), out_shardings=where)()


def make_train_step(experiment: Experiment, abstract: State, mesh: Mesh) -> Callable[[State, Batch], Any]:
    """The jitted step (state, batch) -> (state, metrics). Metrics are float32 scalars: the loss, its terms, norms."""
    optimizer = _optimizer(experiment)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = jax.jit(
        lambda state, batch: train_step(experiment, optimizer, where, state, batch),
        in_shardings=(where, sharding.batch_sharding(mesh)),
        out_shardings=(where, None),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )

    def call(state: State, batch: Batch) -> tuple[State, Metrics]:
        with on_mesh(mesh):
            return step(state, batch)

    return call


def compiler_options() -> dict[str, str]:
    """XLA's options for the step.

    On CPU the fusions of jaxlib 0.10's YNNPACK make the backward pass 1.7 times slower; releases that do not know the
    option keep their defaults.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except Exception:  # jaxlib names no exception of its own here
        return {}
    return options


def train_step(
    experiment: Experiment, optimizer: optax.GradientTransformation, where: State, state: State, batch: Batch
) -> tuple[State, Metrics]:
    """One update of the codec and its moving average."""
    player = state.players[CODEC]
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    loss_and_terms = jax.value_and_grad(lambda params: codec_loss(experiment, params, batch, key), has_aux=True)
    (loss, terms), grads = loss_and_terms(player.params)
    # Left alone, XLA may keep gradients whole on every device: pin them to the shardings of their parameters.
    grads = jax.lax.with_sharding_constraint(grads, where.players[CODEC].params)
    updates, opt_state = optimizer.update(grads, player.opt_state, player.params)
    params = optax.apply_updates(player.params, updates)
    ema = player.ema
    if ema is not None:
        ema = optim.ema_update(ema, params, state.step + 1, experiment.optim.ema_decay)
    schedule = optim.learning_rate(experiment.optim, experiment.training.steps)
    metrics = {
        "loss": loss,
        **terms,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": schedule(state.step),
    }
    players = {**state.players, CODEC: Player(params, opt_state, ema)}
    return State(state.step + 1, state.key, players, state.batch_stats), metrics


def codec_loss(experiment: Experiment, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """The objective of one batch, and its terms."""
    family, cfg = models.FAMILIES[experiment.family], experiment.codec
    audio = nn.with_logical_constraint(batch["audio"].swapaxes(1, 2), ("batch", "time", None))
    forward = family.forward(cfg, {"params": params}, audio, key, train=True)
    return objective.reconstruction(forward, experiment.losses, family.geometry(cfg).sample_rate)


def _optimizer(experiment: Experiment) -> optax.GradientTransformation:
    return optim.optimizer(experiment.optim, experiment.training.steps)

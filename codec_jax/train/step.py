"""The training step: a pure function of (state, batch, teachers), jitted with shardings and donation.

One forward pass of the codec serves both players. Its audio goes before the discriminators, scale by scale; what they
answer comes back as a gradient of the audio, joins that of the reconstruction terms, and flows through the codec once.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from codec_jax import models
from codec_jax.experiment import Experiment
from codec_jax.models.protocol import Keys, spread
from codec_jax.quantizers.vq import POINTS
from codec_jax.train import codebooks, mup, objective, optim, sharding, teachers
from codec_jax.train.stages import Stage
from codec_jax.train.state import CODEC, DISCRIMINATOR, HEAD, Guard, Player, State, init
from codec_jax.train.teachers import Teachers

PyTree = Any
Batch = Mapping[str, Array]
"""audio: float32 [batch, channel, time]. place: int32 [batch], of every clip in the global batch, whoever read it.
phones: int32 [batch, most], padded above the blank, in stages with `losses.ctc`."""
Metrics = dict[str, Any]


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Inside, logical constraints on activations act. Tracing and calling both belong here."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(sharding.RULES.items())):
        yield


# ---- the jitted step and what it takes ---------------------------------------------------------


def abstract_state(experiment: Experiment, stage: Stage, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state, nothing allocated; what a restore asks for."""
    boxed = jax.eval_shape(lambda: init(experiment, stage))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        nn.unbox(boxed),
        sharding.shardings(boxed, mesh),
    )


def init_state(experiment: Experiment, stage: Stage, abstract: State) -> State:
    """Fresh state, born with its shardings."""
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: nn.unbox(init(experiment, stage)), out_shardings=where)()


def enter_stage(experiment: Experiment, stage: Stage, state: State, abstract: State) -> State:
    """The state at the start of a stage: players it has too go on as they are, new ones begin, others are dropped."""
    fresh = [name for name in abstract.players if name not in state.players]
    idle = state.idle if abstract.idle is not None else None
    if idle is None and abstract.idle is not None:
        idle = _zeros(abstract.idle)
    where = jax.tree.map(lambda leaf: leaf.sharding, {name: abstract.players[name] for name in fresh})
    # Only what is asked for is computed: the codec's own initialisation falls away.
    begin = jax.jit(
        lambda: {name: nn.unbox(init(experiment, stage).players[name]) for name in fresh}, out_shardings=where
    )
    known = {name: state.players[name] for name in abstract.players if name in state.players}
    if stage.fresh_optim:
        known[CODEC] = dataclasses.replace(known[CODEC], opt_state=_zeros(abstract.players[CODEC].opt_state))
    players = {**known, **(begin() if fresh else {})}
    # Gradients are of another size now; what was skipped stays counted.
    norms = _zeros((abstract.guard.seen, abstract.guard.log_norms))
    guard = dataclasses.replace(state.guard, seen=norms[0], log_norms=norms[1])
    return dataclasses.replace(state, players=players, guard=guard, idle=idle)


def _zeros(abstract: PyTree) -> PyTree:
    """Born with their shardings: to the compiler, arrays placed in another way are other arguments of another step."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), abstract)


def make_train_step(
    experiment: Experiment, stage: Stage, abstract: State, mesh: Mesh, frozen: Teachers | None = None
) -> Callable[..., tuple[State, Metrics]]:
    """The step (state, batch, updates done) -> (state, metrics) of a stage.

    The number matters with `training.alternate` alone, where it says whose turn it is. Metrics are float32 scalars, and
    `usage`, the counts [dim, level] of the codes. frozen: the stage's teachers, where it has any.
    """
    turns = [_jitted(experiment, stage, abstract, mesh, who) for who in _turns(experiment, stage)]

    def call(state: State, batch: Batch, done: int = 0) -> tuple[State, Metrics]:
        with on_mesh(mesh):
            return turns[done % len(turns)](state, {name: batch[name] for name in inputs(stage)}, frozen or {})

    return call


def inputs(stage: Stage) -> tuple[str, ...]:
    """What the stage's step takes of a batch."""
    return ("audio", "place", "phones") if stage.losses.ctc else ("audio", "place")


def lower_train_step(experiment: Experiment, stage: Stage, mesh: Mesh) -> jax.stages.Lowered:
    """The step for a mesh that need not exist: nothing is allocated. With `training.alternate`, the codec's turn."""
    abstract = abstract_state(experiment, stage, mesh)
    channels = models.FAMILIES[experiment.family].geometry(experiment.codec).channels
    clips, where = experiment.data.batch_size, sharding.batch_sharding(mesh)
    shapes = {
        "audio": ((clips, channels, experiment.crop_samples), jnp.float32),
        "place": ((clips,), jnp.int32),
        "phones": ((clips, experiment.ctc.most), jnp.int32),
    }
    batch = {name: jax.ShapeDtypeStruct(*shapes[name], sharding=where) for name in inputs(stage)}
    step = _jitted(experiment, stage, abstract, mesh, _turns(experiment, stage)[0])
    frozen = teachers.abstract(experiment, stage, mesh)
    with on_mesh(mesh):
        return step.lower(abstract, batch, frozen)


def _turns(experiment: Experiment, stage: Stage) -> tuple[tuple[str, ...], ...]:
    """Who moves: both at every step, or, as upstream, the codec at even steps and the discriminators at odd ones."""
    if stage.discriminator_optim is None:
        return ((CODEC,),)
    return ((CODEC,), (DISCRIMINATOR,)) if experiment.training.alternate else ((CODEC, DISCRIMINATOR),)


def _jitted(experiment: Experiment, stage: Stage, abstract: State, mesh: Mesh, who: tuple[str, ...]):
    where, heard = jax.tree.map(lambda leaf: leaf.sharding, (abstract, teachers.abstract(experiment, stage, mesh)))
    return jax.jit(
        lambda state, batch, frozen: train_step(experiment, stage, where, who, state, batch, frozen),
        in_shardings=(where, dict.fromkeys(inputs(stage), sharding.batch_sharding(mesh)), heard),
        out_shardings=(where, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )


def compiler_options(platform: str) -> dict[str, str]:
    """XLA's options for the step.

    On CPU jaxlib 0.10's YNNPACK makes the backward pass 1.7 times slower, all but its sums, which are faster than
    XLA's: docs/training.md. Releases that do not know the option keep their defaults.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except Exception:  # jaxlib names no exception of its own here
        return {}
    return options


# ---- one update --------------------------------------------------------------------------------


def train_step(
    experiment: Experiment,
    stage: Stage,
    where: State,
    who: tuple[str, ...],
    state: State,
    batch: Batch,
    frozen: Teachers,
) -> tuple[State, Metrics]:
    """One update of the players in `who`, or of none where anything is not finite or spikes (then it is counted)."""
    found = accumulated(experiment, stage, who, state, batch, frozen)
    # Left alone, XLA may keep gradients whole on every device: pin them to the shardings of their parameters.
    pinned = {name: where.players[name].params for name in found.grads}
    grads = jax.lax.with_sharding_constraint(found.grads, pinned)
    norms = {name: optax.tree.norm(tree) for name, tree in grads.items()}
    sound, guard = _watch(experiment, found.metrics["loss"], norms, state.guard)
    players, rates = dict(state.players), {}
    for name in grads:
        players[name], rates[name] = _moved(experiment, stage, state, name, grads[name], norms[name])
    idle = state.idle
    if stage.revive_after:
        players[CODEC], idle, revived = codebooks.revive(
            experiment, stage, state, players[CODEC], found.metrics["usage"], found.points
        )
        found.metrics["revived"] = revived
    updated = dataclasses.replace(state, players=players, batch_stats=found.batch_stats, idle=idle)
    kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), updated, state)
    metrics = {
        **found.metrics,
        **_norms(grads, norms),
        **{"learning_rate" if name == CODEC else f"learning_rate/{name}": rate for name, rate in rates.items()},
        "skipped": 1.0 - sound.astype(jnp.float32),
        "streak": guard.streak,
    }
    return dataclasses.replace(kept, step=state.step + 1, guard=guard), metrics


def _moved(
    experiment: Experiment, stage: Stage, state: State, name: str, grads: PyTree, norm: Array
) -> tuple[Player, Array]:
    """A player after its update, and the learning rate."""
    player, config = state.players[name], stage.discriminator_optim if name == DISCRIMINATOR else stage.optim
    assert config is not None
    turns = len(_turns(experiment, stage))
    rate = optim.learning_rate(config, -(-stage.steps // turns))((state.step - stage.start) // turns)
    factors = mup.factors(experiment) if name == CODEC else None
    directions, opt_state = optim.optimizer(config, factors and factors.rate).update(
        optim.clip(grads, norm, config.clip_norm), player.opt_state, player.params
    )
    params = optim.descend(player.params, directions, rate, stage.freeze if name == CODEC else ())
    ema = player.ema
    if ema is not None:
        ema = optim.ema_update(ema, params, state.step // turns + 1, experiment.optim.ema_decay)
    return Player(params, opt_state, ema), rate


def _norms(grads: Mapping[str, PyTree], norms: Mapping[str, Array]) -> Metrics:
    """Gradient norms before clipping: of the codec, of its modules, and of the discriminators."""
    out = {"grad_norm" if name == CODEC else f"grad_norm/{name}": norm for name, norm in norms.items()}
    for module, tree in grads.get(CODEC, {}).items():
        for part, branch in tree.items():
            out[f"grad_norm/{module}/{part}"] = optax.tree.norm(branch)
    return out


def _watch(experiment: Experiment, loss: Array, norms: Mapping[str, Array], guard: Guard) -> tuple[Array, Guard]:
    """Whether to trust the step, and the guard after it. Both players are skipped together, or neither."""
    config, sound = experiment.training, jnp.isfinite(loss)
    seen, means = dict(guard.seen), dict(guard.log_norms)
    for name, norm in norms.items():
        log_norm, mean, finite = jnp.log(jnp.maximum(norm, 1e-12)), guard.log_norms[name], jnp.isfinite(norm)
        sound &= finite
        if config.spike:
            sound &= (guard.seen[name] < config.spike_after) | (log_norm < mean + jnp.log(config.spike))
        # Spikes count too: a level that has changed for good becomes the new mean.
        share = jnp.maximum(0.02, 1 / (guard.seen[name] + 1.0))
        means[name] = jnp.where(finite, mean + share * (log_norm - mean), mean)
        seen[name] = guard.seen[name] + finite
    skip = (~sound).astype(jnp.int32)
    return sound, Guard(guard.skipped + skip, (guard.streak + skip) * skip, seen, means)


# ---- gradients ---------------------------------------------------------------------------------


class Found(NamedTuple):
    """Gradients by player, metrics, and after a batch or a part of one the running statistics and `vq.POINTS`."""

    grads: dict[str, PyTree]
    metrics: Metrics
    batch_stats: PyTree
    points: PyTree


def accumulated(
    experiment: Experiment,
    stage: Stage,
    who: tuple[str, ...],
    state: State,
    batch: Batch,
    frozen: Teachers | None = None,
) -> Found:
    """The gradients of a batch, in `training.accumulate` parts one after the other."""
    parts = experiment.training.accumulate
    keys = spread(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step), batch["place"])
    clips = {**batch, "audio": batch["audio"].swapaxes(1, 2)}
    if parts == 1:
        return gradients(experiment, stage, who, state, clips, keys, frozen or {})

    def parted(x: Array) -> Array:  # part i has clips i, i + parts, ...: every device has its share of every part
        return x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def of_part(state: State, part: tuple[Batch, Array]) -> Found:
        return gradients(experiment, stage, who, state, part[0], Keys(keys.step, part[1]), frozen or {})

    def add(carry: Found, part: tuple[Batch, Array]) -> tuple[Found, None]:
        found = of_part(dataclasses.replace(state, batch_stats=carry.batch_stats), part)
        grads, metrics = jax.tree.map(jnp.add, (carry.grads, carry.metrics), (found.grads, found.metrics))
        return Found(grads, metrics, found.batch_stats, found.points), None

    all_parts = jax.tree.map(parted, (clips, keys.clips))
    shapes = jax.eval_shape(lambda: of_part(state, jax.tree.map(lambda x: x[0], all_parts)))
    zeros: Found = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros._replace(batch_stats=state.batch_stats), all_parts)
    usage = total.metrics.pop("usage")
    grads, metrics = jax.tree.map(lambda x: x / parts, (total.grads, total.metrics))
    return Found(grads, {**metrics, "usage": usage}, total.batch_stats, total.points)


def gradients(
    experiment: Experiment,
    stage: Stage,
    who: tuple[str, ...],
    state: State,
    clips: Batch,
    keys: Keys,
    frozen: Teachers,
) -> Found:
    """All players' gradients from one forward pass of the codec. clips: a batch, its audio [batch, time, channel]."""
    family, losses = models.FAMILIES[experiment.family], stage.losses
    audio = nn.with_logical_constraint(clips["audio"], ("batch", "time", None))
    fade = losses.decay ** (state.step - stage.start).astype(jnp.float32)

    def generate(params, head):
        variables = {"params": _without_frozen(params, stage.freeze), "batch_stats": state.batch_stats}
        forward = family.forward(experiment.codec, variables, audio, keys, train=True, quantise=stage.quantise)
        rate, listen = family.geometry(experiment.codec).sample_rate, teachers.listener(experiment, frozen)
        loss, terms = objective.reconstruction(forward, losses, rate, fade, listen)
        if losses.ctc:
            terms["ctc"] = objective.phone_loss(experiment.ctc, head, forward.latents, clips["phones"])
            loss += losses.ctc * terms["ctc"]
        heard = nn.with_logical_constraint(forward.audio, ("batch", "time", None))
        return (heard, loss), (forward, terms)

    head = state.players[HEAD].params if losses.ctc else {}
    (fake, loss), pull_back, (forward, terms) = jax.vjp(generate, state.players[CODEC].params, head, has_aux=True)
    metrics: Metrics = {**terms, "usage": family.usage(experiment.codec, forward)}
    grads, audio_gradient = {}, jnp.zeros_like(fake)
    if DISCRIMINATOR in state.players:
        window_key = jax.random.fold_in(keys.step, 1)
        excerpts, put_back = objective.window(
            window_key, experiment.discriminator_samples, forward.target, jax.lax.stop_gradient(fake)
        )
        params, train = state.players[DISCRIMINATOR].params, DISCRIMINATOR in who
        verdict = objective.judge(experiment.discriminator, params, losses, excerpts[0], excerpts[1], train)
        metrics |= verdict.terms
        audio_gradient = put_back(verdict.audio_gradient)
        if train:
            grads[DISCRIMINATOR] = verdict.grads
        for name, weight in (("adversarial", losses.adversarial), ("feature_matching", losses.feature_matching)):
            loss = loss + weight * metrics.get(name, 0.0)
    if CODEC in who:
        grads[CODEC], of_head = pull_back((audio_gradient, jnp.ones_like(loss)))
        grads |= {HEAD: of_head} if losses.ctc else {}
    batch_stats = forward.variables.get("batch_stats", state.batch_stats)
    points = forward.variables.get(POINTS, {}) if stage.revive_after else {}
    return Found(dict(sorted(grads.items())), {"loss": loss, **metrics}, batch_stats, points)


def _without_frozen(params: PyTree, freeze: tuple[str, ...]) -> PyTree:
    """Frozen parts as constants, so that no gradient is computed for them."""
    if not freeze:
        return params
    stop = jax.lax.stop_gradient
    return jax.tree_util.tree_map_with_path(lambda path, x: stop(x) if optim.is_frozen(path, freeze) else x, params)

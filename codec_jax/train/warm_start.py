"""A run that begins with weights of another: `Experiment.init_from`. What is restored and what is fresh is said."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from etils import epath

from codec_jax import checkpoint, models, sources, storage
from codec_jax.convert import layout
from codec_jax.errors import UserError
from codec_jax.experiment import Experiment
from codec_jax.train import sharding, stages
from codec_jax.train.state import CODEC, DISCRIMINATOR, HEAD, Player, State, init

PyTree = Any
_OTHERS = (DISCRIMINATOR, HEAD)  # players that a run may have beside its codec


def check_init_from(experiment: Experiment) -> None:
    """Raises UserError where `init_from` is of another family or size, the codec or another player; reads no array."""
    source = experiment.init_from
    if source is None:
        return
    family, cfg = sources.read_config(source)
    _check_family(experiment, family)
    _check_sizes(_parameters(family, cfg), _parameters(family, experiment.codec), source)
    players = jax.eval_shape(lambda: nn.unbox(init(experiment, stages.resolve(experiment)[0]))).players
    for name in filter(players.__contains__, _OTHERS):
        found = _of_run(checkpoint.subtree_shapes, source, name)
        if found is not None:
            _check_sizes(found, players[name].params, source)


def warm_start(experiment: Experiment, state: State, say: Callable[[str], None]) -> State:
    """The fresh `state` with the codec of `experiment.init_from`, and its discriminators where it is a run with such.

    Parameters and their average become the source's averaged weights; moments stay fresh. say: hears one line.
    Raises UserError where the source is of another family, or a tensor has another shape.
    """
    source = experiment.init_from
    if source is None:
        return state
    model = sources.open_model(source)
    _check_family(experiment, model.family)
    found = layout.materialise(model.variables)
    players = {**state.players, CODEC: _replaced(state.players[CODEC], found["params"], source)}
    restored = [CODEC]
    batch_stats = state.batch_stats
    if batch_stats:
        batch_stats = _placed(found[storage.STATISTICS], batch_stats, source)
    for name in filter(players.__contains__, _OTHERS):
        params = _of_run(lambda *where: checkpoint.restore_subtree(*where)[0], source, name)
        if params is not None:
            players[name] = _replaced(players[name], params, source)
            restored.append(name)
    fresh = [name for name in players if name not in restored]
    weights = f" ({model.weights} weights)" if model.weights else ""
    say(f"from {source}{weights}: {' and '.join(restored)}; fresh: {', '.join([*fresh, 'moments', 'step count'])}")
    return dataclasses.replace(state, players=players, batch_stats=batch_stats)


def _of_run(read: Callable[[epath.Path, tuple[str, ...]], Any], source: str, name: str) -> Any:
    """What `read` finds of a player's parameters in the checkpoints of a run; None where the source is no run."""
    directory = epath.Path(source) / sources.CHECKPOINTS
    return read(directory, ("players", name, "params")) if directory.exists() else None


def _replaced(player: Player, params: PyTree, source: str) -> Player:
    params = _placed(params, player.params, source)
    return dataclasses.replace(player, params=params, ema=player.ema and jax.tree.map(lambda x: x.copy(), params))


def _placed(found: PyTree, wanted: PyTree, source: str) -> PyTree:
    """Arrays of the source as those of the state are placed. Raises UserError naming the first that does not fit."""
    _check_sizes(found, wanted, source)
    return jax.tree.map(sharding.place, found, wanted)


def _check_sizes(found: PyTree, wanted: PyTree, source: str) -> None:
    theirs, ours = storage.flatten(found), storage.flatten(wanted)
    for name in sorted(theirs.keys() | ours.keys()):
        shapes = [tuple(tree[name].shape) if name in tree else "not there" for tree in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise UserError(f"init_from={source} is of another size: its {name} is {shapes[0]}, and here {shapes[1]}.")


def _parameters(family: str, cfg: Any) -> PyTree:
    """Shapes of a codec's."""
    return nn.unbox(jax.eval_shape(lambda: models.FAMILIES[family].init(cfg, jax.random.key(0))))["params"]


def _check_family(experiment: Experiment, found: str) -> None:
    if found != experiment.family:
        source = experiment.init_from
        raise UserError(f"init_from={source} is {_article(found)}, and this run trains {_article(experiment.family)}.")


def _article(family: str) -> str:
    return f"{'an' if family[0] in 'aeiou' else 'a'} {family.upper()}"

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
from codec_jax.train import sharding
from codec_jax.train.state import CODEC, DISCRIMINATOR, HEAD, Player, State

PyTree = Any


def check_init_from(experiment: Experiment) -> None:
    """Raises UserError where `init_from` is of another family or size, from its config alone."""
    if experiment.init_from is None:
        return
    family, cfg = sources.read_config(experiment.init_from)
    _check_family(experiment, family)
    _check_sizes(_parameters(family, cfg), _parameters(family, experiment.codec), experiment.init_from)


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
    for name in (DISCRIMINATOR, HEAD):
        params = _other_player(source, name) if name in players else None
        if params is not None:
            players[name] = _replaced(players[name], params, source)
            restored.append(name)
    fresh = [name for name in players if name not in restored]
    weights = f" ({model.weights} weights)" if model.weights else ""
    say(f"from {source}{weights}: {' and '.join(restored)}; fresh: {', '.join([*fresh, 'moments', 'step count'])}")
    return dataclasses.replace(state, players=players, batch_stats=batch_stats)


def _other_player(source: str, name: str) -> PyTree | None:
    """Parameters of a run's other player; None where the source is no run or has none."""
    directory = epath.Path(source) / sources.CHECKPOINTS
    if not directory.exists():
        return None
    return checkpoint.restore_subtree(directory, ("players", name, "params"))[0]


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

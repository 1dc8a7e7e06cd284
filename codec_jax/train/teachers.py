"""Teachers: frozen networks that losses listen to.

Arguments of the step, cut over devices as parameters are; in neither state nor checkpoint.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from codec_jax import sources
from codec_jax.convert import wavlm as convert
from codec_jax.errors import UserError
from codec_jax.experiment import Experiment
from codec_jax.models import wavlm
from codec_jax.models.wavlm import WavLMConfig
from codec_jax.train import sharding, stages
from codec_jax.train.objective import Listener
from codec_jax.train.stages import Stage

Teachers = dict[str, Any]
"""Variables by name."""
WAVLM = "wavlm"
_OURS = ("dtype", "remat")  # how it is computed, whatever it is


def abstract(experiment: Experiment, stage: Stage, mesh: Mesh) -> Teachers:
    """Shapes, dtypes and shardings of those that the stage listens to, as far as it listens to them."""
    if not stage.losses.perceptual:
        return {}
    cfg, dtype = experiment.perceptual.model, jnp.dtype(experiment.perceptual.model.dtype)
    boxed = jax.eval_shape(lambda: wavlm.init(cfg, jax.random.key(0), max(experiment.perceptual.layers)))
    variables = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where),
        nn.unbox(boxed),
        sharding.shardings(boxed, mesh),
    )
    return {WAVLM: variables}


def load(experiment: Experiment, stage: Stage, mesh: Mesh) -> Teachers:
    """The teachers of a stage on their devices, in the dtype that they compute in.

    Raises UserError where the weights are not to be had, or of another model than `perceptual.model`.
    """
    wanted = abstract(experiment, stage, mesh)
    if not wanted:
        return {}
    return {WAVLM: jax.tree.map(sharding.place, _opened(experiment), wanted[WAVLM])}


def check(experiment: Experiment) -> None:
    """Raises UserError as `load` would in any of the stages. Fetches what is on a hub, and reads no weights."""
    if any(stage.losses.perceptual for stage in stages.resolve(experiment)):
        _opened(experiment)


def _opened(experiment: Experiment) -> Any:
    """Variables of the listener, as far as it is listened to; its tensors are read when they are asked for."""
    config = experiment.perceptual
    cfg, tensors = sources.open_wavlm(config.weights)
    _check_same(config.weights, cfg, config.model)
    return convert.from_torch(tensors, cfg, max(config.layers))


def listener(experiment: Experiment, teachers: Teachers) -> Listener | None:
    """What `losses.perceptual` hears with; None without a teacher."""
    if WAVLM not in teachers:
        return None
    return functools.partial(_listen, experiment, teachers[WAVLM])


def _listen(experiment: Experiment, variables: Any, audio: Any) -> Any:
    return wavlm.features(experiment.perceptual.model, variables, audio, experiment.perceptual.layers)


def _check_same(source: str, found: WavLMConfig, wanted: WavLMConfig) -> None:
    for field in dataclasses.fields(WavLMConfig):
        values = [getattr(cfg, field.name) for cfg in (found, wanted)]
        if field.name not in _OURS and values[0] != values[1]:
            raise UserError(
                f"{source} is another WavLM than perceptual.model says: its {field.name} is {values[0]}, "
                f"not {values[1]}. Set --config.perceptual.model.{field.name}."
            )

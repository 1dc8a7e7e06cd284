"""Any source to a Codec: a saved directory, a run directory, or an upstream directory."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from etils import epath

from codec_jax import checkpoint, experiment, models, storage
from codec_jax.codec import Codec
from codec_jax.convert import taae as convert_taae
from codec_jax.errors import UserError

CHECKPOINTS = "checkpoints"
_UPSTREAM_CONFIG = "model_config.json"


def load(source: epath.PathLike, weights: str = "ema") -> Codec:
    """Opens a codec.

    source: a directory written by `Codec.save`, a run directory of train.py (its newest complete checkpoint), or an
    upstream directory (model_config.json and model.safetensors). weights: of a run, "ema" where present, or "raw".

    Raises UserError, one sentence, for anything else.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f'weights is "ema" or "raw", not "{weights}".')
    directory = epath.Path(source)
    if not directory.is_dir():
        raise UserError(f"there is no model directory {directory}.")
    if (directory / CHECKPOINTS).exists():
        return _load_run(directory, weights)
    if (directory / _UPSTREAM_CONFIG).exists():
        config = storage.read_json(directory / _UPSTREAM_CONFIG)
        tensors = storage.read_tensors(directory / storage.WEIGHTS)
        return Codec("taae", *convert_taae.from_torch(tensors, config))
    if not (directory / storage.CONFIG).exists():
        raise UserError(
            f"{directory} is no model: it has neither {storage.CONFIG} with {storage.WEIGHTS} nor {CHECKPOINTS}/."
        )
    return _load_saved(directory)


def _load_saved(directory: epath.Path) -> Codec:
    config, params, extras = storage.read(directory)
    family, cfg = experiment.codec_from_dict(config)
    _check_shapes(directory / storage.WEIGHTS, params, models.FAMILIES[family].init, cfg)
    return Codec(family, cfg, {"params": params}, extras)


def _check_shapes(path: epath.Path, params: Any, init: Callable, cfg: Any) -> None:
    """Raises UserError naming the first tensor that is missing, left over, or of another shape than the config says."""
    abstract = nn.unbox(jax.eval_shape(lambda: init(cfg, jax.random.key(0))))["params"]
    wanted = {name: leaf.shape for name, leaf in storage.flatten(abstract, leaf=lambda x: x).items()}
    found = {name: leaf.shape for name, leaf in storage.flatten(params).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            shapes = [str(shapes.get(name, "no such tensor")) for shapes in (wanted, found)]
            raise UserError(f"{path} does not fit its config.json: {name} is {shapes[1]}, and should be {shapes[0]}.")


def _load_run(directory: epath.Path, weights: str) -> Codec:
    config = storage.read_json(directory / storage.CONFIG)
    family, cfg = experiment.codec_from_dict(config)
    steps = directory / CHECKPOINTS
    params: Any = checkpoint.restore_subtree(steps, ("players", "codec", "ema")) if weights == "ema" else None
    if params is None:
        params = checkpoint.restore_subtree(steps, ("players", "codec", "params"))
    return Codec(family, cfg, {"params": params})

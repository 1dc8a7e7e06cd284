"""Any source to a Codec: a saved directory, a run directory, an upstream checkpoint, or a hub id."""

import collections
import importlib.util
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from etils import epath

from codec_jax import checkpoint, convert, experiment, models, storage
from codec_jax.codec import Codec
from codec_jax.convert import layout, upstream
from codec_jax.convert import wavlm as convert_wavlm
from codec_jax.errors import UserError
from codec_jax.models.wavlm import WavLMConfig
from codec_jax.storage import Extras

CHECKPOINTS = "checkpoints"


class Model(NamedTuple):
    """A codec that is opened but not loaded: the leaves of `variables` may be mapped files or computed when asked for.

    weights: "ema" or "raw" where the source has both kinds, else None. step: of a run. notes: sentences for whoever
    converts it.
    """

    family: str
    config: Any
    variables: dict[str, Any]
    extras: Extras
    weights: str | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()


def load(source: epath.PathLike, weights: str = "ema") -> Codec:
    """Opens a codec.

    source: a directory written by `Codec.save` or `codec-jax convert`, a run directory of train.py (its newest complete
    checkpoint), an upstream directory (model_config.json or config.yaml, and weights), a training checkpoint beside
    its config, or the id of any of these on the Hugging Face hub ("org/name"; needs the extra `hub`).
    weights: of a run or training checkpoint, "ema" where present, or "raw".

    Raises UserError, one sentence, for anything else.
    """
    return loaded(open_model(source, weights))


def loaded(model: Model) -> Codec:
    """The codec of an opened model, all of its parameters read."""
    return Codec(model.family, model.config, layout.materialise(model.variables), model.extras)


def open_model(
    source: epath.PathLike,
    weights: str = "ema",
    *,
    step: int | None = None,
    model_config: epath.PathLike | None = None,
) -> Model:
    """What `load` opens, with its parameters still where they are. step: of a run, instead of the newest.

    model_config: beside bare upstream weights. Raises UserError, one sentence, naming what is wrong.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f'weights is "ema" or "raw", not "{weights}".')
    path = epath.Path(source)
    if not path.exists():
        path = _from_hub(str(source))
    if (path / CHECKPOINTS).exists():
        return _open_run(path, weights, step)
    if step is not None:
        raise UserError(f"{path} is no run directory, so it has no steps to choose from.")
    if model_config is not None or upstream.is_upstream(path):
        return _open_upstream(path, weights, model_config)
    if not (path / storage.CONFIG).exists():
        raise UserError(
            f"{path} is no model: it has neither {storage.CONFIG} with {storage.WEIGHTS}, nor {CHECKPOINTS}/, nor "
            f"{' or '.join(family.CONFIG_FILE for family in convert.FAMILIES.values())} of upstream's."
        )
    return _open_saved(path)


def read_config(source: epath.PathLike) -> tuple[str, Any]:
    """Family and config of what `open_model` opens, of a run without reading a checkpoint. Raises UserError as it."""
    path = epath.Path(source)
    if (path / CHECKPOINTS).exists():
        return experiment.codec_from_dict(storage.read_json(path / storage.CONFIG))
    model = open_model(source)
    return model.family, model.config


def open_wavlm(source: epath.PathLike) -> tuple[WavLMConfig, layout.Tensors]:
    """Config and tensors of Hugging Face's `WavLMModel`, in a directory or by its id on the hub.

    Raises UserError, one sentence, where it is not there or no WavLM.
    """
    path = epath.Path(source)
    if not path.exists():
        path = _from_hub(str(source))
    if not (path / storage.CONFIG).exists():
        raise UserError(f"{path} is no WavLM: it has no {storage.CONFIG}.")
    try:
        cfg = convert_wavlm.read_config(storage.read_json(path / storage.CONFIG))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return cfg, upstream.read_weights(upstream.find_weights(path))[0]


def _open_saved(directory: epath.Path) -> Model:
    config, variables, extras = storage.read(directory)
    family, cfg = experiment.codec_from_dict(config)
    _check_shapes(directory / storage.WEIGHTS, variables, models.FAMILIES[family].init, cfg)
    return Model(family, cfg, variables, extras)


def _check_shapes(path: epath.Path, variables: Any, init: Callable, cfg: Any) -> None:
    """Raises UserError naming the first tensor that is missing, left over, or of another shape than the config says."""
    abstract = nn.unbox(jax.eval_shape(lambda: init(cfg, jax.random.key(0))))
    wanted = {name: leaf.shape for name, leaf in storage.flatten(storage.merged(abstract)).items()}
    found = {name: leaf.shape for name, leaf in storage.flatten(storage.merged(variables)).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            shapes = [str(shapes.get(name, "no such tensor")) for shapes in (wanted, found)]
            raise UserError(f"{path} does not fit its config.json: {name} is {shapes[1]}, and should be {shapes[0]}.")


def _open_run(directory: epath.Path, weights: str, step: int | None) -> Model:
    config = storage.read_json(directory / storage.CONFIG)
    family, cfg = experiment.codec_from_dict(config)
    for kind, key in (("ema", "ema"), ("raw", "params")):
        if weights == "ema" or kind == "raw":
            params, step = checkpoint.restore_subtree(directory / CHECKPOINTS, ("players", "codec", key), step)
            if params is not None:
                statistics, _ = checkpoint.restore_subtree(directory / CHECKPOINTS, (storage.STATISTICS,), step)
                variables = {"params": params} | ({storage.STATISTICS: statistics} if statistics else {})
                return Model(family, cfg, variables, Extras(), kind, step)
    raise UserError(f"{directory / CHECKPOINTS} holds no codec.")


def _open_upstream(path: epath.Path, weights: str, model_config: epath.PathLike | None) -> Model:
    source = upstream.open_source(path, weights, model_config)
    family = convert.FAMILIES[source.family]
    try:
        cfg, variables, extras = family.from_torch_lazily(source.tensors, source.config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if source.metadata:
        extras = extras._replace(upstream={**extras.upstream, "metadata": source.metadata})
    return Model(
        source.family, cfg, variables, extras, source.weights, notes=(*_notes(source), *family.notes(cfg, extras))
    )


def _notes(source: upstream.Source) -> tuple[str, ...]:
    """What happened to weights that are not float32."""
    counts = collections.Counter(tensor.dtype.name for tensor in source.tensors.values())
    change = {"float16": "upcast", "bfloat16": "upcast", "float64": "rounded"}
    return tuple(
        f"{count} tensors in {dtype}: {change[dtype]} to float32." for dtype, count in counts.items() if dtype in change
    )


def _from_hub(name: str) -> epath.Path:
    """The local snapshot of a repository on the hub, fetched where it is not there yet."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"there is no model {name}.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"there is no directory {name}; if it is a model on the hub, pip install codec-jax[hub] first.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.yaml", "*.safetensors", "model.ckpt", "model.pth", "pytorch_model.bin"]
    try:
        return epath.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"there is no directory {name}, and the hub gave no model of that name: {reason}") from error

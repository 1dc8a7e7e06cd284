"""Experiment: everything a run is made of, as frozen dataclasses, and how files and flags become one."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import pathlib
import types
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from codec_jax import models
from codec_jax.errors import UserError
from codec_jax.models import discriminators, wavlm
from codec_jax.models.discriminators import DACDiscriminatorConfig, DiscriminatorConfig
from codec_jax.settings import (
    CTCConfig,
    DataConfig,
    LossConfig,
    MeshConfig,
    MupConfig,
    OptimConfig,
    PerceptualConfig,
    StageConfig,
    TrainingConfig,
)
from codec_jax.storage import read_json


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: the codec (family, model, bottleneck), and how it is trained.

    losses, optim: of every stage that does not bring its own. stages: in order, by name; none means one of everything.
    discriminator_seconds: the discriminators judge a window of this length, drawn anew every step (0: the whole crop).
    perceptual: the listener of `losses.perceptual`. ctc: the head of `losses.ctc`. init_from: a fresh run begins with
    the weights of this run directory, saved codec or upstream checkpoint.
    """

    family: str
    model: Any
    bottleneck: Any
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    losses: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    stages: dict[str, StageConfig] = dataclasses.field(default_factory=dict)
    discriminator: DiscriminatorConfig | DACDiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    discriminator_seconds: float = 0.0
    perceptual: PerceptualConfig = dataclasses.field(default_factory=PerceptualConfig)
    ctc: CTCConfig = dataclasses.field(default_factory=CTCConfig)
    init_from: str | None = None
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    mup: MupConfig = dataclasses.field(default_factory=MupConfig)

    @property
    def codec(self) -> Any:
        """The family's own config: what the model functions take."""
        return models.FAMILIES[self.family].Config(self.model, self.bottleneck)

    def validate(self) -> None:
        """Raises UserError where fields contradict each other, saying which to change."""
        self.codec.validate()
        data, training = self.data, self.training
        positive = {
            "data.batch_size": data.batch_size,
            "data.max_valid_clips": data.max_valid_clips,
            "training.steps": training.steps,
            "training.accumulate": training.accumulate,
            "training.log_every": training.log_every,
            "training.eval_every": training.eval_every,
            "training.checkpoint_every": training.checkpoint_every,
            "training.keep_checkpoints": training.keep_checkpoints,
            "training.max_skips": training.max_skips,
        }
        for name, value in positive.items():
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if data.batch_size % training.accumulate:
            raise UserError(
                f"data.batch_size={data.batch_size} does not divide into {training.accumulate} parts "
                "(training.accumulate)."
            )
        if not 0 < data.valid_fraction < 1:
            raise UserError(f"data.valid_fraction must lie between 0 and 1, not {data.valid_fraction}.")
        if data.valid is not None and data.train is None:
            raise UserError("data.valid is set but data.train is not: give both, or data.train alone.")
        if self.mup.base_channels:
            self._validate_mup()
        for stage in self.stages.values() or [StageConfig()]:
            self._validate_stage(stage)

    def _validate_stage(self, stage: StageConfig) -> None:
        losses = stage.losses or self.losses
        losses.validate()
        for optim in (self.optim, stage.optim, stage.discriminator_optim):
            if optim is not None:
                optim.validate()
        stage.validate()
        if (stage.kmeans or stage.revive_after) and not models.FAMILIES[self.family].has_codebooks(self.codec):
            raise UserError(f"kmeans and revive_after need a codec with codebooks: this {self.family} has none.")
        if losses.adversarial_terms and not stage.discriminate:
            raise UserError(
                "losses.adversarial and losses.feature_matching need a stage that trains discriminators: set "
                "discriminate=True in its StageConfig."
            )
        # An STFT reflects half its longest window at the ends of a crop.
        least = max(losses.mrstft.fft_sizes) // 2 + 1 if losses.stft else 1
        if self.crop_samples < least:
            raise UserError(
                f"data.crop_seconds={self.data.crop_seconds} gives {self.crop_samples} samples: give {least} or more."
            )
        if losses.perceptual:
            self._validate_listener()
        if losses.ctc:
            self._validate_head()
        if stage.discriminate:
            self.discriminator.validate()
            least = discriminators.least_samples(self.discriminator)
            if self.discriminator_samples < least:
                raise UserError(
                    f"the discriminators hear {self.discriminator_samples} samples, fewer than the {least} they need: "
                    "give a longer discriminator_seconds or data.crop_seconds, or discriminators of shorter windows."
                )
            channels = models.FAMILIES[self.family].geometry(self.codec).channels
            if self.discriminator.in_channels != channels:
                raise UserError(
                    f"discriminator.in_channels is {self.discriminator.in_channels}, but the codec's audio has "
                    f"{channels}: give as many."
                )

    def _validate_mup(self) -> None:
        if self.family != "taae" or models.FAMILIES[self.family].has_codebooks(self.codec):
            raise UserError("mup.base_channels is for a TAAE without learned codebooks: set it to 0.")
        base = dataclasses.replace(self.model, channels=self.mup.base_channels)
        try:
            dataclasses.replace(self, model=base).codec.validate()
        except UserError as error:
            raise UserError(f"mup.base_channels={self.mup.base_channels} is no width of this model: {error}") from error
        every = (self.optim, *(stage.optim for stage in self.stages.values() if stage.optim))
        if any(optim.name != "adamw" for optim in every):
            raise UserError('mup.base_channels scales the steps of Adam: set optim.name to "adamw", or it to 0.')

    def _validate_head(self) -> None:
        self.ctc.validate()
        if not hasattr(models.FAMILIES[self.family], "analyse"):
            raise UserError(f"losses.ctc reads the latents of a TAAE; an {self.family} quantises inside its decoder.")

    def _validate_listener(self) -> None:
        self.perceptual.validate()
        rate = models.FAMILIES[self.family].geometry(self.codec).sample_rate
        if rate != wavlm.SAMPLE_RATE:
            raise UserError(
                f"losses.perceptual listens at {wavlm.SAMPLE_RATE} Hz, and the codec's audio has {rate} Hz."
            )
        least = wavlm.least_samples(self.perceptual.model)
        if self.crop_samples < least:
            raise UserError(f"losses.perceptual hears {least} samples and more: give a longer data.crop_seconds.")

    @property
    def discriminator_samples(self) -> int:
        """Samples of the window that the discriminators judge."""
        if not self.discriminator_seconds:
            return self.crop_samples
        rate = models.FAMILIES[self.family].geometry(self.codec).sample_rate
        return min(self.crop_samples, round(self.discriminator_seconds * rate))

    @property
    def crop_samples(self) -> int:
        """Samples of a training crop: `data.crop_seconds` rounded to whole hops."""
        geometry = models.FAMILIES[self.family].geometry(self.codec)
        hops = round(self.data.crop_seconds * geometry.sample_rate / geometry.hop_length)
        return hops * geometry.hop_length


# ---- to and from plain data --------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts; tuples stay tuples (JSON turns them into lists, and `from_dict` back)."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any]) -> Experiment:
    """The inverse of `to_dict`. Raises UserError for unknown fields and wrong types, naming the field."""
    types_ = _family_types(data.get("family"))
    judged = data.get("discriminator")
    kind = judged.get("kind", "stft") if isinstance(judged, dict) else "stft"  # configs older than the field have none
    return _build(Experiment, data, "", types_ | {"discriminator": discriminators.config_type(kind)})


def codec_hash(family: str, config: Any) -> str:
    """SHA-256 of a codec's config as canonical JSON, in hexadecimal: the same config, the same hash."""
    text = json.dumps({"family": family, **to_dict(config)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def codec_from_dict(data: dict[str, Any]) -> tuple[str, Any]:
    """Family and codec config from a saved codec's or a run's config.json; other fields are left alone."""
    types_ = _family_types(data.get("family"))
    parts = {name: _build(cls, data.get(name, {}), f"{name}.", {}) for name, cls in types_.items()}
    config = models.FAMILIES[data["family"]].Config(**parts)
    config.validate()
    return data["family"], config


def _family_types(family: Any) -> dict[str, Any]:
    if family not in models.FAMILIES:
        raise UserError(f'family is one of {", ".join(models.FAMILIES)}, not "{family}".')
    return {field.name: field.type for field in dataclasses.fields(models.FAMILIES[family].Config)}


def _build(cls: Any, data: Any, prefix: str, known_types: dict[str, Any]) -> Any:
    """A dataclass from a dict, every field checked against its annotation."""
    if not isinstance(data, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the config'} must be a set of fields, not {data!r}.")
    fields = {field.name: known_types.get(field.name, field.type) for field in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise UserError(f"{prefix}{name} is no config field; {prefix or 'the config '}has {', '.join(fields)}.")
    return cls(**{name: _coerce(fields[name], value, prefix + name) for name, value in data.items()})


def _coerce(annotation: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return _build(annotation, value, f"{name}.", {})
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(a for a in arguments if a is not type(None)), value, name)
    if origin is dict and isinstance(value, dict):
        return {key: _coerce(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_coerce(arguments[0], item, name) for item in value)
        if len(arguments) == len(value):
            return tuple(_coerce(a, item, name) for a, item in zip(arguments, value))
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif isinstance(annotation, type) and type(value) is annotation:
        return value
    wanted = getattr(annotation, "__name__", annotation) if origin is None else annotation
    raise UserError(f"{name} must be of type {wanted}, not {value!r}.")


# ---- to and from files and flags ---------------------------------------------------------------


def load_config(spec: str, overrides: Sequence[str] = ()) -> Experiment:
    """`configs/taae.py:nano` and flags `--config.optim.learning_rate=3e-4` to a validated Experiment.

    Also a resolved config as a run's config.json has it, by its file name. Raises UserError for a missing file or
    variant, an unknown field, a wrong type, or an impossible combination.
    """
    found = _read_resolved(spec) if spec.endswith(".json") else _call_get_config(spec)
    experiment = apply_overrides(found, overrides)
    experiment.validate()
    return experiment


def _read_resolved(file: str) -> Experiment:
    try:
        return from_dict(read_json(file))
    except UserError as error:
        raise UserError(f"{file} is no resolved config of a run: {error}") from error


def _call_get_config(spec: str) -> Experiment:
    file, _, variant = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"no config file {file}: give --config=configs/taae.py:nano or the like.")
    module_spec = importlib.util.spec_from_file_location(f"codec_jax_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"{file} is no Python file.")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} defines no get_config(variant), so it is no config.")
    try:
        return module.get_config(variant) if variant else module.get_config()
    except ValueError as error:
        raise UserError(str(error)) from error


def apply_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """Flags `--config.a.b=value`, parsed by ml_collections against the types that stand in the config."""
    if not overrides:
        return experiment
    for flag in overrides:
        if not flag.startswith("--config."):
            raise UserError(f"{flag} is no flag of this command; config fields are set as --config.data.batch_size=8.")
        _check_field(to_dict(experiment), flag.removeprefix("--config.").partition("=")[0])
    holder = flags.FlagValues()
    argv = ["codec-jax", *overrides]
    config = config_dict.ConfigDict(_with_placeholders(to_dict(experiment)))
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=argv)
        holder(argv)
        parsed: Any = holder["config"].value
        resolved = parsed.to_dict()
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[0]
        raise UserError(f"cannot apply {' '.join(overrides)}: {reason}") from error
    return from_dict(_in_order_of(to_dict(experiment), resolved))


def _in_order_of(model: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """ConfigDict sorts its keys; stages have an order."""
    return {key: _in_order_of(model[key], tree[key]) if isinstance(model[key], dict) else tree[key] for key in model}


def _check_field(fields: dict[str, Any], path: str) -> None:
    """Raises UserError unless a.b.c leads through `fields` to one."""
    parent = "the config"
    for name in path.split("."):
        if not isinstance(fields, dict) or name not in fields:
            known = ", ".join(fields) if isinstance(fields, dict) else "no fields"
            raise UserError(f"{path} is no config field: {parent} has {known}.")
        fields, parent = fields[name], name


def _with_placeholders(tree: dict[str, Any]) -> dict[str, Any]:
    """ConfigDict needs to be told that an empty field holds text (every optional field is a path)."""
    return {
        name: _with_placeholders(value)
        if isinstance(value, dict)
        else config_dict.placeholder(str)
        if value is None
        else value
        for name, value in tree.items()
    }


def to_json(experiment: Experiment) -> str:
    """The resolved config, as stored in the run directory and in every checkpoint."""
    return json.dumps(to_dict(experiment), indent=2) + "\n"

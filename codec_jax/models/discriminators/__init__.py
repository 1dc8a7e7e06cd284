"""The discriminators. `KINDS` is the one table of them; `protocol.py` says what each owes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from codec_jax.errors import UserError
from codec_jax.models.discriminators import dac, stft
from codec_jax.models.discriminators.dac import DACDiscriminatorConfig
from codec_jax.models.discriminators.protocol import Judgement
from codec_jax.models.discriminators.stft import DiscriminatorConfig
from codec_jax.ops.counter_random import quick

__all__ = [
    "KINDS",
    "DACDiscriminatorConfig",
    "DiscriminatorConfig",
    "Judgement",
    "config_type",
    "flops",
    "init",
    "judge",
    "judge_all",
    "judges",
    "least_samples",
]

KINDS = {"stft": stft, "dac": dac}
Config = DiscriminatorConfig | DACDiscriminatorConfig


def config_type(kind: str) -> type:
    """The config class of a kind. Raises UserError for one that is not in the table."""
    if kind not in KINDS:
        raise UserError(f'discriminator.kind is one of {", ".join(KINDS)}, not "{kind}".')
    return KINDS[kind].Config


def judges(cfg: Config) -> tuple[str, ...]:
    """Their names, which are those of their parameters."""
    return tuple(KINDS[cfg.kind].judges(cfg))


def init(cfg: Config, key: PRNGKeyArray) -> dict[str, Any]:
    """Fresh parameters by judge, boxed with logical axis names. Raises UserError for an impossible config."""
    cfg.validate()
    modules = KINDS[cfg.kind].judges(cfg)
    clip = jnp.zeros((1, least_samples(cfg), cfg.in_channels))
    keys = jax.random.split(quick(key), len(modules))
    return {name: module.init(k, clip)["params"] for (name, module), k in zip(modules.items(), keys)}


def judge(cfg: Config, params: Mapping[str, Any], name: str, audio: Float[Array, "batch time channel"]) -> Judgement:
    """The judgement of one judge of audio in [-1, 1]; of `params` only its own are used.

    Raises ValueError for audio too short for it (`least_samples` are enough for all).
    """
    judgement: Any = KINDS[cfg.kind].judges(cfg)[name].apply({"params": params[name]}, audio)
    return judgement


def judge_all(cfg: Config, params: Mapping[str, Any], audio: Float[Array, "batch time channel"]) -> list[Judgement]:
    """The judgements of all, in order.

    In training take them one by one: together their feature maps are hundreds of times the audio's size.
    """
    return [judge(cfg, params, name, audio) for name in judges(cfg)]


def flops(cfg: Config, samples: int) -> dict[str, float]:
    """Of one judgement of one clip of `samples` samples, by judge (models/flops.py)."""
    return KINDS[cfg.kind].flops(cfg, samples)


def least_samples(cfg: Config) -> int:
    """The shortest clip from which on every length can be judged by all."""
    return KINDS[cfg.kind].least_samples(cfg)

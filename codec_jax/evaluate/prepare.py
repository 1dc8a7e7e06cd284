"""From what was asked for, in words, to an evaluation: files, models, peers, metrics, checked before work begins."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from codec_jax import sources
from codec_jax.errors import UserError, require
from codec_jax.evaluate import asr, conditions, inputs, outputs, peers, scores, systems
from codec_jax.evaluate.inputs import Utterance
from codec_jax.evaluate.run import Evaluation
from codec_jax.evaluate.systems import System
from codec_jax.sources import Model

ANCHOR = 3500
"""Hz: the low-pass that is always there."""


class Asked(NamedTuple):
    """An evaluation in words. audio, output: directories. models: whatever `codec_jax.load` opens, with these weights.

    against: names of `peers`. conditions: names of `conditions`. metrics: names, none for all that can be computed.
    rates: of the models, as behind the @ of their systems; none for all. limit: utterances of each condition, 0 for
    all. asr: a recogniser's command, "" for none.
    """

    audio: str
    output: str
    models: Sequence[str] = ()
    weights: str = "ema"
    against: Sequence[str] = ()
    conditions: Sequence[str] = (conditions.CLEAN,)
    metrics: Sequence[str] = ()
    rates: Sequence[str] = ()
    limit: int = 0
    asr: str = ""


class Prepared(NamedTuple):
    """settings: what must stay for a run to go on. remarks: sentences that the user and the report are told."""

    evaluation: Evaluation
    settings: dict[str, Any]
    remarks: list[str]


def prepare(asked: Asked) -> Prepared:
    """Raises UserError for whatever cannot be: wrong names first, then files, then models, which take longest."""
    wanted = list(dict.fromkeys(conditions.parse(text) for text in asked.conditions))
    names, remarks = _metrics(asked)
    compared, missing = peers.find(asked.against)
    remarks += [f"{name} is left out: {reason}." for name, reason in missing.items()]
    utterances = _limited(inputs.find(pathlib.Path(asked.audio), wanted), asked.limit)
    opened = dict(zip(unique_names(asked.models), (sources.open_model(path, asked.weights) for path in asked.models)))
    clips = [inputs.size(utterance) for utterance in utterances]
    ours = _chosen(
        [one for name, model in opened.items() for one in _systems(model, name, clips)], asked.rates, bool(asked.models)
    )
    remarks += _resampled(ours, clips)
    found = _distinct([systems.original(), *ours, *compared, systems.lowpass(ANCHOR)])
    evaluation = Evaluation(utterances, found, names, epath.Path(asked.output), asked.asr)
    told = {name: _identity(path, opened[name]) for name, path in zip(opened, asked.models)}
    return Prepared(evaluation, outputs.settings(asked.audio, told, evaluation), remarks)


def unique_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many of those before it as tell them apart, joined by "-".

    A number is added where nothing else does, and where a name is a peer's.
    """
    parts = [[part for part in pathlib.PurePath(path).parts if part.strip("/.")] or [path] for path in paths]
    names: list[str] = []
    for i, own in enumerate(parts):
        others = [other for j, other in enumerate(parts) if j != i]
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        same = any(other[-depth:] == own[-depth:] for other in others)
        name = base = "-".join(own[-1:] if same else own[-depth:])
        number = 1
        while name in names or name in peers.PEERS or name in peers.ANCHORS:
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names


def _metrics(asked: Asked) -> tuple[list[str], list[str]]:
    here, missing = scores.available()
    if asked.asr:
        asr.check(asked.asr)
        here = [*here, *asr.METRICS]
    if not asked.metrics:
        return here, [f"{name} is left out: {reason}." for name, reason in missing.items()]
    known = [*scores.METRICS, *asr.METRICS]
    for name in asked.metrics:
        require(name in known, f"there is no metric {name}: choose from {', '.join(known)}.")
        require(name not in missing, f"{name} cannot be computed: {missing.get(name)}.")
        require(name in here, f"{name} needs a speech recogniser: give its command as --asr.")
    return list(dict.fromkeys(asked.metrics)), []


def _limited(utterances: Sequence[Utterance], limit: int) -> list[Utterance]:
    """At most `limit` of each condition, evenly over the list, so that no language is left out for its name."""
    groups: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        groups.setdefault(str(utterance.condition), []).append(utterance)
    kept: list[Utterance] = []
    for group in groups.values():
        count = min(limit, len(group)) if limit else len(group)
        kept += [group[i] for i in np.linspace(0, len(group) - 1, count).round().astype(int)]
    return kept


def _systems(model: Model, name: str, clips: Sequence[tuple[int, int]]) -> list[System]:
    return systems.codec_systems(sources.loaded(model), name, clips)


def _chosen(ours: Sequence[System], rates: Sequence[str], any_model: bool) -> list[System]:
    if not rates:
        return list(ours)
    require(any_model, "--rates are of models, and there is none: give --model.")
    there = list(dict.fromkeys(_rate(system) for system in ours))
    for rate in rates:
        require(rate in there, f"no model has the rate {rate}: choose from {', '.join(there)}.")
    return [system for system in ours if _rate(system) in rates]


def _rate(system: System) -> str:
    return system.name.partition("@")[2]


def _resampled(ours: Sequence[System], clips: Sequence[tuple[int, int]]) -> list[str]:
    """A sentence per model that does not work at the rate of all files."""
    said = []
    for name, rate in {system.family: system.sample_rate for system in ours}.items():
        others = sorted({other for samples, other in clips if samples and other != rate})
        if others:
            rates = " and ".join(f"{other} Hz" for other in others)
            said.append(
                f"{name} works at {rate} Hz and there are files of {rates}: they are resampled for it, and what it "
                "gives is resampled back, so its band is the narrower of both."
            )
    return said


def _distinct(found: Sequence[System]) -> list[System]:
    """Each once; UserError where two different ones have one name."""
    kept: dict[str, System] = {}
    for system in found:
        other = kept.setdefault(system.name, system)
        if other.label != system.label:
            raise UserError(
                f"two systems are called {system.name} ({other.label}, {system.label}): rename one of them."
            )
    return list(kept.values())


def _identity(path: str, model: Model) -> str:
    """Where a model came from, and of a run which step and weights."""
    step = "" if model.step is None else f", step {model.step}"
    return f"{path}{step}" + (f", {model.weights}" if model.weights else "")

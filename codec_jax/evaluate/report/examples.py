"""The utterances that can be listened to in a report: each model's best, median and worst, their audio bounded."""

import base64
import io
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import soundfile

from codec_jax.audio import files
from codec_jax.audio.resample import resample
from codec_jax.evaluate import run, scores
from codec_jax.evaluate.outputs import Results
from codec_jax.evaluate.report.kinds import MODEL, PEER, kind
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.run import Evaluation

BUDGET = 12 << 20
"""Bytes of audio before base64, which adds a third."""
MOST, SECONDS = 12, 10
_BY = ("pesq_wb", "estoi", "stoi", "mel_distance_esc")  # the first that there is decides what is best
_WHICH = ("worst", "median", "best")
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_OPUS_LEVEL = 0.75  # libsndfile: 256 kbit/s less 250 times this, so about 68


class Example(NamedTuple):
    """An utterance of the first condition. roles: (family, "worst", "median" or "best", its figure), one or more."""

    utterance: str
    roles: tuple[tuple[str, str, float], ...]


class Chosen(NamedTuple):
    """metric: by which. systems: the rate of each family that was looked at, by family."""

    metric: str
    examples: list[Example]
    condition: str
    systems: dict[str, str]


class Packed(NamedTuple):
    """told: for the page. clips: base64 [example][system]."""

    told: dict[str, Any]
    clips: list[list[str]]


def choose(evaluation: Evaluation, table: Sequence[Row], results: Results, models: Collection[str]) -> Chosen:
    """Worst, median and best of each model's highest rate, else of each peer's, as far as their figures are defined.

    models: families.
    """
    metric = next((name for name in (*_BY, *evaluation.metrics) if name in evaluation.metrics), "")
    wanted = MODEL if models else PEER
    looked_at = {
        system.family: system.name
        for system in sorted(evaluation.systems, key=lambda one: _rate(results, one.name))
        if kind(system, models) == wanted
    }
    roles: dict[str, list[tuple[str, str, float]]] = {}
    ranked = {family: _ranked(table, results.condition, name, metric) for family, name in looked_at.items()}
    for place, which in enumerate(_WHICH):
        for family, found in ranked.items():
            if found:
                row = found[[0, len(found) // 2, -1][place]]
                roles.setdefault(row.utterance, []).append((family, which, row.scores[metric]))
    if not roles:  # nothing is defined: the first utterances are better than none
        roles = {row.utterance: [] for row in table if row.condition == results.condition}
    examples = [Example(name, tuple(found)) for name, found in roles.items()][:MOST]
    return Chosen(metric, examples, results.condition, looked_at)


def pack(evaluation: Evaluation, table: Sequence[Row], chosen: Chosen) -> Packed:
    """As FLAC where all of it fits into BUDGET, else as Opus, and then as many examples as fit."""
    rows = {(row.system, row.utterance): row for row in table if row.condition == chosen.condition}
    packed, encoding = _packed(evaluation, rows, chosen.examples, _flac), "FLAC"
    if len(packed) < len(chosen.examples):
        packed, encoding = _packed(evaluation, rows, chosen.examples, _opus), "Opus"
    told = {
        "format": encoding,
        "metric": chosen.metric,
        "looked_at": chosen.systems,
        "most_seconds": SECONDS,
        "left_out": len(chosen.examples) - len(packed),
        "examples": [
            {"utterance": example.utterance, "roles": example.roles, "sample_rate": rate}
            for example, (rate, _) in zip(chosen.examples, packed)
        ],
    }
    return Packed(told, [clips for _, clips in packed])


def _packed(
    evaluation: Evaluation,
    rows: dict[tuple[str, str], Row],
    examples: Sequence[Example],
    encode: Callable[[np.ndarray, int], bytes],
) -> list[tuple[int, list[str]]]:
    """(sample rate, base64 of every system) of the first examples that fit into BUDGET together."""
    found, spent = [], 0
    for example in examples:
        rate, clips = 0, []
        for system in evaluation.systems:
            row = rows.get((system.name, example.utterance))
            path = run.audio_path(evaluation.directory, row) if row else None
            if path is None or not path.exists():
                clips.append(b"")
                continue
            audio, rate = files.read(path)
            clips.append(encode(audio[0, : SECONDS * rate], rate))
        spent += sum(map(len, clips))
        if spent > BUDGET:
            break
        found.append((rate, [base64.b64encode(clip).decode() for clip in clips]))
    return found


def _flac(audio: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, files.pcm16(audio), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _opus(audio: np.ndarray, rate: int) -> bytes:
    there = rate if rate in _OPUS_RATES else _OPUS_RATES[-1]
    buffer = io.BytesIO()
    clipped = np.clip(resample(audio, rate, there), -1, 1)
    soundfile.write(buffer, clipped, there, format="OGG", subtype="OPUS", compression_level=_OPUS_LEVEL)
    return buffer.getvalue()


def _ranked(table: Sequence[Row], condition: str, system: str, metric: str) -> list[Row]:
    """Rows of a system, the worst first."""
    there = [row for row in table if (row.system, row.condition) == (system, condition)]
    defined = [row for row in there if math.isfinite(row.scores.get(metric, math.nan))]
    lower = bool(metric) and scores.described(metric).better == "lower"
    return sorted(defined, key=lambda row: row.scores[metric], reverse=lower)


def _rate(results: Results, system: str) -> float:
    """Measured bits per second; what is not coded comes first."""
    found = results.means.get(system, {}).get("bits_per_second")
    return found.mean if found and math.isfinite(found.mean) else 0.0

"""The site of a listening test: pages, blinded stimuli, and beside it the key that says what they are.

Nothing is fetched: a page that was opened from disk may not read files beside it, in Chromium as in Firefox, but it may
run them. So every stimulus is a script that hands the page a .wav file in base64, one trial at a time.
"""

import base64
import datetime
import importlib.resources
import itertools
import json
import math
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from codec_jax.errors import UserError, require
from codec_jax.evaluate.listening import stimuli as sound
from codec_jax.evaluate.listening.stimuli import LOW_ANCHOR, MID_ANCHOR, REFERENCE, Stimuli, Trial
from codec_jax.evaluate.systems import System

MUSHRA, AB = "mushra", "ab"
FORMAT = 1
MOST_SIGNALS = 12  # of a trial, without the open reference (BS.1534-3, 5.3)
_LETTERS = 17  # A to Q: R is the reference
_PAGES = ("page.css", "plan.js", "player.js", "boards.js", "page.js")
_TEST, _STIMULI = "test.js", "stimuli"
_EPOCH = 946_684_800  # of every file: when it was written would tell the order
_ROLES = {REFERENCE: "reference", LOW_ANCHOR: "low anchor", MID_ANCHOR: "mid-range anchor"}


class Design(NamedTuple):
    """kind: MUSHRA or AB. title: what listeners read. ties: AB offers "no preference". made_of: how, for the key."""

    kind: str
    title: str
    ties: bool
    made_of: Mapping[str, Any]


def key_path(directory: pathlib.Path) -> pathlib.Path:
    """Beside the site and not in it: whoever publishes the directory does not publish the key."""
    return directory.with_name(f"{directory.name}.key.json")


def check(directory: pathlib.Path, force: bool) -> None:
    """Raises UserError where the site or its key exists and must stay."""
    key = key_path(directory)
    for path in (directory, key):
        if path.exists() and not force:
            raise UserError(f"{path} exists already: give another -o, or --force to overwrite.")
    if directory.exists() and not (directory.is_dir() and ((directory / _TEST).exists() or not _any(directory))):
        raise UserError(f"{directory} is no listening test, so it is not overwritten: give another -o.")


def check_systems(systems: Sequence[System], kind: str) -> None:
    """Raises UserError where there are too few of them, too many, or two of one name."""
    names = [system.name for system in systems]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{twice} is there twice: rename one of the directories.")
    if kind == AB:
        require(len(names) > 1, "an AB test compares at least two systems: give more as --model or --against.")
        return
    tested = [name for name in names if name not in _ROLES]
    require(tested, "there is no system to rate: give --model or --against.")
    many = f"{len(names)} signals in a trial are too many: give fewer systems, {_LETTERS - len(_ROLES)} at most."
    require(len(names) <= _LETTERS, many)


def fewest_items(systems: Sequence[System]) -> int:
    """Utterances that BS.1534-3 (7.1) asks for: one and a half times the systems under test, and five at least."""
    return max(5, math.ceil(1.5 * sum(system.name not in _ROLES for system in systems)))


def write(directory: pathlib.Path, stimuli: Stimuli, systems: Sequence[System], design: Design) -> dict[str, Any]:
    """Writes site and key, each under a temporary name first; the key. What was there goes (see `check`)."""
    blind = _blinded(stimuli, systems, design)
    staged = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    key, staged_key = key_path(directory), key_path(staged)
    try:
        _write_files(staged, blind)
        staged_key.write_text(json.dumps(blind.key, indent=1) + "\n", "utf-8")
        if directory.exists():
            shutil.rmtree(directory)
        staged.rename(directory)
        staged_key.replace(key)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        staged_key.unlink(missing_ok=True)
    return blind.key


# ---- blinding -----------------------------------------------------------------------------------


class _Blinded(NamedTuple):
    """public: what the page reads. key: what it must not. files: .wav by name."""

    public: dict[str, Any]
    key: dict[str, Any]
    files: dict[str, bytes]


def _blinded(stimuli: Stimuli, systems: Sequence[System], design: Design) -> _Blinded:
    shared = {"format": FORMAT, "test": secrets.token_hex(8), "kind": design.kind, "title": design.title}
    make = _mushra_trials if design.kind == MUSHRA else _ab_trials
    recordings: dict[str, bytes] = {}
    practice = make((stimuli.practice,), stimuli.sample_rate, recordings)[:1]
    trials = make(stimuli.trials, stimuli.sample_rate, recordings)
    public = {
        **shared,
        "sample_rate": stimuli.sample_rate,
        "ties": design.ties,
        "practice": _without_names(practice[0]),
        "trials": [_without_names(trial) for trial in trials],
    }
    key = {
        **shared,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "made_of": dict(design.made_of),
        "sample_rate": stimuli.sample_rate,
        "loudness_lufs": round(stimuli.loudness, 2),
        "attenuation_db": round(stimuli.attenuation, 2),
        "ties": design.ties,
        "notes": list(stimuli.notes),
        "systems": {
            system.name: {
                "label": system.label,
                "role": _ROLES.get(system.name, "system"),
                "nominal_bps": system.nominal_bps,
            }
            for system in systems
        },
        "practice": practice[0],
        "trials": trials,
    }
    return _Blinded(public, key, recordings)


def _mushra_trials(trials: Sequence[Trial], rate: int, recordings: dict[str, bytes]) -> list[dict]:
    """One a trial: an open reference, and every signal under a name of its own; sorted by names that are random."""
    made = []
    for trial in trials:
        names = {_keep(trial.signals[system], rate, recordings): system for system in trial.signals}
        reference = _keep(trial.signals[REFERENCE], rate, recordings)
        made.append({**_described(trial, rate), "reference": reference, "stimuli": _sorted(names, trial)})
    return sorted(made, key=lambda trial: trial["trial"])


def _ab_trials(trials: Sequence[Trial], rate: int, recordings: dict[str, bytes]) -> list[dict]:
    """Every pair of systems on every utterance; half of a pair's trials have one order, half the other.

    The page turns all of them round for half of the listeners. One utterance alone is there in both orders.
    """
    made = []
    names = [{system: _keep(signal, rate, recordings) for system, signal in trial.signals.items()} for trial in trials]
    for first, second in itertools.combinations(trials[0].signals, 2):
        shown = [(trial, name) for trial, name in zip(trials, names)] * (2 if len(trials) == 1 else 1)
        secrets.SystemRandom().shuffle(shown)
        for number, (trial, name) in enumerate(shown):
            pair = (first, second) if number % 2 else (second, first)
            stimuli = {name[system]: {"system": system, "gain_db": round(trial.gains[system], 2)} for system in pair}
            made.append({**_described(trial, rate), "stimuli": stimuli})
    return sorted(made, key=lambda trial: trial["trial"])


def _described(trial: Trial, rate: int) -> dict[str, Any]:
    seconds = len(next(iter(trial.signals.values()))) / rate
    shared = {"utterance": trial.name, "language": trial.language, "seconds": round(seconds, 3)}
    return {"trial": secrets.token_hex(8), **shared}


def _sorted(names: Mapping[str, str], trial: Trial) -> dict[str, dict]:
    return {name: {"system": names[name], "gain_db": round(trial.gains[names[name]], 2)} for name in sorted(names)}


def _without_names(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What a listener may know of a trial."""
    told = {name: trial[name] for name in ("trial", "reference") if name in trial}
    return {**told, "stimuli": list(trial["stimuli"])}


def _keep(signal: Any, rate: int, recordings: dict[str, bytes]) -> str:
    name = secrets.token_hex(8)
    recordings[name] = sound.dithered(signal, rate, secrets.randbits(64))
    return name


# ---- files --------------------------------------------------------------------------------------


def _write_files(directory: pathlib.Path, blind: _Blinded) -> None:
    (directory / _STIMULI).mkdir(parents=True)
    pages = importlib.resources.files("codec_jax.evaluate.listening")
    for source, target in (("page.html", "index.html"), *((name, name) for name in _PAGES)):
        (directory / target).write_bytes((pages / source).read_bytes())
    (directory / _TEST).write_text(f"window.TEST = {json.dumps(blind.public)};\n", "utf-8")
    for name in sorted(blind.files):
        text = base64.b64encode(blind.files[name]).decode()
        (directory / _STIMULI / f"{name}.js").write_text(f'heard("{name}", "{text}");\n', "ascii")
    for path in (*directory.rglob("*"), directory):
        os.utime(path, (_EPOCH, _EPOCH))


def _any(directory: pathlib.Path) -> bool:
    return any(directory.iterdir())

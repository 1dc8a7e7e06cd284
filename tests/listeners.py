"""Listeners made up: a key, and result files as the page would save them."""

import json
import pathlib
import zlib

import numpy as np

SYSTEMS = {"original": "reference", "lowpass_3500": "low anchor", "lowpass_7000": "mid-range anchor"}


def key(path: pathlib.Path, systems: list[str], trials: int, kind: str = "mushra", test: str = "1234abcd") -> dict:
    """Writes a key: blinded names are s<trial>_<system>; every pair of systems is a trial of an AB test."""
    pairs = [(a, b) for i, a in enumerate(systems) for b in systems[i + 1 :]] if kind == "ab" else [systems]
    made = {
        "format": 1,
        "test": test,
        "kind": kind,
        "title": "A test",
        "systems": {
            name: {"label": name, "role": SYSTEMS.get(name, "system"), "nominal_bps": None} for name in systems
        },
        "trials": [
            {
                "trial": f"t{i}p{j}",
                "utterance": f"clip{i}",
                "language": "en",
                "stimuli": {f"s{i}p{j}_{name}": {"system": name, "gain_db": 0.0} for name in pair},
            }
            for i in range(trials)
            for j, pair in enumerate(pairs)
        ],
    }
    path.write_text(json.dumps(made))
    return made


def checked(result: dict) -> dict:
    """With its check sum, by the rule of docs/listening.md."""
    lines = ["|".join(str(result[name]) for name in ("format", "test", "kind", "listener", "seed"))]
    for trial in result["trials"]:
        said = ",".join(str(trial["ratings"][one]) for one in trial["shown"]) if "ratings" in trial else trial["answer"]
        lines.append("|".join((trial["trial"], ",".join(trial["shown"]), said)))
    return {**result, "check": format(zlib.crc32("\n".join(lines).encode("utf-8")), "08x")}


def session(made: dict, listener: str, answers: dict, began: str = "2026-01-01T10:00:00.000Z", **fields) -> dict:
    """answers: by trial id, ratings by system, or the preferred system, or None for neither."""
    trials = []
    for trial in made["trials"]:
        blind = {stimulus["system"]: name for name, stimulus in trial["stimuli"].items()}
        given = answers[trial["trial"]]
        if made["kind"] == "mushra":
            said = {"ratings": {blind[system]: int(score) for system, score in given.items()}}
        else:
            said = {"answer": "none" if given is None else blind[given]}
        shown = sorted(trial["stimuli"], key=lambda name: zlib.crc32(f"{listener}{name}".encode()))
        trials.append({"trial": trial["trial"], "shown": shown, "seconds": 9.5, "plays": {}, **said})
    result = {"format": 1, "test": made["test"], "kind": made["kind"], "listener": listener, "seed": 7}
    result |= {"began": began, "transducer": "headphones", "trials": trials, **fields}
    return checked(result)


def raters(made: dict, scores: dict[str, np.ndarray], directory: pathlib.Path) -> list[str]:
    """A file a listener of a MUSHRA test. scores: [listener, trial] per system, rounded and kept within 0..100."""
    paths = []
    for i in range(len(next(iter(scores.values())))):
        answers = {
            trial["trial"]: {name: int(np.clip(round(float(values[i, j])), 0, 100)) for name, values in scores.items()}
            for j, trial in enumerate(made["trials"])
        }
        path = directory / f"listener{i}.json"
        path.write_text(json.dumps(session(made, f"L{i}", answers, began=f"2026-01-01T{i // 60:02}:{i % 60:02}:00Z")))
        paths.append(str(path))
    return paths

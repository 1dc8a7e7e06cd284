"""Results of listeners and the key of their test: read, checked, and refused by name with a reason."""

import json
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from codec_jax.errors import UserError, require
from codec_jax.evaluate.listening.site import AB, FORMAT, MUSHRA

KEY_SUFFIX = ".key.json"
NEITHER = "none"


class Key(NamedTuple):
    """What the blinded names of a test are.

    systems: name to label, role and nominal_bps. trials: id to utterance, language and stimuli, which are blinded names
    with their system.
    """

    test: str
    kind: str
    title: str
    systems: Mapping[str, Mapping[str, Any]]
    trials: Mapping[str, Mapping[str, Any]]

    def system(self, trial: str, stimulus: str) -> str:
        """What a blinded name is."""
        return self.trials[trial]["stimuli"][stimulus]["system"]


class Answer(NamedTuple):
    """Of one trial. ratings: blinded name to 0..100, MUSHRA. preferred: blinded name or NEITHER, AB.

    shown: in the listener's order. seconds: spent on it. plays: how often each was switched to, the open reference too.
    """

    shown: tuple[str, ...]
    ratings: Mapping[str, int]
    preferred: str
    seconds: float
    plays: Mapping[str, int]


class Session(NamedTuple):
    """One listener's complete test; answers by trial."""

    path: pathlib.Path
    listener: str
    transducer: str
    began: str
    answers: Mapping[str, Answer]


class Refused(NamedTuple):
    """A file that does not count, and why."""

    path: pathlib.Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


# ---- files ---------------------------------------------------------------------------------------


def find(names: Sequence[str]) -> list[pathlib.Path]:
    """Files as given, and the .json files of directories but keys. Raises UserError: not there, or none in it."""
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, names):
        if path.is_dir():
            inside = sorted(one for one in path.glob("*.json") if not one.name.endswith(KEY_SUFFIX))
            require(inside, f"{path} holds no results (.json): give the files that listeners saved.")
            found += inside
        else:
            require(path.is_file(), f"there is no file {path}.")
            found.append(path)
    return list(dict.fromkeys(found))


def peek(path: pathlib.Path) -> None:
    """Raises UserError where the file is no result at all: said before anybody looks for its key."""
    try:
        _object(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def find_key(given: str | None, results: Sequence[pathlib.Path]) -> Key:
    """The key at `given`, else the one that fits the results: beside them, one directory up, or where we are."""
    if given is not None:
        return read_key(pathlib.Path(given))
    tests = _tests(results)
    folders = dict.fromkeys(one for path in results for one in (path.parent, path.resolve().parent.parent))
    for folder in (*folders, pathlib.Path()):
        for path in sorted(folder.glob(f"*{KEY_SUFFIX}")):
            try:
                key = read_key(path)
            except UserError:
                continue
            if key.test in tests:
                return key
    raise UserError(
        f"{results[0]}: the key of its test is not beside it; give --key SITE_DIR{KEY_SUFFIX}, written with the site."
    )


def read_key(path: pathlib.Path) -> Key:
    """Raises UserError where there is none, or it is damaged."""
    require(path.is_file(), f"there is no key {path}: it was written beside the site, as SITE_DIR{KEY_SUFFIX}.")
    try:
        found = json.loads(path.read_text("utf-8"))
        trials = {trial["trial"]: trial for trial in found["trials"]}
        key = Key(found["test"], found["kind"], found["title"], found["systems"], trials)
        known = all(
            stimulus["system"] in key.systems for trial in trials.values() for stimulus in trial["stimuli"].values()
        )
        fine = known and trials and key.kind in (MUSHRA, AB) and all("utterance" in trial for trial in trials.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        fine = False
    require(fine, f"{path}: is no key of a listening test, or damaged; take the one that was written with the site.")
    return key


def read(paths: Iterable[pathlib.Path], key: Key) -> tuple[list[Session], list[Refused]]:
    """Complete sessions of this test, by time, one a listener, and every other file with the reason."""
    sessions, refused = [], []
    for path in paths:
        try:
            sessions.append(_session(path, key))
        except UserError as error:
            refused.append(Refused(path, str(error)))
    kept: dict[str, Session] = {}
    for session in sorted(sessions, key=lambda one: one.began):
        first = kept.setdefault(session.listener, session)
        if first is not session:
            same = first.answers == session.answers and first.began == session.began
            reason = f"is a copy of {first.path}" if same else f"listener {session.listener} is in {first.path} already"
            refused.append(Refused(session.path, f"{reason}; the earlier session counts."))
    return list(kept.values()), refused


# ---- one session ---------------------------------------------------------------------------------


def _tests(paths: Sequence[pathlib.Path]) -> set[str]:
    found = set()
    for path in paths:
        try:
            found.add(_object(path)["test"])
        except UserError:
            continue
    return found


def _object(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise UserError("is no JSON, or cut off; have it saved again.") from None
    strings = ("test", "kind", "listener", "began", "transducer", "check")
    fine = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in strings)
    fine = fine and isinstance(found.get("seed"), int) and isinstance(found.get("trials"), list)
    require(fine and "format" in found, "is no result of a listening test; give the files that listeners saved.")
    require(found["format"] == FORMAT, "was written by another version of codec_jax; analyse it with that one.")
    return found


def _session(path: pathlib.Path, key: Key) -> Session:
    found = _object(path)
    if (found["test"], found["kind"]) != (key.test, key.kind):
        raise UserError(f"is of another test ({found['test']}, and the key is of {key.test}); give its own key.")
    answers: dict[str, Answer] = {}
    for trial in found["trials"]:
        name, answer = _answer(trial, key)
        require(name not in answers, f"has trial {name} twice; have it saved again.")
        answers[name] = answer
    missing = len(key.trials) - len(answers)
    require(not missing, f"is incomplete: {missing} of {len(key.trials)} trials are missing; it does not count.")
    require(_check(found) == found["check"], "was edited or damaged: its check sum does not fit; have it saved again.")
    return Session(path, found["listener"], found["transducer"], found["began"], answers)


def _answer(trial: Any, key: Key) -> tuple[str, Answer]:
    require(isinstance(trial, dict), "has a trial that is none; have it saved again.")
    name, shown = trial.get("trial"), trial.get("shown")
    require(
        isinstance(name, str) and name in key.trials, f"has a trial {name} that the test has not; it does not count."
    )
    known = key.trials[name]["stimuli"]
    whole = isinstance(shown, list) and all(isinstance(one, str) for one in shown) and sorted(shown) == sorted(known)
    require(whole, f"shows other sounds in trial {name} than the test has; it does not count.")
    ratings, preferred = trial.get("ratings", {}), trial.get("answer", NEITHER)
    if key.kind == MUSHRA:
        _check_ratings(ratings, known, name)
    else:
        fine = "answer" in trial and preferred in (*known, NEITHER)
        require(fine, f"prefers something in trial {name} that was not in it; it does not count.")
    seconds, plays = trial.get("seconds", 0.0), trial.get("plays", {})
    fine = isinstance(seconds, int | float) and isinstance(plays, dict)
    require(fine, f"has damaged times or counts in trial {name}; have it saved again.")
    return name, Answer(tuple(shown), ratings, preferred, float(seconds), plays)


def _check_ratings(ratings: Any, known: Mapping[str, Any], name: str) -> None:
    require(isinstance(ratings, dict), f"has no ratings in trial {name}; have it saved again.")
    unknown = sorted(set(ratings) - set(known))
    require(not unknown, f"rates a sound {unknown[:1]} in trial {name} that the test has not; it does not count.")
    missing = len(set(known) - set(ratings))
    require(not missing, f"is incomplete: {missing} ratings of trial {name} are missing; it does not count.")
    for score in ratings.values():
        fine = isinstance(score, int) and not isinstance(score, bool) and 0 <= score <= 100
        require(fine, f"has a rating of {score} in trial {name}, which is no whole number from 0 to 100.")


def _check(found: Mapping[str, Any]) -> str:
    """As page.js computes it: CRC-32 of who, what, and every answer in the order in which it was shown."""
    lines = ["|".join(str(found[name]) for name in ("format", "test", "kind", "listener", "seed"))]
    for trial in found["trials"]:
        given = (
            ",".join(str(trial["ratings"][name]) for name in trial["shown"])
            if found["kind"] == MUSHRA
            else trial["answer"]
        )
        lines.append("|".join([trial["trial"], ",".join(trial["shown"]), given]))
    return f"{zlib.crc32(chr(10).join(lines).encode()):08x}"

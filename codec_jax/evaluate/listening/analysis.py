"""From the files of listeners to a table, analysis.json, ratings.csv and a plot."""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from codec_jax.errors import UserError
from codec_jax.evaluate.intervals import Interval
from codec_jax.evaluate.listening import mushra, preference, results
from codec_jax.evaluate.listening.results import NEITHER, Key, Refused, Session
from codec_jax.evaluate.listening.site import MUSHRA

OUTPUTS = ("analysis.json", "ratings.csv", "analysis.png", "analysis.svg")


class Analysis(NamedTuple):
    """found: what `mushra.analyse` or `preference.analyse` gives. notes: sentences for whoever reads the figures."""

    key: Key
    sessions: tuple[Session, ...]
    refused: tuple[Refused, ...]
    found: dict[str, Any]
    notes: tuple[str, ...]


def run(names: Sequence[str], key_file: str | None = None) -> Analysis:
    """Reads results (files or directories) and their key. Raises UserError where nothing can be used."""
    paths = results.find(names)
    if key_file is None and len(paths) == 1:
        results.peek(paths[0])
    key = results.find_key(key_file, paths)
    sessions, refused = results.read(paths, key)
    if not sessions:
        raise UserError(str(refused[0]))
    analyse = mushra.analyse if key.kind == MUSHRA else preference.analyse
    found = analyse(sessions, key)
    notes = [*map(str, refused), *found["notes"]]
    return Analysis(key, tuple(sessions), tuple(refused), found, (*notes, *_cautions(key, sessions, found)))


def _cautions(key: Key, sessions: Sequence[Session], found: Mapping[str, Any]) -> list[str]:
    count = len(found["ratings"].listeners) if key.kind == MUSHRA else len(sessions)
    told = []
    if count < 3:
        told.append(f"{count} listener{'s' * (count > 1)}: too few for an interval over listeners, which takes three.")
    elif count < mushra.ENOUGH:
        told.append(
            f"{count} listeners: intervals are wide and rough; ITU-R BS.1534-3 (4.2) speaks of {mushra.ENOUGH}."
        )
    if key.kind == MUSHRA and len(key.trials) < 5:
        told.append(f"{len(key.trials)} utterances: ITU-R BS.1534-3 (7.1) asks for five at least.")
    if len({session.transducer for session in sessions}) > 1:
        told.append("some heard through headphones, some through loudspeakers: BS.1534-3 (8) wants one for all.")
    return told


# ---- table --------------------------------------------------------------------------------------


def table(analysis: Analysis) -> str:
    """The figures, the differences or shares, and what is to be said of them."""
    listeners = len(analysis.sessions)
    head = f"{analysis.key.title}: {listeners} listener{'s' * (listeners > 1)}, {len(analysis.key.trials)} trials"
    if analysis.key.kind == MUSHRA:
        left = len(analysis.found["ratings"].listeners)
        head += f", {listeners - left} excluded" if left < listeners else ""
        parts = [_columns(_system_lines(analysis)), _columns(_difference_lines(analysis))]
    else:
        parts = [_columns(_pair_lines(analysis))]
    return "\n\n".join([head, *parts, *(["\n".join(f"- {note}" for note in analysis.notes)] if analysis.notes else [])])


def ranked(analysis: Analysis) -> list[str]:
    """Systems, the best first."""
    return sorted(analysis.found["systems"], key=lambda name: -analysis.found["systems"][name]["mean"])


def _system_lines(analysis: Analysis) -> list[list[str]]:
    lines = [["system", "mean", "95 % over listeners", "and utterances", "median", "quartiles"]]
    for name in ranked(analysis):
        row = analysis.found["systems"][name]
        quartiles = f"{row['lower_quartile']:g} .. {row['upper_quartile']:g}"
        lines.append([name, f"{row['mean']:.1f}", *_ends(row), f"{row['median']:g}", quartiles])
    return lines


def _difference_lines(analysis: Analysis) -> list[list[str]]:
    """Of every system and those below it, without the anchors among themselves."""
    systems, names = analysis.key.systems, ranked(analysis)
    lines = [["difference", "mean", "95 % over listeners", "and utterances"]]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if "system" not in (systems[first]["role"], systems[second]["role"]):
                continue
            row = analysis.found["differences"][first][second]
            lines.append([f"{first} - {second}", f"{row['mean']:+.1f}", *_ends(row, "+")])
    return lines


def _pair_lines(analysis: Analysis) -> list[list[str]]:
    lines = [["pair", "answers", "first", "second", "neither", "score of the first over listeners", "p"]]
    for row in analysis.found["pairs"]:
        shares = [_share(row[name]) for name in ("first_preferred", "second_preferred", "no_preference")]
        score = row["score"]
        ends = f" [{score['low']:.2f}, {score['high']:.2f}]" if math.isfinite(score["low"]) else ""
        lines.append(
            [
                f"{row['first']} : {row['second']}",
                str(row["answers"]),
                *shares,
                f"{score['mean']:.2f}{ends}",
                f"{row['p']:.3g}",
            ]
        )
    return lines


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _ends(row: Mapping[str, Any], sign: str = "") -> list[str]:
    return [
        f"{row[low]:{sign}.1f} .. {row[high]:{sign}.1f}" if math.isfinite(row[low]) else "-"
        for low, high in (("low", "high"), ("low_both", "high_both"))
    ]


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


# ---- files --------------------------------------------------------------------------------------


def check(directory: pathlib.Path, force: bool) -> None:
    """Raises UserError where an output exists and must stay."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: give a directory as -o.")
    there = next((directory / name for name in OUTPUTS if (directory / name).exists()), None)
    if there and not force:
        raise UserError(f"{there} exists already: give another -o, or --force to overwrite.")


def write(analysis: Analysis, directory: pathlib.Path) -> None:
    """OUTPUTS, each under a temporary name first."""
    from codec_jax.evaluate.listening import plots  # matplotlib takes a second

    directory.mkdir(parents=True, exist_ok=True)
    _replace(directory / OUTPUTS[0], (json.dumps(_plain(report(analysis)), indent=1) + "\n").encode())
    rows = _rating_rows(analysis) if analysis.key.kind == MUSHRA else _vote_rows(analysis)
    _replace(directory / OUTPUTS[1], _csv(rows))
    for suffix, data in plots.draw(analysis).items():
        _replace(directory / f"analysis.{suffix}", data)


def report(analysis: Analysis) -> dict[str, Any]:
    """What analysis.json says."""
    shared: dict[str, Any] = {
        "test": analysis.key.test,
        "kind": analysis.key.kind,
        "title": analysis.key.title,
        "systems": dict(analysis.key.systems),
        "listeners": [
            {"listener": one.listener, "file": one.path.name, "transducer": one.transducer} for one in analysis.sessions
        ],
        "refused": [{"file": one.path.name, "reason": one.reason} for one in analysis.refused],
        "notes": list(analysis.notes),
    }
    found = analysis.found
    if analysis.key.kind == MUSHRA:
        systems = {name: {**shared["systems"][name], **row} for name, row in found["systems"].items()}
        screening = {"excluded": [one._asdict() for one in found["excluded"]], "exempt_items": found["exempt"]}
        names = ("differences", "utterances", "outliers")
        return {**shared, "systems": systems, "screening": screening, **{name: found[name] for name in names}}
    return {**shared, **{name: found[name] for name in ("pairs", "utterances", "preferred_as_a")}}


def _rating_rows(analysis: Analysis) -> list[dict[str, Any]]:
    out = {one.listener for one in analysis.found["excluded"]}
    rows = []
    for session in analysis.sessions:
        for trial, answer in session.answers.items():
            for place, stimulus in enumerate(answer.shown):
                rows.append(
                    {
                        "listener": session.listener,
                        "used": int(session.listener not in out),
                        "utterance": analysis.key.trials[trial]["utterance"],
                        "system": analysis.key.system(trial, stimulus),
                        "rating": answer.ratings[stimulus],
                        "place": place + 1,
                        "plays": answer.plays.get(stimulus, ""),
                        "trial_seconds": answer.seconds,
                    }
                )
    return rows


def _vote_rows(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            "listener": vote.listener,
            "utterance": vote.utterance,
            "shown_as_a": vote.shown[0],
            "shown_as_b": vote.shown[1],
            "preferred": "" if vote.preferred == NEITHER else vote.preferred,
        }
        for vote in analysis.found["votes"]
    ]


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _replace(path: pathlib.Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN."""
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

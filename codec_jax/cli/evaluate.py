"""evaluate: codecs side by side on a directory of audio, with intervals, and a report to look at."""

import argparse
import os
import sys

from codec_jax.cli.files import add_verb

_EXAMPLE = "codec-jax evaluate speech/ -o report --model runs/nano --against opus@6,opus@12,codec2,lowpass"
_TOLD = 20  # sentences about single utterances; the others are in the table


def evaluate(arguments: argparse.Namespace) -> None:
    """Codecs, other codecs and anchors on all audio of a directory: tables, intervals, and a page to look at.

    Run again after a kill, it goes on where it was.
    """
    from codec_jax.errors import require

    require(arguments.workers >= 1, "--workers is 1 or more.")
    require(arguments.limit >= 0, "--limit is 0 or more.")
    require(
        bool(arguments.model or arguments.against), "there is nothing to compare: give --model, --against, or both."
    )
    from codec_jax.evaluate import outputs, prepare, report, run

    found = prepare.prepare(_asked(arguments))
    evaluation = found.evaluation
    outputs.begin(evaluation, found.settings, arguments.force)
    for remark in found.remarks:
        _say(remark)
    table, told = _run(evaluation, arguments.workers, run)
    require(bool(table), f"{arguments.audio}: none of the files could be read, so there is nothing to report.")
    results = outputs.write(evaluation, table)
    path = report.write(evaluation, table, results, report.Context(found.settings, [*found.remarks, *told]))
    print(outputs.table(table, evaluation.metrics))
    noted = sum(bool(row.note) for row in table)
    if noted:
        _say(f"{noted} of {len(table)} rows have a note: what is not defined or went wrong is in the report.")
    print(f"report: {path}")


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    p = add_verb(verbs, "evaluate", evaluate, _EXAMPLE)
    p.add_argument("audio", metavar="AUDIO_DIR", help="a directory of audio; languages by name (en_1.wav) or directory")
    p.add_argument("-o", "--output", required=True, metavar="REPORT_DIR", help="gets the table, the means, the page")
    p.add_argument("--model", action="append", default=[], metavar="DIR", help="a codec of ours; may be given again")
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="of a run (default: ema)")
    p.add_argument(
        "--rates", type=_list, default=[], metavar="RATE,...", help="of the models (train, 2streams), not all"
    )
    p.add_argument(
        "--against",
        type=_list,
        default=[],
        metavar="NAME,...",
        help="opus, codec2, speex, amrwb, encodec, dac, mimi, each bare or with its kbit/s (opus@6); mu_law, lowpass, "
        "lowpass@HZ; dir:PATH of files decoded elsewhere. original and lowpass_3500 are always there",
    )
    p.add_argument(
        "--conditions",
        type=_list,
        default=["clean"],
        metavar="NAME,...",
        help="clean, noise@DB, far@SECONDS, silence, length@SECONDS; means are of the first (default: clean)",
    )
    p.add_argument(
        "--metrics", type=_list, default=[], metavar="NAME,...", help="by exact name (default: all there are)"
    )
    p.add_argument(
        "--asr", default="", metavar="COMMAND", help="prints what it hears in {audio}, in {language}: wer, cer"
    )
    p.add_argument("--limit", type=int, default=0, metavar="N", help="utterances of each condition (default: all)")
    p.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="that score (default: all cores)"
    )
    p.add_argument("--force", action="store_true", help="begin anew where REPORT_DIR holds an evaluation")


def _asked(arguments: argparse.Namespace):
    from codec_jax.evaluate.prepare import Asked

    return Asked(
        arguments.audio,
        arguments.output,
        arguments.model,
        arguments.weights,
        arguments.against,
        arguments.conditions,
        arguments.metrics,
        arguments.rates,
        arguments.limit,
        arguments.asr,
    )


def _run(evaluation, workers: int, run) -> tuple[list, list[str]]:
    """All rows, and what went wrong on the way: told up to a point."""
    from tqdm import tqdm

    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if len(told) <= _TOLD:
            tqdm.write(f"codec-jax: {text}", file=sys.stderr)

    total = len(evaluation.utterances) * len(evaluation.systems)
    with tqdm(total=total, unit="utterance", leave=False, disable=None) as bar:
        table = run.run(evaluation, workers, run.Watch(bar.update, tell))
    if len(told) > _TOLD:
        _say(f"and {len(told) - _TOLD} more such sentences.")
    return table, told


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _say(text: str) -> None:
    print(f"codec-jax: {text}", file=sys.stderr)

"""scaling: laws of loss over parameters, audio and bit rate."""

import argparse
import json
import pathlib
import sys

from codec_jax.cli import scaling_sweep
from codec_jax.cli.files import add_verb, write_bytes

FIT, REPORT = "fit.json", "report.md"
_EXAMPLE = "codec-jax scaling fit sweeps/nano -o sweeps/nano/fit   or   codec-jax scaling fit --table runs.csv -o fit"


def scaling_fit(arguments: argparse.Namespace) -> None:
    """Fits L(N, D) = E + A/N^alpha + B/D^beta to runs, with intervals, and says what it would not do."""
    from codec_jax.errors import UserError, require
    from codec_jax.scaling import fit, plots, report, table

    require(
        (arguments.sweep is None) != (arguments.table is None),
        "give either a sweep directory or --table FILE.csv to fit.",
    )
    require(all(0 < compute < float("inf") for compute in arguments.compute), "--compute takes numbers above zero.")
    directory = pathlib.Path(arguments.output)
    mine = [FIT, REPORT, *(name + suffix for name in plots.NAMES for suffix in plots.SUFFIXES)]
    existing = [name for name in mine if (directory / name).exists()]
    require(not directory.exists() or directory.is_dir(), f"{directory} is a file: give a directory as -o.")
    require(
        not existing or arguments.force,
        f"{directory / existing[0] if existing else ''} exists already: give another -o, or --force to overwrite.",
    )
    runs = table.read_table(arguments.table) if arguments.table else table.read_sweep(arguments.sweep, arguments.loss)
    for entry in runs.excluded:
        print(f"left out: {entry.run} {entry.reason}", file=sys.stderr)
    if arguments.bitrate is not None and all(run.bitrate != arguments.bitrate for run in runs.runs):
        known = ", ".join(f"{rate:g}" for rate in sorted({run.bitrate for run in runs.runs if run.bitrate}))
        raise UserError(f"no run has {arguments.bitrate:g} bit/s: give one of {known or 'none at all'} as --bitrate.")
    result = fit.analyse(runs, arguments.compute, arguments.bitrate)
    pictures = plots.draw(result)
    written = {
        **pictures,
        REPORT: report.markdown(result, list(pictures)).encode(),
        FIT: (json.dumps(result.summary, indent=2) + "\n").encode(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in written.items():
        write_bytes(directory / name, data)
    for name in set(existing) - set(written):  # of a fit before
        (directory / name).unlink()
    for name, reason in result.summary["refused"].items():
        if name != fit.PARAMETRIC:
            print(f"refused: {name}: {reason}", file=sys.stderr)
    if result.law is None:
        raise UserError(f"{arguments.table or arguments.sweep}: {result.summary['refused'][fit.PARAMETRIC]}.")
    print(report.sentence(result.summary))
    print(f"report: {directory / REPORT}")


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    text = "Scaling laws: a sweep planned and priced, run, and fitted."
    p = verbs.add_parser("scaling", help=text, description=text)
    of_scaling = p.add_subparsers(required=True, metavar="VERB")
    scaling_sweep.add_verbs(of_scaling)
    _add_fit(of_scaling)


def _add_fit(of_scaling) -> None:
    p = add_verb(of_scaling, "fit", scaling_fit, _EXAMPLE)
    p.add_argument("sweep", nargs="?", metavar="SWEEP_DIR", help="a directory with sweep.json and runs/")
    p.add_argument(
        "--table", metavar="FILE.csv", help="columns params, audio_seconds, loss [, bitrate, flops, seed, name]"
    )
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="for fit.json, report.md and pictures")
    p.add_argument(
        "--loss",
        default="valid/mel_distance",
        metavar="NAME",
        help="of a sweep: a metric of its evaluations (%(default)s); valid/si_sdr and valid/stoi are turned around",
    )
    p.add_argument(
        "--compute",
        type=float,
        nargs="+",
        default=[],
        metavar="C",
        help="to predict the best run for, in the FLOPs that the runs state, else in parameters x seconds (default: "
        "the largest run's, and ten times that)",
    )
    p.add_argument("--bitrate", type=float, metavar="R", help="of the runs to fit N and D to (default: that with most)")
    p.add_argument("--force", action="store_true", help="overwrite what an earlier fit wrote to DIR")

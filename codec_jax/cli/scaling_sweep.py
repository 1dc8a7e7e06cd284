"""scaling plan, scaling run: a sweep laid out and priced before anything runs, and then run."""

import argparse
import os
import pathlib
import shlex
import sys

from codec_jax.cli.files import add_verb

_PLAN = "codec-jax scaling plan --config=configs/taae.py:nano --params 0.1m,0.3m,1m,3m --seconds 900,1800,3600 -o sweep"
_RUN = "codec-jax scaling run sweep --workers 2"
_RULES = """
The rules, with the base config's values marked 0, B the batch in clips and w the width:
steps = D / (B * crop seconds);
B = B0 * (D / D0)^batch-exponent, by default always the base's;
learning rate = lr0 * sqrt(B / B0) * (w0 / w), with --mup lr0 * sqrt(B / B0);
warm-up = the base's, at most a tenth of the steps;
EMA: looks back over 2 % of the steps, at most as far as the base's.
The bit rate is set by the FSQ's levels; where a TAAE has several codebooks, by their number; of an ESC by their size.
A resolved config is written for every run, and costs.csv; nothing is run.
"""


def scaling_plan(arguments: argparse.Namespace) -> None:
    """Lays out a sweep over parameters, seconds of audio and bit rates in a new directory, with what it will cost."""
    if arguments.topology:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also beside a TPU: nothing runs
    from codec_jax import experiment
    from codec_jax.errors import UserError, require
    from codec_jax.scaling import grid, sweep

    sweep.check_target(pathlib.Path(arguments.output), arguments.force)
    base = experiment.load_config(arguments.config, arguments.overrides)
    require(not (arguments.flops and arguments.seconds), "--flops and --seconds exclude each other: D follows from C.")
    require(not (arguments.hours and not arguments.topology), "--hours are those of chips: give --topology too.")
    if sum(map(bool, (arguments.flops, arguments.seconds, arguments.hours))) != 1:
        raise UserError("give one of --flops (IsoFLOP budgets), --seconds (a grid), or --topology with --hours.")
    target = "tpu" if arguments.topology else _backend()
    rules = _rules(arguments, grid)
    points, prices = _points(arguments, base, target)
    runs = grid.planned(base, points, rules, target)
    estimates, planned = _estimates(arguments, base, runs, prices), _planned(arguments, rules, target)
    found = sweep.write(arguments.output, runs, estimates, planned, arguments.force)
    print(sweep.table(found))
    print(f"sweep: {found.directory} (nothing has been run: codec-jax scaling run {found.directory})")


def scaling_run(arguments: argparse.Namespace) -> None:
    """Runs a planned sweep on this machine, or goes on with it: a run that is done is never run again."""
    from codec_jax.errors import UserError, require
    from codec_jax.scaling import clusters, runner, sweep

    require(arguments.workers >= 1, f"--workers is at least 1, not {arguments.workers}.")
    found = sweep.read(arguments.sweep)
    if arguments.only:
        found = found.named([name for text in arguments.only for name in text.split(",")])
    if arguments.print_commands:
        print("\n".join(clusters.commands(found, arguments.root).values()))
        return
    if arguments.cluster:
        root = arguments.root or str(found.directory.resolve())
        job = clusters.Job(root, arguments.topology, arguments.hours, arguments.image, arguments.cluster_name)
        write = {"slurm": clusters.write_slurm, "xpk": clusters.write_xpk}[arguments.cluster]
        for path in write(found, job):
            print(path)
        return
    outcomes = runner.run(found, arguments.workers)
    counts = {state: [o for o in outcomes if o.state == state] for state in dict.fromkeys(o.state for o in outcomes)}
    print(", ".join(f"{len(those)} {state}" for state, those in counts.items()))
    if set(counts) - {runner.DONE}:
        for outcome in counts.get(runner.FAILED, []):
            print(f"failed: {outcome.name}: {outcome.why}", file=sys.stderr)
        undone = [o.name for o in outcomes if o.state != runner.DONE]
        again = "the same command tries them again and leaves the others alone"
        raise UserError(f"{len(undone)} of {len(outcomes)} runs are not done ({', '.join(undone)}); {again}.")


def add_verbs(steps) -> None:
    """The parsers of this module."""
    _add_plan(steps)
    p = add_verb(steps, "run", scaling_run, _RUN)
    p.add_argument("sweep", metavar="SWEEP_DIR", help="as `scaling plan` made it")
    p.add_argument("--only", action="append", metavar="NAME,...", help="these runs alone")
    p.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time (%(default)s)")
    p.add_argument("--print-commands", action="store_true", help="print one command a run, and run none")
    p.add_argument("--cluster", choices=("slurm", "xpk"), help="write job files into SWEEP_DIR, and run none")
    p.add_argument("--root", metavar="DIR", help="of --print-commands and --cluster: SWEEP_DIR as the machines see it")
    p.add_argument("--topology", default="v5e:16x16", metavar="CHIP:SHAPE", help="of --cluster xpk (%(default)s)")
    p.add_argument("--hours", type=float, default=24.0, metavar="H", help="of --cluster: a run's limit (%(default)s)")
    p.add_argument("--image", default="IMAGE", metavar="NAME", help="of --cluster xpk: container with this repository")
    p.add_argument("--cluster-name", default="CLUSTER", metavar="NAME", help="of --cluster xpk")


def _add_plan(steps) -> None:
    p = add_verb(steps, "plan", scaling_plan, _PLAN)
    p.description = f"{p.description}\n{_RULES}"
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("-o", "--output", required=True, metavar="SWEEP_DIR", help="a new directory")
    p.add_argument("--config", required=True, metavar="FILE:VARIANT", help="base recipe, to be resized")
    p.add_argument("--params", metavar="N,...", help="sizes of the ladder: 0.1m,1m,30m,2b (default: see --sizes)")
    p.add_argument(
        "--sizes", type=int, default=7, metavar="K", help="without --params: so many per budget (%(default)s)"
    )
    p.add_argument(
        "--seconds-per-parameter",
        type=float,
        default=0.35,
        metavar="X",
        help="without --params: D / N in the middle (%(default)s, as TAAE's paper trained 950 M; only a guess)",
    )
    p.add_argument("--seconds", metavar="D,...", help="seconds of audio: a grid of all D and N")
    p.add_argument("--flops", metavar="C,...", help="IsoFLOP budgets: of each all N, D follows")
    p.add_argument("--topology", metavar="CHIP:SHAPE", help="price the runs on these TPUs (v5e:16x16)")
    p.add_argument("--hours", metavar="H,...", help="with --topology: IsoFLOP budgets of so many hours on all chips")
    p.add_argument("--mfu", type=float, metavar="X", help="with --topology: this, and compile nothing")
    p.add_argument("--compile", metavar="N,...", help="with --topology: compile these sizes alone (default: all)")
    p.add_argument(
        "--plans", nargs="+", metavar="FILE", help="with --topology: files of `codec-jax plan --json` instead"
    )
    p.add_argument(
        "--measure", action="store_true", help="price the runs on this machine: times a few steps of each size"
    )
    p.add_argument("--bitrates", metavar="R,...", help="bits per second (default: the base's)")
    p.add_argument("--layers", metavar="L,...", help="depths instead of the fixed aspect: layers of a half")
    p.add_argument("--seeds", default="0", metavar="S,...", help="every run with each of them (%(default)s)")
    p.add_argument("--mup", action="store_true", help="initialise and train by µP, from the base's width")
    p.add_argument("--batch-size", type=int, metavar="N", help="of every run, instead of the rule")
    p.add_argument("--batch-exponent", type=float, default=0.0, metavar="X", help="of D (%(default)s)")
    p.add_argument(
        "--batch-multiple", type=int, default=1, metavar="N", help="batches divide by it: chips (%(default)s)"
    )
    p.add_argument("--learning-rate", type=float, metavar="X", help="lr0 instead of the base's")
    p.add_argument("--lr-batch-exponent", type=float, default=0.5, metavar="X", help="of B (%(default)s)")
    p.add_argument("--lr-width-exponent", type=float, default=1.0, metavar="X", help="of 1 / w (%(default)s)")
    p.add_argument("--ema-share", type=float, default=0.02, metavar="X", help="of the steps (%(default)s)")
    p.add_argument("--evaluations", type=int, default=1, metavar="N", help="of a run, after the start (%(default)s)")
    p.add_argument("--checkpoints", type=int, default=10, metavar="N", help="of a run (%(default)s)")
    p.add_argument("--force", action="store_true", help="plan anew in a sweep that is there; its runs stay")
    p.set_defaults(takes_overrides=True)


# ---- flags to a plan ---------------------------------------------------------------------------


def _numbers(text: str, flag: str) -> list[float]:
    """`1e15,3e15` as numbers."""
    from codec_jax.errors import UserError

    try:
        found = [float(part) for part in text.split(",")]
        assert all(0 <= x < float("inf") for x in found)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{flag} takes numbers with commas between them, not {text}.") from error
    return found


def _whole(text: str, flag: str) -> list[int]:
    from codec_jax.errors import require

    found = _numbers(text, flag)
    require(all(x == int(x) for x in found), f"{flag} takes whole numbers, not {text}.")
    return [int(x) for x in found]


def _rules(arguments: argparse.Namespace, grid):
    names = (
        "batch_size", "batch_exponent", "batch_multiple", "learning_rate", "lr_batch_exponent", "lr_width_exponent",
        "ema_share", "evaluations", "checkpoints", "mup",
    )  # fmt: skip
    rules = grid.Rules(**{name: getattr(arguments, name) for name in names})
    rules.validate()
    return rules


def _backend() -> str:
    import jax

    return jax.default_backend()


def _points(arguments: argparse.Namespace, base, target: str):
    """The points, and anchors of seconds per step where they were needed to turn hours into FLOPs."""
    from codec_jax.scaling import grid, ladder

    rates = _numbers(arguments.bitrates, "--bitrates") if arguments.bitrates else [None]
    depths = _whole(arguments.layers, "--layers") if arguments.layers else [None]
    seeds = _whole(arguments.seeds, "--seeds")
    sizes = [ladder.parse_size(text) for text in arguments.params.split(",")] if arguments.params else None
    prices: dict = {}
    budgets = _numbers(arguments.flops, "--flops") if arguments.flops else []
    if arguments.hours:
        hours = _numbers(arguments.hours, "--hours")
        budgets, prices = _budgets(arguments, base, hours, sizes)
    points = []
    for layers in depths:
        for seed in seeds:
            more = {"layers": layers, "seed": seed}
            if arguments.seconds:
                wanted = sizes or [ladder.parameters(base)]
                points += grid.parametric(wanted, _numbers(arguments.seconds, "--seconds"), rates, **more)
                continue
            for budget in budgets:
                chosen = sizes or grid.around(base, budget, arguments.sizes, arguments.seconds_per_parameter, target)
                points += grid.isoflop(base, [budget], chosen, rates, target, **more)
    return points, prices


def _budgets(arguments: argparse.Namespace, base, hours: list[float], sizes: list[int] | None):
    """Hours on all chips as FLOPs, by the MFU of the largest size whose step is known."""
    from codec_jax.errors import require
    from codec_jax.scaling import costs

    devices, peak = costs.peak_flops(arguments.topology)
    if arguments.mfu:
        return [arguments.mfu * peak * 3600 * h for h in hours], {}
    require(
        sizes or arguments.compile or arguments.plans, "--hours without --params needs --mfu, --compile or --plans."
    )
    prices = _anchors(arguments, base, sizes or [])
    largest = prices[max(prices)]
    speed = largest.flops / largest.seconds
    print(f"{speed / peak:.0%} MFU of the step of {max(prices):,} parameters on {devices} chips", file=sys.stderr)
    return [speed * 3600 * h for h in hours], prices


def _anchors(arguments: argparse.Namespace, base, sizes: list[int]) -> dict:
    """Steps compiled for the topology, by parameters: from files, or made now."""
    from codec_jax.scaling import costs, ladder

    if arguments.plans:
        return costs.read_plans(arguments.plans, arguments.topology)
    if arguments.compile:
        sizes = [ladder.parse_size(text) for text in arguments.compile.split(",")]
    anchors = {}
    for size in sizes:
        rung = ladder.rung(base, size)
        found = costs.compiled(rung.experiment, arguments.topology, _say)
        anchors[rung.params] = costs.anchor_of(vars(found))
    return anchors


def _estimates(arguments: argparse.Namespace, base, runs, prices: dict) -> list:
    """Hours of every run, where something was said about machines."""
    from codec_jax.scaling import costs

    if arguments.topology:
        devices, peak = costs.peak_flops(arguments.topology)
        if arguments.mfu:
            return costs.at_mfu(runs, arguments.mfu, devices, peak)
        if not prices and (arguments.plans or arguments.compile):
            prices = _anchors(arguments, base, [])
        if not prices:
            for run in {run.params: run for run in runs}.values():
                prices[run.params] = costs.anchor_of(vars(costs.compiled(run.experiment, arguments.topology, _say)))
        return costs.estimates(runs, prices, "compiled", devices, peak)
    if not arguments.measure:
        return [costs.NOTHING] * len(runs)
    for run in {run.params: run for run in runs}.values():
        _say(f"timing steps of {run.params:,} parameters")
        prices[run.params] = costs.measured(run.experiment)
    return costs.estimates(runs, prices, "measured", 1, None)


def _planned(arguments: argparse.Namespace, rules, target: str) -> dict:
    """How the sweep came about, for sweep.json."""
    import dataclasses

    from codec_jax.scaling import grid

    flags = {k: v for k, v in vars(arguments).items() if k not in ("verb", "debug", "force", "takes_overrides")}
    formulas = [line.strip() for line in (grid.__doc__ or "").partition("The rules")[2].splitlines()[2:] if line]
    return {
        "command": shlex.join(["codec-jax", *sys.argv[1:]]),
        "flags": flags,
        "rules": {
            **dataclasses.asdict(rules),
            "formulas": formulas,
        },
        "flops_counted_for": target,
        "loss": "valid/mel_distance of the averaged weights at the last step, on the same held-out clips for all runs",
    }


def _say(what: str) -> None:
    """One line of progress, for a person alone."""
    if sys.stderr.isatty():
        print(f"{what} (minutes)", file=sys.stderr)

"""bench: this machine's speed, beside PyTorch on the same machine."""

import argparse
import json
import pathlib

from codec_jax.cli.files import add_verb, write_bytes

_EXAMPLE = "codec-jax bench --config=configs/taae.py:small --batch 4 --seconds 5.12"


def bench(arguments: argparse.Namespace) -> None:
    """Speed of a codec and its training step beside the PyTorch twin's, in turns, as ratios. Needs torch."""
    import importlib.util

    from codec_jax import experiment
    from codec_jax.errors import UserError

    target = pathlib.Path(arguments.json) if arguments.json else None
    if target and target.exists() and not arguments.force:
        raise UserError(f"{target} exists already: give another --json, or --force to overwrite.")
    if not importlib.util.find_spec("torch"):
        raise UserError("bench measures against PyTorch, which is not here: pip install 'codec-jax[torch]'.")
    config = experiment.load_config(arguments.config, arguments.overrides)
    if min(arguments.batch, arguments.repeats) < 1 or arguments.seconds <= 0:
        raise UserError("--batch, --repeats and --seconds are above zero.")
    from codec_jax import bench

    found, where = bench.run(config, arguments.batch, arguments.seconds, arguments.repeats), bench.machine()
    print(table(found, where))
    if target:
        rows = {"config": arguments.config, "batch": arguments.batch, "seconds": arguments.seconds, **where}
        rows["cases"] = [timing._asdict() for timing in found]
        write_bytes(target, (json.dumps(rows, indent=2) + "\n").encode())


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    p = add_verb(verbs, "bench", bench, _EXAMPLE)
    p.add_argument("--config", default="configs/taae.py:small", metavar="FILE:VARIANT", help="default: %(default)s")
    p.add_argument("--batch", type=int, default=4, metavar="N", help="clips of the training cases (%(default)s)")
    p.add_argument("--seconds", type=float, default=5.12, metavar="S", help="of each of them (%(default)s)")
    p.add_argument("--repeats", type=int, default=5, metavar="N", help="pairs whose median is told (%(default)s)")
    p.add_argument("--json", metavar="FILE", help="also as JSON")
    p.add_argument("--force", action="store_true", help="overwrite FILE")
    p.set_defaults(takes_overrides=True)


def table(found, where: dict) -> str:
    """One row a case."""
    rows = [
        f"{t.name:<38}{t.ours * 1e3:10.1f} ms{t.theirs * 1e3:10.1f} ms{t.ratio:8.2f}{t.gflops_per_second:12.0f}"
        for t in found
    ]
    header = f"{'median of pairs':<38}{'codec_jax':>13}{'PyTorch':>13}{'ratio':>8}{'GFLOP/s':>12}"
    last = ", ".join(f"{name} {value}" for name, value in where.items())
    return "\n".join([header, *rows, last])

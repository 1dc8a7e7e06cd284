"""plan: what a run needs of TPUs that are not at hand."""

import argparse
import json
import os
import pathlib
import sys

from codec_jax.cli.files import add_verb, write_bytes

_EXAMPLE = "codec-jax plan --config=configs/taae.py:1b --topology=v5e:16x16 --batch-per-device 2"
_SWEEP = {"batch": "1,2,4,8", "remat": "none,dots,full"}
GIB = 2**30


def plan(arguments: argparse.Namespace) -> None:
    """Memory, work and speed of a training step on a TPU topology, found by compiling it here."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also beside a TPU: nothing runs
    from codec_jax import experiment
    from codec_jax.errors import UserError

    target = pathlib.Path(arguments.json) if arguments.json else None
    if target and target.exists() and not arguments.force:
        raise UserError(f"{target} exists already: give another --json, or --force to overwrite.")
    config = experiment.load_config(arguments.config, arguments.overrides)
    if arguments.sweep is None:
        from codec_jax.train.plan import plan as make

        found = make(config, arguments.topology, arguments.stage, arguments.batch_per_device, arguments.slices, _say)
        print(describe(found, arguments.hours))
        rows: object = as_dict(found, arguments.hours)
    else:
        plans, winner = _sweep(config, arguments)
        print(table(plans, winner))
        rows = [{**as_dict(p, arguments.hours), "best": p is winner} for p in plans]
    if target:
        write_bytes(target, (json.dumps(rows, indent=2) + "\n").encode())


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    p = add_verb(verbs, "plan", plan, _EXAMPLE)
    p.add_argument("--config", required=True, metavar="FILE:VARIANT", help="fields as --config.data.batch_size=512")
    p.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="v5e:16x16, v5p:4x4x4, v6e:16x16, ...")
    p.add_argument("--slices", type=int, default=1, metavar="N", help="such slices, joined by a slower network")
    p.add_argument("--stage", metavar="NAME", help="of the config (default: the one with the largest peak)")
    p.add_argument("--batch-per-device", type=int, metavar="N", help="clips per chip (default: the config's batch)")
    p.add_argument("--hours", type=float, metavar="N", help="also say how many days so much audio takes at least")
    p.add_argument(
        "--sweep",
        nargs="*",
        metavar="KEY=A,B",
        help="several plans, the best marked: batch=1,2,4 remat=none,dots,full mesh=1x256x1,2x128x1 (replica x fsdp x "
        "tensor)",
    )
    p.add_argument("--json", metavar="FILE", help="the same, and more, as JSON; bytes are per chip")
    p.add_argument("--force", action="store_true", help="overwrite FILE")
    p.set_defaults(takes_overrides=True)


def _say(what: str) -> None:
    """One line of progress, for a person alone."""
    if sys.stderr.isatty():
        print(f"{what} (minutes)", file=sys.stderr)


# ---- sweeps ------------------------------------------------------------------------------------


def _sweep(config, arguments: argparse.Namespace):
    from codec_jax.train.plan import best, sweep

    chosen = _sweep_lists(arguments.sweep)
    meshes = [_mesh(text) for text in chosen["mesh"].split(",")] if "mesh" in chosen else [config.mesh]
    batches = [_number(text) for text in chosen["batch"].split(",")]
    plans = sweep(
        config,
        arguments.topology,
        arguments.stage,
        arguments.slices,
        batches,
        chosen["remat"].split(","),
        meshes,
        _say,
    )
    return plans, best(plans)


def _sweep_lists(pairs: list[str]) -> dict[str, str]:
    from codec_jax.errors import UserError

    chosen = dict(_SWEEP)
    for pair in pairs:
        key, equals, values = pair.partition("=")
        if not equals or not values or key not in ("batch", "remat", "mesh"):
            raise UserError(f"--sweep takes batch=..., remat=... and mesh=..., not {pair}.")
        chosen[key] = values
    return chosen


def _mesh(text: str):
    from codec_jax.errors import UserError
    from codec_jax.experiment import MeshConfig

    sizes = text.split("x")
    if len(sizes) != 3:
        raise UserError(f"a mesh is replica x fsdp x tensor, as in 1x256x1, not {text}.")
    return MeshConfig(*(_number(size) for size in sizes))


def _number(text: str) -> int:
    from codec_jax.errors import UserError

    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{text} is no whole number.") from error


# ---- figures -----------------------------------------------------------------------------------


def as_dict(found, hours: float | None) -> dict:
    """A plan as JSON has it."""
    figures = dict(vars(found))
    return figures if hours is None else {**figures, "hours": hours, "days_lower_bound": found.days(hours)}


def describe(found, hours: float | None) -> str:
    """One plan, for a reader."""
    mesh = " x ".join(f"{name} {size}" for name, size in found.mesh.items())
    slices = f" x {found.slices} slices" if found.slices > 1 else ""
    lines = [
        f"{found.topology}{slices}: {found.devices} chips, mesh {mesh}",
        f"stage {found.stage}: {found.batch_per_device} clips of {found.crop_seconds:g} s per data shard, "
        f"{found.batch_size} a step; remat {found.remat}; compiled in {found.compile_seconds:.0f} s",
        "",
        "parameters         " + ", ".join(f"{name} {n:,}" for name, n in found.params_by_player.items()),
        *(f"teacher {name:<10} {of['params']:,} parameters, frozen" for name, of in found.teachers.items()),
        "",
        "memory per chip",
        f"  arguments        {_gib(found.argument_bytes)}: state, batch, teachers",
        *(f"    of them {name:<7} {_gib(of['bytes'])}" for name, of in found.teachers.items()),
        f"  temporaries      {_gib(found.temp_bytes)}",
        f"  peak             {_gib(found.peak_bytes)} of {found.hbm_bytes / GIB:.0f} GiB: "
        + ("fits" if found.fits else "DOES NOT FIT"),
    ]
    if found.message:
        return "\n".join([*lines, "", "the compiler: " + found.message.strip().splitlines()[0]])
    return "\n".join(lines + _work(found) + _bounds(found, hours))


def _work(found) -> list[str]:
    lines = ["", "work per step, TFLOP     forward   backward  recompute"]
    for player, parts in found.flops_by_player.items():
        cells = "".join(f"{parts.get(kind, 0.0) / 1e12:11.2f}" for kind in ("forward", "backward", "recompute"))
        lines.append(f"  {player:<20}{cells}")
    return lines


def _bounds(found, hours: float | None) -> list[str]:
    moved = ", ".join(f"{kind} {_gib(size)}" for kind, size in found.collective_bytes.items() if size)
    lines = [
        "",
        "step time, at least",
        f"  arithmetic       {found.compute_seconds * 1e3:10.2f} ms  at peak bfloat16, recomputation included",
        f"  memory           {found.memory_seconds * 1e3:10.2f} ms  {_gib(found.memory_bytes)} read and written",
        f"  network          {found.network_seconds * 1e3:10.2f} ms  {moved or 'nothing'}"
        + (f", between slices {_gib(found.dcn_bytes)}" if found.dcn_bytes else ""),
        f"  the largest      {found.step_seconds * 1e3:10.2f} ms",
        f"compiler's estimate{found.compiler_seconds * 1e3:10.2f} ms  its kernels one after the other, without network",
        "",
        f"MFU                at most {found.mfu_upper_bound:.0%}; {found.mfu_estimate:.0%} by the compiler's estimate",
        f"audio              at most {found.audio_rate_upper_bound:.0f} s per second and chip, "
        f"{found.audio_rate_upper_bound * found.devices * 24:,.0f} hours a day",
    ]
    if hours is not None:
        lines.append(f"{hours:g} hours of audio take at least {found.days(hours):.2f} days")
    return lines


def table(plans, winner) -> str:
    """A sweep, one row a plan."""
    header = "  mesh           remat  batch   peak GiB  fits   step ms >=  compiler ms   MFU <=  audio s/s/chip <="
    rows = [
        f"{'*' if p is winner else ' '} {'x'.join(map(str, p.mesh.values())):<14} {p.remat:<6} {p.batch_per_device:5d} "
        f"{p.peak_bytes / GIB:10.2f}  {'yes' if p.fits else 'no':<4} {p.step_seconds * 1e3:12.2f} "
        f"{p.compiler_seconds * 1e3:12.2f} {p.mfu_upper_bound:8.0%} {p.audio_rate_upper_bound:20.0f}"
        for p in plans
    ]
    first = f"{plans[0].topology}, {plans[0].devices} chips, stage {plans[0].stage}; mesh is replica x fsdp x tensor"
    note = "* most audio per second by the compiler's estimate" if winner else "nothing fits"
    return "\n".join([first, header, *rows, note])


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"

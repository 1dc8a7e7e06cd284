"""What runs cost before any is started: hours on chips, from compiled steps, or on this machine, from measured ones.

Seconds per step are known at a few sizes (anchors). In between, FLOP/s are interpolated over the logarithm of a step's
FLOPs; beyond the anchors the nearest holds. Compilation, evaluations and starts are not in the hours.
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from codec_jax import models
from codec_jax.errors import UserError, require
from codec_jax.experiment import Experiment
from codec_jax.scaling.grid import Run
from codec_jax.train import chips, cost, plan, sharding, stages, step

_TIMED_STEPS = 5


class Anchor(NamedTuple):
    """A step that was compiled or timed: FLOPs (no recomputation) and seconds of it, on all devices together."""

    flops: float
    seconds: float


class Estimate(NamedTuple):
    """Of a run. hours: of wall clock on all devices, None where nothing is known. how: "compiled", "measured", "given",
    or "interpolated" between such sizes, or "extrapolated" beyond them.
    """

    hours: float | None
    chip_hours: float | None
    mfu: float | None
    how: str


NOTHING = Estimate(None, None, None, "")


def estimates(runs: Sequence[Run], anchors: Mapping[int, Anchor], how: str, devices: int, peak: float | None) -> list:
    """An estimate per run. anchors: by parameters of the codec. peak: FLOP/s of all devices together, for MFU."""
    require(anchors, "no step is known to estimate hours by.")
    found = []
    for run in runs:
        per_step = run.flops / run.steps
        exact = anchors.get(run.params)
        speed = exact.flops / exact.seconds if exact else _interpolated(list(anchors.values()), per_step)
        hours = run.flops / speed / 3600
        inside = min(anchors.values()).flops <= per_step <= max(anchors.values()).flops
        source = how if exact else "interpolated" if inside else "extrapolated"
        found.append(Estimate(hours, hours * devices, speed / peak if peak else None, source))
    return found


def at_mfu(runs: Sequence[Run], mfu: float, devices: int, peak: float) -> list[Estimate]:
    """The same with one MFU for all, as given."""
    require(0 < mfu <= 1, f"an MFU is a share in (0, 1], not {mfu:g}.")
    hours = [run.flops / (mfu * peak) / 3600 for run in runs]
    return [Estimate(h, h * devices, mfu, "given") for h in hours]


def _interpolated(anchors: Sequence[Anchor], flops: float) -> float:
    """FLOP/s of a step of so many FLOPs, linear in logarithms between the anchors."""
    ordered = sorted(anchors)
    speeds = [math.log(anchor.flops / anchor.seconds) for anchor in ordered]
    return math.exp(np.interp(math.log(flops), [math.log(anchor.flops) for anchor in ordered], speeds))


# ---- compiled ----------------------------------------------------------------------------------


def peak_flops(topology: str, slices: int = 1) -> tuple[int, float]:
    """Devices of a topology, and their FLOP/s together. Needs no libtpu."""
    chip = chips.chip(topology)
    shape = topology.partition(":")[2].split("x")
    require(all(part.isdigit() and int(part) for part in shape), f'"{topology}" has no shape such as 16x16.')
    devices = math.prod(map(int, shape)) * slices
    return devices, devices * chip.flops


def compiled(experiment: Experiment, topology: str, say: Callable[[str], None] = lambda _: None) -> plan.Plan:
    """The plan of the step that a run spends most of its time in, at the run's batch. Takes minutes."""
    longest = max(stages.resolve(experiment), key=lambda stage: stage.steps)
    return plan.plan(experiment, topology, longest.name, say=say)


def anchor_of(found: Mapping) -> Anchor:
    """From a plan, as `codec-jax plan --json` writes it: its kernels one after the other, or the largest bound."""
    seconds = max(found["step_seconds"], found["compiler_seconds"])
    require(seconds > 0, f"the step of {found['params']:,} parameters does not fit on {found['topology']}.")
    return Anchor(found["flops_per_step"], seconds)


def read_plans(paths: Sequence[str], topology: str) -> dict[int, Anchor]:
    """Anchors from files of `codec-jax plan --json`. Raises UserError for those of other topologies."""
    anchors = {}
    for path in paths:
        try:
            rows = json.loads(pathlib.Path(path).read_text())
            for row in rows if isinstance(rows, list) else [rows]:
                require(row["topology"] == topology, f"{path} is a plan for {row['topology']}, not for {topology}.")
                anchors[int(row["params"])] = anchor_of(row)
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no plan as `codec-jax plan --json` writes it: {error}.") from error
    return anchors


# ---- measured ----------------------------------------------------------------------------------


def measured(experiment: Experiment) -> Anchor:
    """Times a few real steps of the stage that a run spends most of its steps in, on the devices that are here."""
    experiment = dataclasses.replace(experiment, init_from=None)
    stage = max(stages.resolve(experiment), key=lambda stage: stage.steps)
    mesh = sharding.make_mesh(experiment.mesh)
    abstract = step.abstract_state(experiment, stage, mesh)
    state = step.init_state(experiment, stage, abstract)
    update = step.make_train_step(experiment, stage, abstract, mesh)
    clips = experiment.data.batch_size
    channels = models.FAMILIES[experiment.family].geometry(experiment.codec).channels
    audio = 0.1 * np.random.default_rng(0).standard_normal((clips, channels, experiment.crop_samples), np.float32)
    batch = jax.device_put({"audio": audio, "place": jnp.arange(clips, dtype=jnp.int32)}, sharding.batch_sharding(mesh))
    seconds = []
    for number in range(1 + _TIMED_STEPS):
        began = time.perf_counter()
        state, metrics = update(state, batch, stage.start)
        jax.block_until_ready((state, metrics))
        if number:
            seconds.append(time.perf_counter() - began)
    return Anchor(cost.total(cost.step_flops(experiment, stage), recompute=False), float(np.median(seconds)))

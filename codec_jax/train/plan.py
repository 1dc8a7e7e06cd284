"""What a training step needs of a TPU topology that is not at hand: it is compiled for it, and the result is read.

The real step, with all players, optimisers and the moving average; nothing is allocated. Every speed is an upper bound:
arithmetic, memory and network at the rates that the vendor prints, each overlapping the others perfectly.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax

from codec_jax import models
from codec_jax.errors import UserError
from codec_jax.experiment import Experiment, MeshConfig
from codec_jax.ops import platform
from codec_jax.settings import TERMS
from codec_jax.train import chips, cost, hlo, sharding, stages, step, teachers
from codec_jax.train.state import CODEC, State, init

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step on one topology. Bytes are per device, FLOPs of the whole step, seconds per step.

    batch_per_device: clips per data shard, all `training.accumulate` parts together. teachers: parameters and bytes of
    the frozen networks that losses listen to, by name. argument_bytes: the state, the batch and the teachers.
    peak_bytes: arguments, temporaries, results that reuse no argument, and the program; where it does not fit, what the
    compiler says it would need. flops_per_step: without recomputation, flops_executed: with. memory_bytes: read and
    written in HBM. compute_, memory_, network_seconds: the three bounds, step_seconds: the largest of them.
    compiler_seconds: the compiler's estimate of its kernels one after the other, without the network.
    audio_rate_upper_bound: seconds of audio per second and chip. message: the compiler's, where it does not fit.
    """

    topology: str
    slices: int
    devices: int
    chip: str
    mesh: dict[str, int]
    stage: str
    remat: str
    batch_per_device: int
    batch_size: int
    crop_seconds: float
    params: int
    params_by_player: dict[str, int]
    teachers: dict[str, dict[str, int]]
    hbm_bytes: int
    argument_bytes: int
    temp_bytes: int
    peak_bytes: int
    fits: bool
    flops_per_step: float
    flops_executed: float
    flops_by_player: cost.Costs
    collective_bytes: dict[str, float]
    dcn_bytes: float
    memory_bytes: float
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    step_seconds: float
    compiler_seconds: float
    mfu_upper_bound: float
    mfu_estimate: float
    audio_rate_upper_bound: float
    compile_seconds: float
    message: str = ""

    def days(self, hours: float) -> float:
        """To see `hours` hours of audio once, at the upper bound of the speed."""
        rate = self.audio_rate_upper_bound * self.devices
        return hours * 3600 / rate / 86_400 if rate else math.inf


def plan(
    experiment: Experiment,
    topology: str,
    stage: str | None = None,
    batch_per_device: int | None = None,
    slices: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Compiles a stage's step for `slices` slices of `topology`; without `stage` the one with the largest peak.

    batch_per_device: clips per data shard (None: what the config's batch gives). say: hears what is being compiled.
    Raises UserError for unknown topologies and stages, sizes that do not divide, and without libtpu.
    """
    mesh = sharding.make_mesh(experiment.mesh, chips.devices(topology, slices))
    shards = mesh.shape["replica"] * mesh.shape["fsdp"]
    if batch_per_device is not None:
        data = dataclasses.replace(experiment.data, batch_size=batch_per_device * shards)
        experiment = dataclasses.replace(experiment, data=data)
    if experiment.data.batch_size % (shards * experiment.training.accumulate):
        raise UserError(
            f"data.batch_size={experiment.data.batch_size} does not divide over {shards} data shards and "
            f"training.accumulate={experiment.training.accumulate}: set --batch-per-device."
        )
    experiment.validate()
    everything = stages.resolve(experiment)
    candidates = [stages.named(everything, stage)] if stage else undominated(everything)
    plans = []
    for candidate in candidates:
        say(f"compiling stage {candidate.name} for {topology}{f' x {slices}' * (slices > 1)}")
        plans.append(_plan_stage(experiment, candidate, mesh, topology, slices))
    return max(plans, key=lambda p: p.peak_bytes)


def undominated(everything: Sequence[stages.Stage]) -> list[stages.Stage]:
    """Stages that no other covers; of two that cover each other the later. One of them has the largest peak."""

    def covered(i: int) -> bool:
        others = ((j, other) for j, other in enumerate(everything) if j != i)
        return any(
            _covers(other, everything[i]) and (j > i or not _covers(everything[i], other)) for j, other in others
        )

    return [stage for i, stage in enumerate(everything) if not covered(i)]


def _covers(more: stages.Stage, less: stages.Stage) -> bool:
    """Whether `more` has every player, loss and trained part of `less`."""
    return (
        (more.discriminator_optim is not None or less.discriminator_optim is None)
        and all(getattr(more.losses, term) or not getattr(less.losses, term) for term in TERMS)
        and more.losses.mrstft == less.losses.mrstft
        and more.optim.name == less.optim.name
        and set(more.freeze) <= set(less.freeze)
    )


def teachers_of(experiment: Experiment, stage: stages.Stage, mesh: jax.sharding.Mesh) -> dict[str, dict[str, int]]:
    """Parameters, and bytes per device, of the stage's teachers by name."""
    found = {}
    for name, variables in teachers.abstract(experiment, stage, mesh).items():
        leaves = jax.tree.leaves(variables)
        found[name] = {"params": sum(leaf.size for leaf in leaves), "bytes": sum(_bytes_per_device(x) for x in leaves)}
    return found


def _plan_stage(
    experiment: Experiment, stage: stages.Stage, mesh: jax.sharding.Mesh, topology: str, slices: int
) -> Plan:
    chip, began = chips.chip(topology), time.perf_counter()
    with platform.tracing_for("tpu"):
        lowered = step.lower_train_step(experiment, stage, mesh)
        flops = cost.step_flops(experiment, stage)
    compiled, message = _compile(lowered)
    seconds = time.perf_counter() - began
    if compiled is not None:
        memory, moved = _memory(compiled, chip), hlo.traffic(compiled.as_text())
    else:
        memory, moved = _memory_wanted(message, step.abstract_state(experiment, stage, mesh), chip), None
    crop_seconds = experiment.crop_samples / models.FAMILIES[experiment.family].geometry(experiment.codec).sample_rate
    params = _parameters(experiment, stage)
    batch_size = experiment.data.batch_size
    return Plan(
        topology=topology,
        slices=slices,
        devices=mesh.size,
        chip=chip.name,
        mesh=dict(mesh.shape),
        stage=stage.name,
        remat=getattr(experiment.model, "remat", "none"),
        batch_per_device=batch_size // (mesh.shape["replica"] * mesh.shape["fsdp"]),
        batch_size=batch_size,
        crop_seconds=crop_seconds,
        params=params[CODEC],
        params_by_player=params,
        teachers=teachers_of(experiment, stage, mesh),
        hbm_bytes=chip.hbm_bytes,
        flops_per_step=cost.total(flops, recompute=False),
        flops_executed=cost.total(flops, recompute=True),
        flops_by_player=flops,
        compile_seconds=seconds,
        message=message,
        **memory,
        **_speed(moved, flops, chip, mesh.size, batch_size * crop_seconds),
    )


def _parameters(experiment: Experiment, stage: stages.Stage) -> dict[str, int]:
    players = jax.eval_shape(lambda: nn.unbox(init(experiment, stage))).players
    return {name: sum(leaf.size for leaf in jax.tree.leaves(player.params)) for name, player in players.items()}


def _bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _compile(lowered: Any) -> tuple[Any, str]:
    """The executable and "", or None and what the compiler says of the memory it would need."""
    try:
        return lowered.compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return None, str(error)


def _memory(compiled: Any, chip: chips.Chip) -> dict[str, Any]:
    """Bytes per device, of what was compiled."""
    stats = compiled.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    arguments, temporary = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    peak = arguments + temporary + results + stats.generated_code_size_in_bytes
    return {
        "argument_bytes": arguments,
        "temp_bytes": temporary,
        "peak_bytes": peak,
        "fits": peak <= chip.hbm_bytes,
    }


def _memory_wanted(message: str, abstract: State, chip: chips.Chip) -> dict[str, Any]:
    """Bytes per device, of what the compiler refused: "Used 18.2G of 15.75G hbm"."""
    arguments = sum(map(_bytes_per_device, jax.tree.leaves(abstract)))
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    peak = int(float(found.group(1)) * _UNITS[found.group(2)]) if found else max(chip.hbm_bytes, arguments)
    return {
        "argument_bytes": arguments,
        "temp_bytes": max(peak - arguments, 0),
        "peak_bytes": peak,
        "fits": False,
    }


def _speed(
    moved: hlo.Traffic | None, flops: cost.Costs, chip: chips.Chip, devices: int, audio_seconds: float
) -> dict[str, Any]:
    """The three bounds, and what follows from the largest; zeros where nothing was compiled."""
    known = moved is not None
    moved = moved or hlo.Traffic(dict.fromkeys(hlo.COLLECTIVES, 0.0), 0.0, 0.0, 0.0)
    wire = sum(moved.collectives.values()) + moved.collectives["all-reduce"]  # reduced, then spread: twice the way
    bounds = {
        "compute_seconds": cost.total(flops, recompute=True) / devices / chip.flops,
        "memory_seconds": moved.memory / chip.hbm_bandwidth,
        "network_seconds": max(wire / chip.ici_bandwidth, moved.dcn / chip.dcn_bandwidth),
    }
    longest, estimate = max(bounds.values()), moved.cycles / chip.cycles_per_second
    ideal = cost.total(flops, recompute=False) / devices / chip.flops
    return {
        **bounds,
        "collective_bytes": moved.collectives,
        "dcn_bytes": moved.dcn,
        "memory_bytes": moved.memory,
        "step_seconds": longest * known,
        "compiler_seconds": estimate,
        "mfu_upper_bound": ideal / longest * known,
        "mfu_estimate": ideal / max(longest, estimate) * known,
        "audio_rate_upper_bound": audio_seconds / longest / devices * known,
    }


# ---- sweeps ------------------------------------------------------------------------------------


def sweep(
    experiment: Experiment,
    topology: str,
    stage: str | None,
    slices: int,
    batches: Iterable[int],
    remats: Iterable[str],
    meshes: Iterable[MeshConfig],
    say: Callable[[str], None] = lambda _: None,
) -> list[Plan]:
    """A plan for every combination; larger batches are left out where a smaller one does not fit."""
    plans = []
    for mesh in meshes:
        for remat in remats:
            changed = dataclasses.replace(
                experiment, mesh=mesh, model=dataclasses.replace(experiment.model, remat=remat)
            )
            for batch in sorted(batches):
                plans.append(plan(changed, topology, stage, batch, slices, say))
                if not plans[-1].fits:
                    break
    return plans


def best(plans: Sequence[Plan]) -> Plan | None:
    """Of those that fit, the one with the most audio per second by the compiler's estimate and the bounds."""
    fitting = [p for p in plans if p.fits]
    return max(
        fitting, key=lambda p: p.batch_size * p.crop_seconds / max(p.step_seconds, p.compiler_seconds), default=None
    )

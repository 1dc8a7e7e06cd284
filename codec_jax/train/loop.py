"""The run: steps, evaluations and checkpoints in one directory, resumable at any time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from codec_jax import models
from codec_jax.checkpoint import Checkpoints
from codec_jax.codec import Codec
from codec_jax.errors import UserError
from codec_jax.experiment import Experiment, codec_from_dict, to_dict, to_json
from codec_jax.models.protocol import Geometry
from codec_jax.sources import CHECKPOINTS
from codec_jax.storage import CONFIG, read_json
from codec_jax.train import chips, codebooks, cost, feed, health, sharding, stages, step, stopping, teachers, validation
from codec_jax.train.ledger import Ledger
from codec_jax.train.logging import TENSORBOARD, MetricsWriter, Progress
from codec_jax.train.state import CODEC, HEAD, State, from_tree, to_tree
from codec_jax.train.warm_start import check_init_from, warm_start

SAMPLES = "samples"


def run(experiment: Experiment, workdir: epath.PathLike) -> None:
    """Trains to `experiment.training.steps` in `workdir`; called again, goes on from the newest checkpoint.

    Raises UserError for a directory that holds something else or another model, and Preempted after SIGTERM.
    """
    experiment.validate()
    ledger = Ledger()
    workdir = epath.Path(workdir)
    mesh = sharding.make_mesh(experiment.mesh)
    sharding.check_batch(mesh, experiment.data.batch_size // experiment.training.accumulate)
    check_workdir(experiment, workdir)
    if not (workdir / CONFIG).exists():
        check_sources(experiment)
    with ledger.charge("init"):
        data = feed.open_data(experiment, sharding.batch_sharding(mesh))
        workdir.mkdir(parents=True, exist_ok=True)
        write_config(experiment, workdir)
        checkpoints = Checkpoints(
            workdir / CHECKPOINTS, experiment.training.keep_checkpoints, experiment.training.keep_every
        )
        state, stage = start(experiment, mesh, checkpoints, data.batches, print)
    first = int(state.step)
    log = Log(MetricsWriter(workdir, first, to_dict(experiment)), Progress(experiment.training.steps, first), ledger)
    log.progress.say(_summary(experiment, state, first))
    run = Run(experiment, mesh, data, workdir, checkpoints, log)
    try:
        if first == 0:
            evaluate(run, state)
        with stopping.listening() as request:
            train(run, state, stage, request)
    finally:
        stopping.unwatch()
        log.close()
        checkpoints.close()
    if jax.process_index() == 0:
        print(_farewell(run))


class Log(NamedTuple):
    """Where a run tells how it goes."""

    writer: MetricsWriter
    progress: Progress
    ledger: Ledger

    def close(self) -> None:
        """Leaves the files whole."""
        self.progress.close()
        self.writer.close()


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    experiment: Experiment
    mesh: Mesh
    data: feed.Data
    workdir: epath.Path
    checkpoints: Checkpoints
    log: Log


# ---- steps -------------------------------------------------------------------------------------


def train(run: Run, state: State, stage: stages.Stage | None, request: stopping.StopRequest) -> None:
    """Stage after stage to the end. stage: of `state`; None for a fresh one."""
    experiment = run.experiment
    all_stages = stages.resolve(experiment)
    while int(state.step) < experiment.training.steps:
        following = stages.at(all_stages, int(state.step))
        abstract = step.abstract_state(experiment, following, run.mesh)
        if following != stage:
            run.log.progress.say(_stage_line(following))
        state, stage = step.enter_stage(experiment, following, state, abstract), following
        state = train_stage(run, state, stage, abstract, request)


def train_stage(run: Run, state: State, stage: stages.Stage, abstract: State, request: stopping.StopRequest) -> State:
    """Steps to the end of one stage, with the rhythm of `experiment.training`; the state after them."""
    rhythm, ledger, last = run.experiment.training, run.log.ledger, run.experiment.training.steps
    with ledger.charge("init"):
        frozen = teachers.load(run.experiment, stage, run.mesh)
    train_step = step.make_train_step(run.experiment, stage, abstract, run.mesh, frozen)
    where = sharding.batch_sharding(run.mesh)
    first = int(state.step) + 1
    usage, before = 0, None
    speed = Speed.of(run.experiment, stage)
    ledger.start_row(first - 1)
    for number in range(first, stage.stop + 1):
        stopping.watch(rhythm.hang_seconds)
        _profile(rhythm.profile, number, run.workdir)
        with ledger.charge("data"):
            batch = next(run.data.batches)
            fed = feed.on_devices(batch, where, run.experiment.data.batch_size)
        if stage.kmeans and number == stage.start + 1:
            with ledger.charge("init"), step.on_mesh(run.mesh):
                state = codebooks.seed(run.experiment, stage, state, fed["audio"])
        with ledger.charge("compile" if number == first else "step"):
            state, metrics = train_step(state, fed, number - 1)
            if number == first:
                jax.block_until_ready(metrics["loss"])
        usage = usage + metrics["usage"]
        # The step before is done by now: looking at it costs no waiting.
        _look(run, before)
        before = (number, metrics, batch)
        run.log.progress.advance()
        if number == 1 or number % rhythm.log_every == 0 or number == last:
            write_row(run, number, metrics, np.asarray(usage), speed)
            usage = 0
        # Evaluated before saved: a restored step then has all its rows.
        if number % rhythm.eval_every == 0 or number == last:
            stopping.unwatch()
            evaluate(run, state)
        stop = request.reached(number)
        if number % rhythm.checkpoint_every == 0 or number == last or stop:
            save(run, number, state, stage)
        if stop and number < last:
            run.checkpoints.wait()
            raise stopping.Preempted(f"told to stop; step {number} is saved")
    _look(run, before)
    return state


def save(run: Run, number: int, state: State, stage: stages.Stage) -> None:
    """A checkpoint in the background; from its metadata alone one can tell which tree it holds."""
    with run.log.ledger.charge("save"):
        position = {"data": run.data.batches.get_state(), "stage": stage.name, "config": to_dict(run.experiment)}
        run.checkpoints.save(number, to_tree(state), position)


def _look(run: Run, before: tuple | None) -> None:
    """Tells of a skipped step, and ends the run after too many."""
    if before is None:
        return
    number, metrics, batch = before
    fed = {"audio": batch["audio"], "names": [run.data.names[i] for i in batch["clip"]]}
    said = health.check_step(run.experiment.training, run.workdir, number, metrics, fed)
    if said:
        run.log.progress.say(said)


class Speed(NamedTuple):
    """What one step of a stage does: seconds of audio, and FLOPs per device, recomputation not counted."""

    audio_seconds: float
    flops: float

    @classmethod
    def of(cls, experiment: Experiment, stage: stages.Stage) -> "Speed":
        """Of all clips of a batch, and of the players that the stage moves."""
        seconds = experiment.data.batch_size * experiment.crop_samples / _geometry(experiment).sample_rate
        flops = cost.total(cost.step_flops(experiment, stage), recompute=False)
        return cls(seconds, flops / jax.device_count())

    def figures(self, steps_per_second: float) -> dict[str, float]:
        """Throughput; `mfu`, the share of the chip's peak in bfloat16, where that is known."""
        flops, peak = self.flops * steps_per_second, chips.peak_flops(jax.devices()[0].device_kind)
        figures = {
            "audio_seconds_per_second": self.audio_seconds * steps_per_second,
            "tflops_per_device": flops / 1e12,
        }
        return figures | ({"mfu": flops / peak} if peak else {})


def write_row(run: Run, number: int, metrics: dict[str, Any], usage: np.ndarray, speed: Speed) -> None:
    """One row of training figures, and alarms where they ask for them."""
    values = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
    values |= health.code_figures(usage) | run.log.ledger.row(number) | _memory()
    values |= speed.figures(values["steps_per_second"])
    run.log.writer.write(number, {f"train/{name}": value for name, value in values.items()})
    run.log.progress.show({"loss": values["loss"]})
    for alarm in health.alarms(number, values):
        run.log.progress.say(f"step {number}: {alarm} (docs/training.md)")


def _memory() -> dict[str, float]:
    """Gigabytes in use on the first device, where it tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "memory_gb", "peak_bytes_in_use": "memory_peak_gb"}
    return {ours: stats[theirs] / 1e9 for theirs, ours in names.items() if theirs in stats}


def _profile(profile: tuple[int, int], number: int, workdir: epath.Path) -> None:
    """Starts and ends the recording of `training.profile`."""
    first, steps = profile
    if steps and number == first:
        jax.profiler.start_trace(str(workdir / TENSORBOARD))
    if steps and number == first + steps:
        jax.profiler.stop_trace()


# ---- beginnings --------------------------------------------------------------------------------


def start(
    experiment: Experiment, mesh: Mesh, checkpoints: Checkpoints, batches: Any, say: Callable[[str], None]
) -> tuple[State, stages.Stage | None]:
    """The newest checkpoint and its stage, the data iterator set to its position; or a fresh state and no stage.

    A fresh state has the weights of `experiment.init_from`, which `say` is told.
    """
    all_stages, newest = stages.resolve(experiment), checkpoints.latest_step
    if newest is None:
        abstract = step.abstract_state(experiment, all_stages[0], mesh)
        return warm_start(experiment, step.init_state(experiment, all_stages[0], abstract), say), None
    if newest > experiment.training.steps:
        raise UserError(
            f"this run is already at step {newest}, beyond training.steps={experiment.training.steps}: raise it."
        )
    metadata = checkpoints.metadata(newest)
    stage = stages.named(all_stages, metadata["stage"])
    batches.set_state(metadata["data"])
    wanted = to_tree(step.abstract_state(experiment, stage, mesh))
    return from_tree(checkpoints.restore(newest, wanted)), stage


def write_config(experiment: Experiment, workdir: epath.Path) -> None:
    """The resolved config, by the first process."""
    if jax.process_index() == 0:
        (workdir / CONFIG).write_text(to_json(experiment))


def evaluate(run: Run, state: State) -> None:
    """Held-out metrics with the averaged weights, by the first process: written, shown, heard in samples/step_N/."""
    with run.log.ledger.charge("evaluate"):
        number, player = int(state.step), state.players[CODEC]
        variables = {"params": player.params if player.ema is None else player.ema, "batch_stats": state.batch_stats}
        heads = {name: state.players[name].params for name in state.players if name == HEAD}
        variables, heads = sharding.whole((variables, heads), run.mesh)
        if jax.process_index():
            return
        codec = Codec(run.experiment.family, run.experiment.codec, variables)
        directory = run.workdir / SAMPLES / f"step_{number:07d}"
        values = validation.evaluate(codec, run.data.held_out, directory, run.experiment.training.max_samples)
        if heads:
            values["valid/per"] = validation.phone_errors(codec, heads[HEAD], run.data.held_out, run.data.spoken)
        run.log.writer.write(number, values)
    shown = "  ".join(f"{name.removeprefix('valid/')} {value:.3f}" for name, value in values.items())
    run.log.progress.say(f"step {number}: {shown}")


def check_workdir(experiment: Experiment, workdir: epath.Path) -> None:
    """Raises UserError unless the directory is new, empty, or a run of the same codec. Writes nothing."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: give a directory as --workdir.")
    if (workdir / CONFIG).exists():
        there = codec_from_dict(read_json(workdir / CONFIG))
        if there != (experiment.family, experiment.codec):
            raise UserError(f"{workdir} holds a run of another model or bottleneck: give another --workdir.")
    elif workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no run: give another --workdir.")


def check_sources(experiment: Experiment) -> None:
    """Raises UserError where weights that a new run begins with, or that a later stage listens to, do not fit it."""
    check_init_from(experiment)
    teachers.check(experiment)


def _geometry(experiment: Experiment) -> Geometry:
    return models.FAMILIES[experiment.family].geometry(experiment.codec)


def _summary(experiment: Experiment, state: State, first: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.players[CODEC].params))
    going = f", going on from step {first}" if first else ""
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device{'s' * (jax.device_count() > 1)}"
    scaled = ", stages scaled to that" if stages.rescaled(experiment) else ""
    return f"{experiment.family}: {count:,} parameters, {experiment.training.steps:,} steps{scaled} on {devices}{going}"


def _stage_line(stage: stages.Stage) -> str:
    players = "the codec and its discriminators" if stage.discriminator_optim else "the codec"
    frozen = f", {', '.join(stage.freeze)} frozen" if stage.freeze else ""
    return f"stage {stage.name}: steps {stage.start + 1} to {stage.stop}, training {players}{frozen}"


def _farewell(run: Run) -> str:
    samples = run.workdir / SAMPLES / f"step_{run.experiment.training.steps:07d}"
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.log.ledger.totals().items())
    return (
        f"time: {spent}\n"
        f"samples (reference, decoded, spectrograms): {samples}\n"
        f"next: codec-jax reconstruct YOUR.wav -o out --model {run.workdir}"
    )

"""The run: data, state, steps, evaluations and checkpoints in one directory, resumable at any time."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from codec_jax import models
from codec_jax.checkpoint import Checkpoints
from codec_jax.codec import Codec
from codec_jax.data import corpus, pipeline
from codec_jax.errors import UserError
from codec_jax.experiment import Experiment, codec_from_dict, to_dict, to_json
from codec_jax.models.protocol import Geometry
from codec_jax.sources import CHECKPOINTS
from codec_jax.storage import CONFIG, read_json
from codec_jax.train import sharding, step, validation
from codec_jax.train.logging import MetricsWriter, Progress
from codec_jax.train.state import CODEC, State

SAMPLES = "samples"


class Data(NamedTuple):
    """The training batches, an iterator with a position that can be saved, and the held-out clips."""

    batches: Any
    held_out: list[validation.Clip]


def run(experiment: Experiment, workdir: epath.PathLike) -> None:
    """Trains to `experiment.training.steps` in `workdir`; called again, goes on from the newest checkpoint.

    Raises UserError for a directory that holds something else or another model.
    """
    experiment.validate()
    workdir = epath.Path(workdir)
    mesh = sharding.make_mesh(experiment.mesh)
    sharding.check_batch(mesh, experiment.data.batch_size)
    check_workdir(experiment, workdir)
    data = open_data(experiment)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / CONFIG).write_text(to_json(experiment))
    abstract = step.abstract_state(experiment, mesh)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, experiment.training.keep_checkpoints)
    state = start(experiment, abstract, checkpoints, data.batches)
    first = int(state.step)
    writer, progress = MetricsWriter(workdir, first), Progress(experiment.training.steps, first)
    progress.say(_summary(experiment, abstract, first))
    try:
        if first == 0:
            evaluate(experiment, state, data.held_out, workdir, writer, progress)
        train(experiment, state, abstract, mesh, data, (workdir, checkpoints, writer, progress))
    finally:
        progress.close()
        writer.close()
        checkpoints.close()
    print(_farewell(experiment, workdir))


def train(experiment: Experiment, state: State, abstract: State, mesh: Mesh, data: Data, outputs: tuple) -> None:
    """Steps to the end, with the rhythm of `experiment.training`."""
    workdir, checkpoints, writer, progress = outputs
    rhythm, last = experiment.training, experiment.training.steps
    train_step = step.make_train_step(experiment, abstract, mesh)
    clock = Clock(experiment)
    batches = on_devices(data.batches, sharding.batch_sharding(mesh), clock)
    for number in range(int(state.step) + 1, last + 1):
        state, metrics = train_step(state, next(batches))
        progress.advance()
        if number == 1 or number % rhythm.log_every == 0 or number == last:
            values = {name: float(value) for name, value in metrics.items()}
            writer.write(number, {f"train/{name}": value for name, value in {**values, **clock.lap(number)}.items()})
            progress.show({"loss": values["loss"]})
        # Evaluated before saved: a restored step then has all its rows.
        if number % rhythm.eval_every == 0 or number == last:
            evaluate(experiment, state, data.held_out, workdir, writer, progress)
            clock.pause(number)
        if number % rhythm.checkpoint_every == 0 or number == last:
            position = {"data": data.batches.get_state(), "config": to_dict(experiment)}
            checkpoints.save(number, state, position)


def start(experiment: Experiment, abstract: State, checkpoints: Checkpoints, batches: Any) -> State:
    """The newest checkpoint with the data iterator set to its position, or a fresh state."""
    newest = checkpoints.latest_step
    if newest is None:
        return step.init_state(experiment, abstract)
    if newest > experiment.training.steps:
        raise UserError(
            f"this run is already at step {newest}, beyond training.steps={experiment.training.steps}: raise it."
        )
    state, position = checkpoints.restore(newest, abstract)
    batches.set_state(position["data"])
    return state


def evaluate(
    experiment: Experiment,
    state: State,
    clips: list[validation.Clip],
    workdir: epath.Path,
    writer: MetricsWriter,
    progress: Progress,
) -> None:
    """Held-out metrics with the averaged weights, written, shown, and heard in samples/step_N/."""
    number, player = int(state.step), state.players[CODEC]
    params = player.params if player.ema is None else player.ema
    codec = Codec(experiment.family, experiment.codec, {"params": params})
    directory = workdir / SAMPLES / f"step_{number:07d}"
    values = validation.evaluate(codec, clips, directory, experiment.training.max_samples)
    writer.write(number, values)
    shown = "  ".join(f"{name.removeprefix('valid/')} {value:.3f}" for name, value in values.items())
    progress.say(f"step {number}: {shown}")


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


def open_data(experiment: Experiment) -> Data:
    """Both sides of the corpus; every process reads its share of the global batch."""
    geometry = _geometry(experiment)
    train_clips, valid_clips = corpus.corpora(experiment.data)
    batches = pipeline.train_iterator(
        train_clips,
        experiment.data,
        geometry.sample_rate,
        geometry.channels,
        seed=experiment.training.seed,
        crop_samples=experiment.crop_samples,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
    held_out = pipeline.valid_clips(valid_clips, experiment.data, geometry.sample_rate, geometry.channels)
    return Data(batches, held_out)


class Clock:
    """Throughput since the last row: steps and seconds of audio per second, and the share spent waiting for data."""

    def __init__(self, experiment: Experiment):
        self._seconds_per_step = (
            experiment.data.batch_size * experiment.crop_samples / _geometry(experiment).sample_rate
        )
        self._began, self._at, self.waited = time.perf_counter(), 0, 0.0

    def lap(self, number: int) -> dict[str, float]:
        """What to log at step `number`; starts the next interval."""
        elapsed, steps = time.perf_counter() - self._began, number - self._at
        waited = self.waited
        self.pause(number)
        return {
            "steps_per_second": steps / elapsed,
            "audio_seconds_per_second": steps * self._seconds_per_step / elapsed,
            "data_wait": waited / elapsed,
        }

    def pause(self, number: int) -> None:
        """Starts a new interval, so that an evaluation does not count as training."""
        self._began, self._at, self.waited = time.perf_counter(), number, 0.0


def on_devices(batches: Any, where: NamedSharding, clock: Clock) -> Iterator[dict[str, jax.Array]]:
    """Global arrays from every process's share of the batch."""
    while True:
        began = time.perf_counter()
        batch = next(batches)
        clock.waited += time.perf_counter() - began
        yield {name: jax.make_array_from_process_local_data(where, np.asarray(x)) for name, x in batch.items()}


def _geometry(experiment: Experiment) -> Geometry:
    return models.FAMILIES[experiment.family].geometry(experiment.codec)


def _summary(experiment: Experiment, abstract: State, first: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract.players[CODEC].params))
    going = f", going on from step {first}" if first else ""
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device{'s' * (jax.device_count() > 1)}"
    return f"{experiment.family}: {count:,} parameters, {experiment.training.steps:,} steps on {devices}{going}"


def _farewell(experiment: Experiment, workdir: epath.Path) -> str:
    samples = workdir / SAMPLES / f"step_{experiment.training.steps:07d}"
    return (
        f"samples (reference, decoded, spectrograms): {samples}\n"
        f"next: codec-jax reconstruct YOUR.wav -o out --model {workdir}"
    )

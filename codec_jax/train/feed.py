"""What a run is fed: batches of the training corpus and held-out clips, with the phones said in them where it asks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from codec_jax import models
from codec_jax.data import corpus, pipeline
from codec_jax.data.phones import read_phones
from codec_jax.data.transcripts import Labels, check_transcripts
from codec_jax.errors import UserError
from codec_jax.experiment import Experiment
from codec_jax.train import stages, validation


class Data(NamedTuple):
    """Training batches (an iterator with a position that can be saved), held-out clips, names of the training files.

    spoken: phones of every held-out clip, where some stage asks for phones.
    """

    batches: Any
    held_out: list[validation.Clip]
    names: list[str]
    spoken: list[np.ndarray]


def open_data(experiment: Experiment, where: Sharding) -> Data:
    """Both sides of the corpus; every process reads what its devices hold of a global batch sharded as `where`."""
    geometry = models.FAMILIES[experiment.family].geometry(experiment.codec)
    train_clips, valid_clips = corpus.corpora(experiment.data)
    labels = _labels(experiment, (*train_clips, *valid_clips))
    batches = pipeline.train_iterator(
        train_clips,
        experiment.data,
        geometry.sample_rate,
        geometry.channels,
        seed=experiment.training.seed,
        crop_samples=experiment.crop_samples,
        places=local_places(where, experiment.data.batch_size),
        labels=labels,
    )
    held_out = pipeline.valid_clips(valid_clips, experiment.data, geometry.sample_rate, geometry.channels)
    spoken = []
    if labels is not None:
        spoken = pipeline.valid_targets(valid_clips, [name for name, _ in held_out], geometry.sample_rate, labels)
    return Data(batches, held_out, [clip.name for clip in train_clips], spoken)


def _labels(experiment: Experiment, clips: Sequence[corpus.Clip]) -> Labels | None:
    """The phones that some stage asks for. Raises UserError where recordings have no transcript."""
    if not any(stage.losses.ctc for stage in stages.resolve(experiment)):
        return None
    phones = read_phones(experiment.ctc.phones)
    if len(phones) != experiment.ctc.num_phones:
        raise UserError(
            f"{phones.source} are {len(phones)}, and ctc.num_phones is {experiment.ctc.num_phones}: set it."
        )
    check_transcripts(clips)
    return Labels(phones, experiment.ctc.most, "ctc.most")


def local_places(where: Sharding, clips: int) -> list[int]:
    """Which clips of a global batch this process's devices hold: neighbours or not, some maybe other processes' too."""
    held = (np.arange(clips)[index] for index in where.addressable_devices_indices_map((clips,)).values())
    return sorted({int(place) for places in held for place in places})


def on_devices(batch: dict[str, Any], where: Sharding, clips: int) -> dict[str, jax.Array]:
    """Global arrays of `clips` clips from those that this process has read, `local_places`."""
    read = np.asarray(batch["place"])

    def placed(array: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(clips)
            first = int(np.searchsorted(read, start))
            return array[first : first + stop - start]

        return jax.make_array_from_callback((clips, *array.shape[1:]), where, shard)

    return {name: placed(np.asarray(batch[name])) for name in ("audio", "place", "phones") if name in batch}

"""From recordings to batches: random crops, loudness and polarity, the same on any number of hosts.

source (one entry per crop length of every recording) -> shuffle -> repeat -> random crop -> a process's share, batched.
All chance comes from Grain's generator for the place in the global stream: a saved position is all the state.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float32, Int32

from codec_jax.audio import files
from codec_jax.audio.loudness import MIN_MEAN_SQUARE, loudness_gain, mean_square
from codec_jax.audio.resample import resample, resampled_length, source_span
from codec_jax.data.corpus import Clip
from codec_jax.data.transcripts import Labels, targets
from codec_jax.errors import UserError
from codec_jax.experiment import DataConfig

_log = logging.getLogger(__name__)
CACHE_BYTES = 512 << 20  # corpora smaller than this, decoded, stay in memory,
CACHE_SECONDS = 300  # but for recordings longer than this, of which only excerpts are decoded
_TRIES = 4  # crop positions tried before a silent crop is taken
_REPLACEMENTS = 8  # recordings tried in place of one that fails to decode

Audio = Float32[np.ndarray, "channel time"]


def train_iterator(
    clips: Sequence[Clip],
    config: DataConfig,
    sample_rate: int,
    channels: int,
    *,
    seed: int,
    crop_samples: int | None = None,
    places: Sequence[int] | None = None,
    labels: Labels | None = None,
) -> grain.DatasetIterator:
    """Endless batches: "audio", float32 [batch, channels, crop_samples], int32 "clip", and int32 "place".

    crop_samples: the length the model takes (None: config.crop_seconds). places: which clips of every batch of
    config.batch_size are wanted, in this order (None: all); "place" repeats it. `get_state` and `set_state` continue
    the stream exactly, also with other places or another batch size.
    An epoch visits a recording once per crop length it lasts, rounded up. config.prefetch counts crops.
    labels: adds what is said in a crop, by its recording's transcript: "phones", int32 [batch, labels.most], padded;
    the audio stays the same.
    Raises: UserError where there are no clips, or a batch or a crop of nothing; from the iterator, where a transcript
    cannot be used.
    """
    samples = round(config.crop_seconds * sample_rate) if crop_samples is None else crop_samples
    if not clips:
        raise UserError("there are no recordings to train on; name a directory in --config.data.train")
    if samples < 1:
        raise UserError(f"data.crop_seconds is {config.crop_seconds}; give a positive length")
    if config.batch_size < 1:
        raise UserError(f"data.batch_size is {config.batch_size}; give a positive number")
    crop = _Crop(tuple(clips), config, sample_rate, channels, samples, labels)
    stream = (
        grain.MapDataset.source(_Passes([-(-crop.length(clip) // samples) for clip in clips]))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(crop)
    )
    return _Batches(stream, config, range(config.batch_size) if places is None else places)


class _Batches(grain.DatasetIterator):
    """Batches of a share of the crops. Its position counts crops of the whole stream: every share's is the same."""

    def __init__(self, crops: grain.MapDataset, config: DataConfig, places: Sequence[int]):
        super().__init__()
        self._crops, self._config, self._places = crops, config, tuple(places)
        self._next = 0
        self._reader: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._reader is None:
            share = _Share(self._crops[self._next :], self._config.batch_size, self._places)
            batches = share.batch(len(self._places), drop_remainder=True)
            self._reader = iter(batches.to_iter_dataset(read_options=_read_options(self._config, len(self._places))))
        batch = next(self._reader)
        self._next += self._config.batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        return {"global_next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        self._stop_reading()
        self._next = state["global_next_index"]

    def close(self) -> None:
        self._stop_reading()
        super().close()

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None


class _Share(grain.MapDataset):
    """The crops at `places` of every `batch` of them; each is told its place."""

    def __init__(self, crops: grain.MapDataset, batch: int, places: Sequence[int]):
        super().__init__(crops)
        self._batch, self._places = batch, places

    def __len__(self) -> int:
        return len(self._parent) // self._batch * len(self._places)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        number, at = divmod(index, len(self._places))
        place = self._places[at]
        return {**self._parent[number * self._batch + place], "place": np.int32(place)}


def _read_options(config: DataConfig, batch: int) -> grain.ReadOptions:
    # Grain reads whole batches, one a thread, and its buffer counts batches: under `threads`, some idle.
    threads = config.num_threads
    buffer = max(threads, -(-config.prefetch // batch)) if threads else 0
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)


class _Passes:
    """Random-access source of clip indices, clip i counts[i] times over; 8 bytes a clip, however long."""

    def __init__(self, counts: Sequence[int]):
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place: int) -> int:
        return int(np.searchsorted(self._ends, place, side="right"))

    def __repr__(self) -> str:
        return f"_Passes({len(self._ends)} clips, {len(self)} crops)"


@dataclasses.dataclass
class _Crop:
    """Clip index and generator -> "audio" [channels, samples] at a drawn loudness and polarity, "clip" and labels."""

    clips: tuple[Clip, ...]
    config: DataConfig
    sample_rate: int
    channels: int
    samples: int
    labels: Labels | None = None

    def __post_init__(self):
        decoded = 4 * self.channels * sum(self.length(clip) for clip in self.clips)
        self._kept: dict[int, np.ndarray] | None = {} if decoded < CACHE_BYTES else None
        self._failed: set[int] = set()

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        audio, used, start = self._cut(index, rng)
        target = self.config.loudness + rng.uniform(-1, 1) * self.config.loudness_jitter
        gain = loudness_gain(audio, self.sample_rate, target)
        if rng.random() < self.config.phase_flip:
            gain = -gain
        return {"audio": audio * np.float32(gain), "clip": np.int32(used), **self._said(used, start)}

    def _said(self, index: int, start: int) -> dict[str, np.ndarray]:
        """What the labels hold for a crop. Unlike audio that fails, a transcript that does ends the run."""
        if self.labels is None:
            return {}
        seconds = (start / self.sample_rate, (start + self.samples) / self.sample_rate)
        return {"phones": self.labels.targets(self.clips[index], *seconds)}

    def length(self, clip: Clip) -> int:
        """Samples of the clip at the model's rate."""
        return resampled_length(clip.frames, clip.sample_rate, self.sample_rate)

    def _cut(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
        """A crop of the clip, or, where it fails to decode, of another; whose, and from which sample on.

        No bad file may end a long run.
        """
        for _ in range(_REPLACEMENTS):
            try:
                audio, start = self._sound(index, rng)
                return audio, index, start
            except UserError as error:
                failure = error
                if index not in self._failed:
                    self._failed.add(index)
                    _log.warning("another recording takes the place of one that fails: %s", error)
                index = int(rng.integers(len(self.clips)))
        raise failure

    def _sound(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """A crop and its random place, hardly ever in digital silence; short clips are padded on the right."""
        room = self.length(self.clips[index]) - self.samples
        for _ in range(_TRIES):
            start = int(rng.integers(room + 1)) if room > 0 else 0
            audio = self._excerpt(index, start)
            if room <= 0 or mean_square(audio) >= MIN_MEAN_SQUARE:
                break
        return np.pad(audio, ((0, 0), (0, self.samples - audio.shape[1]))), start

    def _excerpt(self, index: int, start: int) -> np.ndarray:
        clip = self.clips[index]
        if self._kept is None or clip.frames > CACHE_SECONDS * clip.sample_rate:
            return _decode(clip, start, self.samples, self.sample_rate, self.channels)
        audio = self._kept.get(index)
        if audio is None:  # two threads may both decode it: the same bytes
            audio = _decode(clip, 0, self.length(clip), self.sample_rate, self.channels)
            self._kept[index] = audio
        return audio[:, start : start + self.samples]


def _decode(clip: Clip, start: int, samples: int, sample_rate: int, channels: int) -> Audio:
    """Up to `samples` samples from `start` on, at `sample_rate`: a slice of the whole file resampled."""
    first, frames, drop = source_span(start, samples, clip.sample_rate, sample_rate)
    audio, rate = files.read(clip.path, first, frames)
    if rate != clip.sample_rate:
        raise UserError(
            f"{clip.path}: changed from {clip.sample_rate} Hz to {rate} Hz since it was indexed; start again"
        )
    audio = resample(files.to_channels(audio, channels), rate, sample_rate)
    return np.ascontiguousarray(audio[:, drop : drop + samples])


def valid_clips(
    clips: Sequence[Clip], config: DataConfig, sample_rate: int, channels: int, max_seconds: float = 6.0
) -> list[tuple[str, Audio]]:
    """Up to config.max_valid_clips recordings, evenly chosen: (name, [channels, time]), at config.loudness.

    Of a longer recording, its middle `max_seconds`. Always the same ones. Silent and undecodable ones
    are left out with a warning. Raises: UserError where none is left.
    """
    count = min(config.max_valid_clips, len(clips))
    chosen = [clips[math.floor((i + 0.5) * len(clips) / count)] for i in range(count)]
    kept = []
    for clip in chosen:
        start, samples = _middle(clip, sample_rate, max_seconds)
        try:
            audio = _decode(clip, start, samples, sample_rate, channels)
        except UserError as error:
            _log.warning("left out of validation: %s", error)
            continue
        if mean_square(audio) < MIN_MEAN_SQUARE:
            _log.warning("left out of validation: %s: silent", clip.path)
            continue
        kept.append((clip.name, audio * np.float32(loudness_gain(audio, sample_rate, config.loudness))))
    if not kept:
        raise UserError("no validation recording can be used; name others in --config.data.valid")
    return kept


def _middle(clip: Clip, sample_rate: int, max_seconds: float) -> tuple[int, int]:
    """First sample and length, at `sample_rate`, of the middle of a recording."""
    length = resampled_length(clip.frames, clip.sample_rate, sample_rate)
    samples = min(length, round(max_seconds * sample_rate))
    return (length - samples) // 2, samples


def valid_targets(
    clips: Sequence[Clip], names: Sequence[str], sample_rate: int, labels: Labels, max_seconds: float = 6.0
) -> list[Int32[np.ndarray, " phone"]]:
    """What is said in the excerpts that `valid_clips` returned, by their names and with the same max_seconds.

    Raises: UserError as `Labels.words` does.
    """
    named = {clip.name: clip for clip in clips}
    spoken = []
    for name in names:
        start, samples = _middle(named[name], sample_rate, max_seconds)
        words = labels.words(named[name])
        spoken.append(targets(words, start / sample_rate, (start + samples) / sample_rate))
    return spoken

import collections
import json
import logging

import numpy as np
import pytest

from codec_jax.audio import files
from codec_jax.audio.loudness import integrated_loudness
from codec_jax.audio.resample import resample
from codec_jax.data import corpus, pipeline
from codec_jax.errors import UserError
from codec_jax.experiment import DataConfig

RATE = 16000
CONFIG = DataConfig(batch_size=4, crop_seconds=0.5, num_threads=2, prefetch=16)
PLAIN = DataConfig(batch_size=1, crop_seconds=0.5, num_threads=0, phase_flip=0.0)


def tone(frequency, seconds, rate=RATE, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    return np.tile(0.2 * np.sin(2 * np.pi * frequency * time), (channels, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Tones of 200, 400, ... Hz: a crop's frequency tells its recording. 0.3 to 2.8 s; one stereo."""
    directory = tmp_path_factory.mktemp("tones")
    for i in range(6):
        rate, channels = (22050, 2) if i == 3 else (RATE, 1)
        files.write(directory / f"{i}.flac", tone(200 * (i + 1), 0.3 + 0.5 * i, rate, channels), rate)
    return corpus.index(directory)


def batches(clips, count, config=CONFIG, state=None, **options):
    iterator = pipeline.train_iterator(clips, config, RATE, 1, seed=options.pop("seed", 0), **options)
    if state is not None:
        iterator.set_state(state)
    got = [next(iterator)["audio"] for _ in range(count)]
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    return np.stack(got), state


def recording(crop):
    """Index of the clip a crop of a tone came from."""
    spectrum = np.abs(np.fft.rfft(crop[0]))
    return round(np.argmax(spectrum) * RATE / crop.shape[-1] / 200) - 1


def test_batches_have_shape_type_and_finite_values(clips):
    got, _ = batches(clips, 5)
    assert got.shape == (5, 4, 1, 8000)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= 1.0
    assert batches(clips, 1, crop_samples=6400)[0].shape == (1, 4, 1, 6400)


def test_seed_alone_decides_the_stream(clips):
    first, _ = batches(clips, 6)
    assert np.array_equal(batches(clips, 6)[0], first)
    assert np.array_equal(batches(clips, 6, DataConfig(batch_size=4, crop_seconds=0.5, num_threads=0))[0], first)
    assert not np.array_equal(batches(clips, 6, seed=1)[0], first)


def test_restored_stream_continues_exactly(clips):
    whole, _ = batches(clips, 12)
    _, state = batches(clips, 5)
    rest, end = batches(clips, 7, state=state)
    assert np.array_equal(rest, whole[5:])
    assert end == {"global_next_index": 48}


def test_orbax_takes_the_iterator(clips, tmp_path):
    from orbax.checkpoint import v1 as ocp

    iterator = pipeline.train_iterator(clips, CONFIG, RATE, 1, seed=0)
    next(iterator)
    ocp.save_checkpointables(tmp_path / "c", {"data": iterator})
    want = next(iterator)["audio"]
    again = pipeline.train_iterator(clips, CONFIG, RATE, 1, seed=0)
    ocp.load_checkpointables(tmp_path / "c", {"data": again})
    assert np.array_equal(next(again)["audio"], want)


@pytest.mark.parametrize("shares", [([0, 1], [2, 3]), ([0, 3], [1, 2]), ([0, 1, 2, 3], [0, 1, 2, 3])])
def test_who_reads_changes_nothing(clips, shares):
    """Also where a process's clips are no neighbours, and where two processes hold the same ones."""
    one, _ = batches(clips, 8)
    two = [batches(clips, 5, places=places) for places in shares]
    for places, (got, state) in zip(shares, two):
        assert np.array_equal(got, one[:5, places])
        assert state == two[0][1]
    assert np.array_equal(batches(clips, 3, state=two[1][1])[0], one[5:])


def test_a_clip_is_told_its_place(clips):
    iterator = pipeline.train_iterator(clips, CONFIG, RATE, 1, seed=0, places=[1, 3])
    assert [next(iterator)["place"].tolist() for _ in range(3)] == [[1, 3]] * 3
    assert next(pipeline.train_iterator(clips, CONFIG, RATE, 1, seed=0))["place"].dtype == np.int32


def test_another_batch_size_goes_on_where_the_last_one_stopped(clips):
    whole, _ = batches(clips, 12)
    _, state = batches(clips, 1)
    larger = DataConfig(batch_size=6, crop_seconds=0.5, num_threads=2, prefetch=16)
    rest = [batches(clips, 3, larger, state, places=places)[0] for places in ([0, 1, 2], [3, 4, 5])]
    assert np.array_equal(np.concatenate(rest, 1).reshape(-1, 1, 8000), whole.reshape(-1, 1, 8000)[4:22])


def test_an_epoch_visits_each_clip_once_per_crop_length(clips):
    counts = [1, 2, 3, 4, 5, 6]  # ceil((0.3 + 0.5 i) / 0.5)
    crops = batches(clips, 2 * sum(counts), PLAIN)[0][:, 0]
    heard = [recording(crop) for crop in crops]
    for epoch in (heard[: sum(counts)], heard[sum(counts) :]):
        assert collections.Counter(epoch) == dict(enumerate(counts))
    assert heard[: sum(counts)] != heard[sum(counts) :]  # shuffled anew
    places = [crop for crop, index in zip(crops, heard) if index == 5]
    assert len({crop.tobytes() for crop in places}) == len(places)


def test_short_clips_are_padded_on_the_right(clips):
    crops = [c for c in batches(clips, 21, PLAIN)[0][:, 0] if recording(c) == 0]
    assert len(crops) == 1
    assert not crops[0][:, 4800:].any()
    assert np.abs(crops[0][:, 4700:4800]).max() > 0.05


def test_loudness_jitter_and_polarity(tmp_path, rng):
    pulses = np.abs(rng.standard_normal((1, 80_000))).astype(np.float32) * 0.02
    pulses[0, ::400] += 0.3  # skewed to one side, so polarity shows
    files.write(tmp_path / "a.wav", pulses, RATE)
    config = DataConfig(batch_size=40, crop_seconds=1.0, loudness=-30.0, loudness_jitter=3.0, num_threads=0)
    crops = batches(corpus.index(tmp_path), 1, config)[0][0]
    lufs = np.array([integrated_loudness(crop, RATE) for crop in crops])
    assert lufs.min() > -33.01
    assert lufs.max() < -26.99
    assert lufs.max() - lufs.min() > 4
    signs = np.sign([crop[0, np.abs(crop[0]).argmax()] for crop in crops])
    assert 8 < (signs > 0).sum() < 32


def test_other_rates_and_channels_are_converted(clips):
    third = (clips[3],)
    crop = batches(third, 1, DataConfig(batch_size=1, crop_seconds=0.25, num_threads=0))[0][0, 0]
    assert recording(crop) == 3
    stereo = next(pipeline.train_iterator(clips, CONFIG, RATE, 2, seed=0))["audio"]
    assert stereo.shape == (4, 2, 8000)
    assert np.array_equal(stereo[:, 0], stereo[:, 1])


def test_reading_an_excerpt_equals_cutting_the_decoded_file(clips, monkeypatch):
    kept, _ = batches(clips, 6)
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)
    read, _ = batches(clips, 6)
    assert np.abs(read - kept).max() < 1e-5
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "CACHE_SECONDS", 1)
    assert np.abs(batches(clips, 6)[0] - kept).max() < 1e-5
    whole = resample(files.read(clips[3].path)[0].mean(0, keepdims=True), 22050, RATE)
    part = pipeline._decode(clips[3], 10_001, 8000, RATE, 1)
    assert np.abs(part - whole[:, 10_001:18_001]).max() < 1e-5


def test_silence_is_avoided_where_possible_and_harmless_where_not(tmp_path):
    audio = np.zeros((1, 10 * RATE), np.float32)
    audio[:, : 5 * RATE] = tone(300, 5)
    files.write(tmp_path / "half.wav", audio, RATE)
    config = DataConfig(batch_size=100, crop_seconds=0.5, num_threads=0)
    crops = batches(corpus.index(tmp_path), 1, config)[0][0]
    silent = sum(not crop.any() for crop in crops)
    assert silent < 20  # one draw: about 47; four: about 5
    files.write(tmp_path / "half.wav", np.zeros((1, RATE), np.float32), RATE)
    crops = batches(corpus.index(tmp_path), 1, config)[0]
    assert not crops.any()


def test_a_file_that_fails_is_replaced_and_named_once(clips, tmp_path, caplog):
    broken = tmp_path / "broken.flac"
    files.write(broken, tone(100, 20), RATE)
    bad = corpus.index(tmp_path)
    broken.write_bytes(broken.read_bytes()[:2000])
    with caplog.at_level(logging.WARNING):
        got, _ = batches((*clips, *bad), 10, DataConfig(batch_size=6, crop_seconds=0.5, num_threads=0))
    assert got.any(axis=-1).all()
    assert len([r for r in caplog.records if "broken.flac" in r.getMessage()]) == 1
    with pytest.raises(UserError, match=r"broken\.flac"):
        batches(bad, 1, PLAIN)


def test_impossible_requests_say_so(clips):
    with pytest.raises(UserError, match="batch_size is 0"):
        batches(clips, 1, DataConfig(batch_size=0))
    with pytest.raises(UserError, match="no recordings"):
        batches((), 1)
    with pytest.raises(UserError, match="crop_seconds"):
        batches(clips, 1, DataConfig(crop_seconds=0.0))


def test_valid_clips_are_spread_normalised_and_repeatable(clips, tmp_path, caplog):
    config = DataConfig(max_valid_clips=3, loudness=-23.0)
    got = pipeline.valid_clips(clips, config, RATE, 1, max_seconds=1.0)
    assert [name for name, _ in got] == ["1.flac", "3.flac", "5.flac"]
    assert [audio.shape for _, audio in got] == [(1, 12_800), (1, 16_000), (1, 16_000)]
    for (name, audio), (_, again) in zip(got, pipeline.valid_clips(clips, config, RATE, 1, max_seconds=1.0)):
        assert integrated_loudness(audio, RATE) == pytest.approx(-23.0, abs=0.01), name
        assert np.array_equal(audio, again)
    assert len(pipeline.valid_clips(clips, DataConfig(), RATE, 1)) == 6
    files.write(tmp_path / "silent.wav", np.zeros(RATE, np.float32), RATE)
    silent = corpus.index(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(pipeline.valid_clips((*clips, *silent), DataConfig(), RATE, 1)) == 6
    assert "silent.wav" in caplog.text
    with pytest.raises(UserError, match="no validation recording"):
        pipeline.valid_clips(silent, DataConfig(), RATE, 1)

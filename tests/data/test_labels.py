import json

import numpy as np
import pytest

from codec_jax.audio import files
from codec_jax.audio.resample import resample
from codec_jax.data import corpus, pipeline
from codec_jax.data.phones import read_phones
from codec_jax.data.transcripts import Labels
from codec_jax.errors import UserError
from codec_jax.experiment import DataConfig

RATE = 16000
CONFIG = DataConfig(batch_size=4, crop_seconds=0.5, num_threads=2, prefetch=16)
PHONES = read_phones()
KEYS = ("audio", "clip", "phones")


def labels(most=40):
    return Labels(PHONES, most, "ctc.max_phones")


def aligned(clip, seconds, rng):
    """Words of 0.02 to 0.2 s and one to three phones, with pauses between."""
    words, time = [], 0.0
    while (time := time + rng.choice([0.0, 0.01, 0.1])) < seconds - 0.2:
        end = time + rng.uniform(0.02, 0.2)
        phones = [PHONES.names[i] for i in rng.integers(1, 70, rng.integers(1, 4))]
        words.append({"word": "w", "start": time, "end": end, "phones": phones})
        time = end
    clip.with_suffix(".json").write_text(json.dumps({"words": words}))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Noise of 0.3 to 2.3 s, so that a crop's place can be found again; one at another rate, one half silent."""
    directory, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for i in range(5):
        rate, seconds = (22050 if i == 3 else RATE), 0.3 + 0.5 * i
        noise = 0.1 * rng.standard_normal((1, round(seconds * rate))).astype(np.float32)
        if i == 4:
            noise[:, : noise.shape[1] // 2] = 0
        files.write(directory / f"{i}.flac", noise, rate)
        aligned(directory / f"{i}.flac", seconds, rng)
    return corpus.index(directory)


def batches(clips, count, config=CONFIG, state=None, most=40, **options):
    """Items of each of the next batches, and the state after them."""
    given = labels(most) if most else None
    iterator = pipeline.train_iterator(clips, config, RATE, 1, seed=0, labels=given, **options)
    if state is not None:
        iterator.set_state(state)
    got = [next(iterator) for _ in range(count)]
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    return got, state


def same(a, b):
    return all(np.array_equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in KEYS)


def place(crop, clip):
    """Where in the clip a crop comes from, in seconds: where it correlates best."""
    audio, rate = files.read(clip.path)
    whole = resample(audio, rate, RATE)[0]
    crop = np.pad(crop[0], (0, max(0, len(whole) - len(crop[0]))))
    whole = np.pad(whole, (0, len(crop) - len(whole)))
    product = np.fft.irfft(np.fft.rfft(whole) * np.fft.rfft(crop).conj(), len(whole))
    return np.abs(product).argmax() / RATE


def said(clip, start, end):
    """The phones of a transcript between two times, without the library."""
    with open(clip.path.replace(".flac", ".json")) as file:
        words = json.load(file)["words"]
    found = []
    for word in words:
        if start <= word["start"] < end or start < word["end"] <= end:
            found += ["|", *word["phones"]]
    return [PHONES.names.index(phone) for phone in found[1:]]


def test_items_have_padded_phones_and_the_same_audio(clips):
    plain, plain_state = batches(clips, 4, most=None)
    got, state = batches(clips, 4)
    assert state == plain_state
    for batch, without in zip(got, plain):
        assert sorted(batch) == sorted([*KEYS, "place"])
        assert sorted(without) == ["audio", "clip", "place"]
        assert np.array_equal(batch["audio"], without["audio"])
        assert batch["phones"].shape == (4, 40)
        assert batch["phones"].dtype == np.int32
        for row in batch["phones"]:
            spoken = row < PHONES.blank
            assert (row[~spoken] == PHONES.padding).all()
            assert not (np.diff(spoken.astype(int)) > 0).any()  # padded behind


@pytest.mark.parametrize("cached", [True, False])
def test_targets_are_those_of_the_crops_place(clips, monkeypatch, cached):
    if not cached:
        monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)
    seen = set()
    for batch in batches(clips, 12)[0]:
        for crop, index, row in zip(*(batch[key] for key in KEYS)):
            start = place(crop, clips[index])
            seen.add((int(index), start > 0))
            assert row[row < PHONES.blank].tolist() == said(clips[index], start, start + 0.5), (index, start)
    assert {index for index, _ in seen} == set(range(5))
    assert (3, True) in seen  # at another rate
    assert (4, True) in seen  # where silent places are drawn again


def test_a_recording_that_takes_anothers_place_brings_its_own_phones(clips, tmp_path):
    broken = tmp_path / "broken.flac"
    files.write(broken, np.random.default_rng(1).uniform(-0.1, 0.1, (1, 20 * RATE)).astype(np.float32), RATE)
    aligned(broken, 20, np.random.default_rng(2))
    bad = corpus.index(tmp_path)
    broken.write_bytes(broken.read_bytes()[:2000])
    everything = (*clips, *bad)
    for batch in batches(everything, 6)[0]:
        assert (batch["clip"] < 5).all()
        for crop, index, row in zip(*(batch[key] for key in KEYS)):
            start = place(crop, everything[index])
            assert row[row < PHONES.blank].tolist() == said(everything[index], start, start + 0.5)


def test_neither_hosts_nor_a_restart_change_a_label(clips):
    one, _ = batches(clips, 8)
    for places in ([0, 1], [2, 3]):
        got, _ = batches(clips, 8, places=places)
        assert same(got, [{key: batch[key][places] for key in KEYS} for batch in one])
    _, state = batches(clips, 3, places=[2, 3])
    assert same(batches(clips, 5, state=state)[0], one[3:])
    alone = DataConfig(batch_size=4, crop_seconds=0.5, num_threads=0)
    assert same(batches(clips, 8, alone)[0], one)


def test_a_crop_with_too_many_phones_ends_the_run_with_the_setting(clips):
    with pytest.raises(UserError, match=r"\.flac: \d+ phones .* and ctc\.max_phones is 3; raise it"):
        batches(clips, 8, most=3)


def test_a_damaged_transcript_ends_the_run(clips, tmp_path):
    files.write(tmp_path / "a.flac", np.full((1, RATE), 0.1, np.float32), RATE)
    (tmp_path / "a.json").write_text('{"words": [{"word": "w", "start": 1}]}')
    with pytest.raises(UserError, match=r"a\.json: word 1 \(w\): \"end\" is missing"):
        batches(corpus.index(tmp_path), 1)


def test_validation_has_the_targets_of_its_excerpts(clips, tmp_path):
    files.write(tmp_path / "silent.flac", np.zeros((1, RATE), np.float32), RATE)
    everything = (*corpus.index(tmp_path), *clips)
    kept = pipeline.valid_clips(everything, CONFIG, RATE, 1, max_seconds=0.75)
    names = [name for name, _ in kept]
    got = pipeline.valid_targets(everything, names, RATE, labels(), max_seconds=0.75)
    assert names == [f"{i}.flac" for i in range(5)]  # not the silent one, which has no transcript either
    for (name, audio), row in zip(kept, got, strict=True):
        clip = next(clip for clip in clips if clip.name == name)
        start = place(audio, clip)
        assert row.size
        assert row.tolist() == said(clip, start, start + audio.shape[1] / RATE), name

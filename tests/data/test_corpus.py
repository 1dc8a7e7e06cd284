import logging

import numpy as np
import pytest
import soundfile

from codec_jax.audio import files
from codec_jax.data import corpus
from codec_jax.data.corpus import Clip
from codec_jax.errors import UserError
from codec_jax.experiment import DataConfig


@pytest.fixture
def recordings(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for i, name in enumerate(("a/one.wav", "a/b/two.flac", "three.wav")):
        files.write(tmp_path / name, np.full((1 + i % 2, 1000 * (i + 1)), 0.1, np.float32), 8000 * (i + 1))
    return tmp_path


def clips(count):
    return tuple(Clip(f"/x/{i}.wav", f"{i}.wav", 100, 16000, 1) for i in range(count))


def test_index_reads_headers_in_order(recordings):
    got = corpus.index(recordings)
    assert [(c.name, c.frames, c.sample_rate, c.channels) for c in got] == [
        ("a/b/two.flac", 2000, 16000, 2),
        ("a/one.wav", 1000, 8000, 1),
        ("three.wav", 3000, 24000, 1),
    ]
    assert all(c.path == str(recordings / c.name) for c in got)


def test_unusable_files_are_left_out_counted_and_named(recordings, caplog):
    (recordings / "bad.wav").write_text("words")
    soundfile.write(str(recordings / "none.wav"), np.zeros(0), 16000)
    with caplog.at_level(logging.WARNING):
        got = corpus.index(recordings)
    assert len(got) == 3
    (record,) = caplog.records
    assert all(part in record.getMessage() for part in ("2 of 5", "bad.wav", "none.wav"))


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "bad.wav").write_text("words")
    with pytest.raises(UserError, match=r"none of its 1 .*bad\.wav"):
        corpus.index(tmp_path)


def test_split_is_disjoint_complete_near_the_fraction_and_stable():
    train, valid = corpus.split(clips(1000), 0.1)
    assert set(train) | set(valid) == set(clips(1000))
    assert len(train) + len(valid) == 1000
    assert 70 < len(valid) < 130
    more_train, more_valid = corpus.split(clips(1500), 0.1)
    assert set(train) <= set(more_train)
    assert set(valid) <= set(more_valid)
    moved = tuple(c._replace(path="/elsewhere" + c.path) for c in clips(1000))
    assert {c.name for c in corpus.split(moved, 0.1)[1]} == {c.name for c in valid}


@pytest.mark.parametrize("fraction", [1e-9, 0.05, 1 - 1e-9])
def test_split_leaves_one_on_each_side(fraction):
    train, valid = corpus.split(clips(2), fraction)
    assert len(train) == len(valid) == 1


def test_split_refuses_one_file_and_silly_fractions():
    with pytest.raises(UserError, match=r"--config\.data\.valid"):
        corpus.split(clips(1), 0.1)
    with pytest.raises(UserError, match="valid_fraction"):
        corpus.split(clips(3), 1.0)


def test_corpora_as_the_config_says(recordings, tmp_path, monkeypatch):
    def names(pair):
        return tuple([c.name for c in part] for part in pair)

    train, valid = corpus.corpora(DataConfig(train=str(recordings)))
    assert len(train) == 2
    assert len(valid) == 1
    both = corpus.corpora(DataConfig(train=str(recordings), valid=str(recordings / "a")))
    assert names(both) == (["a/b/two.flac", "a/one.wav", "three.wav"], ["b/two.flac", "one.wav"])
    made = tmp_path / "made"
    for part in ("train", "valid"):
        (made / part).mkdir(parents=True)
        files.write(made / part / f"{part}.wav", np.full(100, 0.1, np.float32), 16000)
    monkeypatch.setattr(corpus.synth, "default_corpus", lambda: made)
    assert names(corpus.corpora(DataConfig())) == (["train.wav"], ["valid.wav"])
    assert names(corpus.corpora(DataConfig(valid=str(recordings / "a" / "b")))) == (
        ["train.wav"],
        ["two.flac"],
    )

"""Systems: lengths, rates and bytes; lengths that are compiled; decoded directories."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile

from codec_jax import Encoded
from codec_jax import codec as codec_module
from codec_jax.errors import UserError
from codec_jax.evaluate import anchors, systems
from tests import tiny


def tone(samples, sample_rate=16000, hertz=300.0):
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(samples) / sample_rate)).astype(np.float32)


@pytest.fixture(scope="module")
def codec():
    return tiny.codec()


@pytest.mark.parametrize("system", [systems.original(), systems.lowpass(3500), systems.lowpass(7000), systems.mu_law()])
@pytest.mark.parametrize(("samples", "sample_rate"), [(1, 16000), (999, 8000), (5000, 44100)])
def test_anchors_keep_length_and_rate(system, samples, sample_rate):
    coded = system.process(tone(samples, sample_rate), sample_rate)
    assert coded.audio.shape == (samples,)
    assert coded.audio.dtype == np.float32
    assert coded.num_bytes == (samples if system.name == "mu_law" else None)


def test_anchors_are_those_of_the_module():
    audio = tone(4000) + tone(4000, hertz=5000)
    np.testing.assert_array_equal(systems.original().process(audio, 16000).audio, audio)
    np.testing.assert_array_equal(systems.mu_law().process(audio, 16000).audio, anchors.mu_law(audio))
    heard = systems.lowpass(3500).process(audio, 16000).audio
    np.testing.assert_array_equal(heard, anchors.lowpass(audio, 16000, 3500))
    assert systems.lowpass(3500).name == "lowpass_3500"


# ---- buckets -------------------------------------------------------------------------------------


@hypothesis.given(st.lists(st.integers(1, 10**7), min_size=1, max_size=200), st.integers(1, 8))
def test_every_length_fits_and_little_is_wasted(lengths, most):
    found = systems.buckets(lengths, most)
    assert len(found) <= most
    assert list(found) == sorted(set(found))
    assert set(found) <= set(lengths)
    worst = (max(lengths) / min(lengths)) ** (1 / most)
    for length in lengths:
        assert min(size for size in found if size >= length) <= length * worst * (1 + 1e-9)


def test_no_lengths_and_one():
    assert systems.buckets([]) == ()
    assert systems.buckets([7, 7]) == (7,)


def test_few_lengths_are_compiled(codec, monkeypatch):
    lengths = [int(n) for n in np.geomspace(3000, 60000, 30)]
    system = systems.codec_systems(codec, "tiny", [(n, 16000) for n in lengths])[0]
    seen: dict[str, set] = {"encode": set(), "decode": set()}

    def encode(cfg, variables, audio, frames, rate):
        seen["encode"].add(audio.shape)
        return np.zeros((1, 1, audio.shape[1] // codec.hop_length), np.int32)

    def decode(cfg, variables, codes, frames, rate):
        seen["decode"].add(codes.shape)
        return np.zeros((1, codes.shape[2] * codec.hop_length, 1), np.float32)

    monkeypatch.setattr(codec._model, "encode", encode)
    monkeypatch.setattr(codec._model, "decode", decode)
    for length in lengths:
        system.process(tone(length), 16000)
    assert 4 < len(seen["encode"]) <= 8
    assert len(seen["decode"]) == len(seen["encode"])
    monkeypatch.setattr(codec_module, "_CHUNK_SECONDS", 1.0)  # the longer ones go through one window, piece by piece
    seen["encode"].clear()
    for length in lengths:
        system.process(tone(length), 16000)
    assert len(seen["encode"]) < 8
    assert max(shape[1] for shape in seen["encode"]) == codec._window().size * codec.hop_length


def test_padding_changes_nothing(codec):
    audio = tone(5000)
    system = systems.codec_systems(codec, "tiny", [(7000, 16000)])[0]
    coded, plain = system.process(audio, 16000), codec.encode(audio)
    np.testing.assert_array_equal(coded.codes, plain.codes[0])
    np.testing.assert_allclose(coded.audio, codec.decode(plain), atol=1e-5)
    assert codec._buckets == ()  # the caller's codec is left alone


# ---- codecs --------------------------------------------------------------------------------------


def test_a_system_per_rate_of_taae(codec):
    found = systems.codec_systems(codec, "tiny")
    assert [system.name for system in found] == ["tiny@train"]
    (system,) = found
    assert (system.family, system.sample_rate) == ("tiny", codec.sample_rate)
    audio = tone(5001, 24000)
    coded, encoded = system.process(audio, 24000), codec.encode(audio, 24000)
    assert coded.audio.shape == audio.shape
    assert coded.num_bytes == len(encoded.to_bytes())
    assert system.nominal_bps == encoded.bitrate
    assert system.codebook_sizes == encoded.codebook_sizes
    np.testing.assert_array_equal(coded.codes, encoded.codes[0])
    assert Encoded.from_bytes(encoded.to_bytes()) == encoded


def test_presets_are_rates_where_they_fit():
    model = tiny.changed(tiny.MODEL, latent_dim=6)
    cfg = tiny.changed(
        tiny.CONFIG, model=model, bottleneck=tiny.changed(tiny.CONFIG.bottleneck, levels=(5,) * 6, train_levels=())
    )
    found = systems.codec_systems(tiny.codec(cfg), "six")
    assert [s.name for s in found] == ["six@train", "six@1x46656_400bps", "six@2x15625_700bps", "six@4x729_1000bps"]
    coded = found[2].process(tone(3000), 16000)
    assert coded.codes.shape[0] == len(found[2].codebook_sizes) == 2
    assert found[1].nominal_bps < found[2].nominal_bps < found[3].nominal_bps


def test_streams_are_rates():
    from codec_jax.codec import Codec
    from tests import tiny_esc
    from tests.models.test_esc import CONFIG

    codec = Codec("esc", CONFIG, tiny_esc.variables())
    found = systems.codec_systems(codec, "esc", [(4000, 16000), (6000, 16000)])
    streams = CONFIG.bottleneck.num_streams
    assert [system.name for system in found] == [f"esc@{n}streams" for n in range(1, streams + 1)]
    first, last = (system.process(tone(6000), 16000) for system in (found[0], found[-1]))
    assert first.num_bytes < last.num_bytes
    np.testing.assert_array_equal(first.codes, last.codes[: len(first.codes)])


def test_a_codec_without_bottleneck_is_heard_unquantised():
    cfg = tiny.changed(tiny.CONFIG, bottleneck=tiny.changed(tiny.CONFIG.bottleneck, kind="none"))
    codec = tiny.codec(cfg)
    (system,) = systems.codec_systems(codec, "open", [(9000, 16000), (10000, 16000)])
    audio = tone(9001)
    coded = system.process(audio, 16000)
    assert (coded.num_bytes, coded.codes, system.nominal_bps) == (None, None, None)
    assert coded.audio.shape == audio.shape
    gain = np.float32(systems.loudness_gain(audio[None], 16000))
    np.testing.assert_allclose(coded.audio, codec.unquantised(gain * audio)[0, :9001] / gain, atol=1e-4)


# ---- directories ---------------------------------------------------------------------------------


def test_a_decoded_directory(tmp_path):
    directory = tmp_path / "theirs"
    (directory / "sub").mkdir(parents=True)
    soundfile.write(directory / "sub" / "a.wav", np.stack([tone(8000, 8000)] * 2, 1), 8000)
    soundfile.write(directory / "long.flac", tone(9000), 16000)
    system = systems.decoded_directory(directory)
    assert system.name == "theirs"
    heard = system.process(tone(16100), 16000, "a").audio
    np.testing.assert_allclose(heard[500:15500], tone(16000)[500:15500], atol=2e-3)
    assert not heard[16000:].any()
    assert system.process(tone(16100), 16000, "a").note == ""
    assert system.process(tone(17600), 16000, "a").note == "0.10 s shorter than the original: filled with silence"
    assert system.process(tone(8000), 16000, "long").note == "0.06 s longer than the original: cut"
    assert len(system.process(tone(8500), 16000, "long").audio) == 8500
    with pytest.raises(UserError, match="theirs: holds no audio file named b"):
        system.process(tone(100), 16000, "b")
    soundfile.write(directory / "a.wav", tone(100), 16000)
    with pytest.raises(UserError, match="has the same name"):
        systems.decoded_directory(directory)
    with pytest.raises(UserError, match="no such directory"):
        systems.decoded_directory(tmp_path / "nowhere")


def test_fitted_cuts_and_fills():
    assert systems.fitted(np.ones(5), 3).tolist() == [1, 1, 1]
    assert systems.fitted(np.ones(2), 3).tolist() == [1, 1, 0]
    assert math.isclose(systems.fitted(np.zeros(0), 2).sum(), 0)

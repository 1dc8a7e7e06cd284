"""The codec that users see, of the ESC family: any length, streams and their prefixes, batches, long files, files."""

import dataclasses

import numpy as np
import pytest

import codec_jax
from codec_jax import codec as codec_module
from codec_jax.codec import Codec
from codec_jax.errors import UserError
from codec_jax.models import esc
from tests.models.test_esc import ABLATIONS, CONFIG, noise, variables_of


@pytest.fixture(scope="module", params=["csvq+transformer", pytest.param("rvq+convolution", marks=pytest.mark.slow)])
def codec(request):
    cfg = ABLATIONS[request.param]
    return Codec("esc", cfg, variables_of(cfg))


@pytest.fixture(scope="module")
def swin():
    return Codec("esc", CONFIG, variables_of(CONFIG))


def test_lengths_come_back(swin):
    for length in (1, 31, 32, 95, 96, 97, 128, 2000, 2144):
        wav = swin.decode(swin.encode(noise(length)))
        assert wav.shape == (length,)
        assert np.isfinite(wav).all()
    assert np.isfinite(swin.decode(swin.encode(np.zeros(500, np.float32)))).all()


def test_other_rates_and_channels(swin):
    for rate, shape in ((8000, (400,)), (44_100, (2, 2, 3001))):
        encoded = swin.encode(noise(*shape), rate)
        assert swin.decode(encoded).shape == (*shape[:-2], 1, round(shape[-1] * 16_000 / rate))[-len(shape) :]
        assert encoded.gain.tolist() == [1.0] * len(encoded.gain)  # ESC is not normalised unless asked for
    assert swin.encode(noise(16_000), normalize=True).gain[0] != 1


def test_streams_are_prefixes(codec):
    audio = noise(2, 1500)
    whole = codec.encode(audio)
    assert whole.rate.stages == (3,)
    for streams in (1, 2, 3):
        few = codec.encode(audio, num_streams=streams)
        np.testing.assert_array_equal(few.codes, whole.codes[:, : few.num_codebooks])
        assert few.bitrate == pytest.approx(whole.bitrate * streams / 3)
        assert whole.prefix(streams) == few
        np.testing.assert_array_equal(codec.decode(whole.prefix(streams)), codec.decode(few))
    for streams in (0, 4):
        with pytest.raises(UserError, match="1 to 3 streams"):
            codec.encode(audio, num_streams=streams)


def test_a_file_cut_after_a_stream_is_a_file_of_fewer_streams(swin):
    whole = swin.encode(noise(3, 9000), lengths=[9000, 1, 5000])
    data = whole.to_bytes()
    assert codec_jax.Encoded.from_bytes(data) == whole
    for streams in (1, 2):
        cut = data[: whole.stream_ends()[streams - 1]]
        assert codec_jax.Encoded.from_bytes(cut) == whole.prefix(streams)
    for position in (whole.stream_ends()[0] - 1, whole.stream_ends()[0] + 3, len(data) - 1):
        with pytest.raises(UserError, match="cut short"):
            codec_jax.Encoded.from_bytes(data[:position])


def test_files_measure_their_nominal_rate():
    """1.5 kbit/s a stream in the published sizes, and the container."""
    cfg, frames = esc.Config(), 500  # ten seconds of code frames
    samples = np.array([cfg.hop_length * frames - cfg.model.stft_hop_length])
    overhead = []
    for streams in range(1, 7):
        rate = esc.rate(cfg, None, streams)
        sizes = esc.codebook_sizes(cfg, rate)
        codes = np.random.default_rng(0).integers(0, sizes[0], (1, len(sizes), frames))
        encoded = codec_jax.Encoded(
            "esc", rate, codes, samples, 16_000, np.ones(1), 16_000, cfg.hop_length, sizes, 1, np.array([frames])
        )
        assert encoded.bitrate == 1500 * streams
        overhead.append(len(encoded.to_bytes()) - 15_000 * streams // 8)
    assert overhead == [32 + 22 * streams for streams in range(1, 7)]  # a header, and an entry for every layer


def test_neighbours_change_nothing(codec):
    """In a batch, with junk behind a clip's end, as alone."""
    audio, lengths = noise(3, 3000), [3000, 700, 1555]
    together = codec.encode(audio, lengths=lengths)
    wavs = codec.decode(together)
    for i, length in enumerate(lengths):
        alone = codec.encode(audio[i, :length])
        frames = alone.codes.shape[2]
        np.testing.assert_array_equal(together.codes[i, :, :frames], alone.codes[0])
        np.testing.assert_allclose(wavs[i, :length], codec.decode(alone), atol=1e-5)
        assert not wavs[i, length:].any()


@pytest.mark.parametrize("seconds", [9.0, 9.007, 11.3])
def test_long_files_in_chunks_are_coded_as_whole(codec, monkeypatch, seconds):
    """The same codes, wherever the chunks are cut; the windows stay where they were."""
    audio = noise(round(seconds * 16_000))
    with monkeypatch.context() as patched:
        patched.setattr(codec_module, "_CHUNK_SECONDS", 1000.0)
        whole = codec.encode(audio)
        wav = codec.decode(whole)
    calls = []
    monkeypatch.setattr(codec_module, "_CHUNK_SECONDS", 0.1)
    encode = codec._model.encode
    monkeypatch.setattr(codec, "_model", _Watched(codec._model, lambda *a: calls.append(1) or encode(*a)))
    chunked = codec.encode(audio)
    assert len(calls) > 2
    np.testing.assert_array_equal(chunked.codes, whole.codes)
    np.testing.assert_allclose(codec.decode(whole), wav, atol=1e-5)


class _Watched:
    """A family with another `encode`."""

    def __init__(self, family, encode):
        self._family, self.encode = family, encode

    def __getattr__(self, name):
        return getattr(self._family, name)


def test_saved_and_loaded(codec, tmp_path):
    """Running statistics too."""
    codec.save(tmp_path / "model")
    again = codec_jax.load(tmp_path / "model")
    assert (again.family, again.config) == ("esc", codec.config)
    audio = noise(1000)
    assert again.encode(audio) == codec.encode(audio)


def test_what_other_codecs_say_is_refused(swin):
    larger = dataclasses.replace(CONFIG, bottleneck=dataclasses.replace(CONFIG.bottleneck, codebook_size=32))
    other = Codec("esc", larger, variables_of(larger))
    with pytest.raises(UserError, match="codebooks of 32 words"):
        swin.decode(other.encode(noise(500)))
    with pytest.raises(UserError, match="num_streams"):
        swin.encode(noise(500), bottleneck="2x15625_700bps")
    with pytest.raises(UserError, match="TAAE"):
        swin.latents(noise(500))

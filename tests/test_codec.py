"""Codec: shapes, lengths, rates, channels, loudness, batches, chunks, saving."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import codec_jax
from codec_jax import codec as codec_module
from codec_jax.errors import UserError
from codec_jax.models import taae
from tests import tiny


@pytest.fixture(scope="module")
def codec():
    return tiny.codec()


def speechlike(samples, seed=0, level=0.1):
    rng = np.random.default_rng(seed)
    envelope = np.interp(np.arange(samples), 400 * np.arange(samples // 400 + 2), rng.random(samples // 400 + 2))
    return (level * envelope * rng.standard_normal(samples)).astype(np.float32)


def margin(latents, levels):
    """Distance in level units of every latent to its nearest decision boundary, least over dimensions."""
    levels = np.asarray(levels)
    u = (np.tanh(latents.astype(np.float64)) + 1) * (levels - 1) / 2
    return np.abs(u - np.floor(u) - 0.5).min(-1)


@pytest.mark.parametrize("samples", [1, 39, 40, 41, 1601])
def test_lengths_come_back_exactly(codec, samples):
    audio = speechlike(samples)
    encoded = codec.encode(audio)
    assert encoded.codes.shape == (1, 1, -(-samples // 40))
    assert encoded.codes.dtype == np.int32
    decoded = codec.decode(encoded)
    assert decoded.shape == (samples,)
    assert decoded.dtype == np.float32


def test_ranks(codec):
    audio = speechlike(400)
    for array, shape in (
        (audio, (400,)),
        (audio[None], (1, 400)),
        (np.stack([[audio, audio]] * 2), (2, 1, 400)),
    ):
        encoded = codec.encode(array)
        assert encoded.codes.ndim == 3
        assert codec.decode(encoded).shape == shape
    np.testing.assert_array_equal(codec.encode(audio).codes, codec.encode(jax.numpy.asarray(audio)).codes)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_sample_rates(codec, rate):
    samples = 1003
    encoded = codec.encode(speechlike(samples), rate)
    assert encoded.sample_rate == rate
    assert list(encoded.lengths) == [samples]
    assert codec.decode(encoded).shape == (int(samples * 16_000 / rate + 0.5),)


def test_channels_are_mixed_down(codec):
    left, right = speechlike(400, 1), speechlike(400, 2)
    stereo, mono = codec.encode(np.stack([left, right])[None]), codec.encode(((left + right) / 2)[None, None])
    np.testing.assert_array_equal(stereo.codes, mono.codes)


def test_loudness_is_normalised_and_undone(codec):
    audio = speechlike(16_000, level=0.1)
    for scale in (0.25, 1.0):
        encoded = codec.encode(audio * scale)
        assert encoded.gain[0] != 1
    quiet, loud = codec.encode(audio * 0.25), codec.encode(audio)
    np.testing.assert_allclose(quiet.gain / loud.gain, 4, rtol=1e-4)
    same = (quiet.codes == loud.codes).mean()
    assert same > 0.99
    np.testing.assert_allclose(np.std(codec.decode(loud)) / np.std(codec.decode(quiet)), 4, rtol=0.02)
    plain = codec.encode(audio, normalize=False)
    assert plain.gain[0] == 1


@pytest.mark.parametrize("audio", [np.zeros(8000, np.float32), np.zeros(1, np.float32), np.full(100, 1e-9, np.float32)])
def test_silence_is_never_nan(codec, audio):
    encoded = codec.encode(audio)
    assert encoded.gain[0] == 1
    assert np.isfinite(codec.decode(encoded)).all()


def test_posthoc_rates(codec):
    encoded = codec.encode(speechlike(2000), bottleneck=tiny.STAGES)
    assert encoded.codes.shape == (1, 2, 50)
    assert encoded.bitrate == 400 * 14
    assert codec.decode(encoded).shape == (2000,)
    again = codec_jax.Encoded.from_bytes(encoded.to_bytes())
    np.testing.assert_array_equal(codec.decode(again), codec.decode(encoded))


def test_batch_equals_single(codec):
    """Eight clips of different lengths together and alone: equal codes wherever the latent is clear of a boundary."""
    lengths = [1, 37, 400, 1234, 2000, 3999, 4000, 6400]
    clips = [speechlike(n, seed) for seed, n in enumerate(lengths)]
    batch = np.stack([np.pad(clip, (0, max(lengths) - len(clip)), constant_values=0.7) for clip in clips])
    together = codec.encode(batch, lengths=lengths, normalize=False)
    unclear = 0
    for i, clip in enumerate(clips):
        alone = codec.encode(clip, normalize=False)
        clear = margin(codec.latents(clip)[0], tiny.CONFIG.bottleneck.levels) > 1e-4
        unclear += (~clear).sum()
        count = alone.codes.shape[2]
        np.testing.assert_array_equal(together.codes[i, 0, :count][clear], alone.codes[0, 0][clear])
        assert not together.codes[i, 0, count:].any()
    assert unclear <= 5
    decoded = codec.decode(together)
    for i, clip in enumerate(clips):
        alone = codec.decode(codec.encode(clip, normalize=False))
        np.testing.assert_allclose(decoded[i, : len(clip)], alone, atol=2e-5)
        assert not decoded[i, len(clip) :].any()


def test_long_audio_in_chunks_equals_the_whole(monkeypatch):
    """With a window of a fraction of a second, codes and audio are those of one pass over everything."""
    codec = tiny.codec()
    audio = speechlike(16_000, 7)
    whole = codec.encode(audio, normalize=False)
    whole_audio = codec.decode(whole)
    monkeypatch.setattr(codec_module, "_CHUNK_SECONDS", 0.05)
    window = codec._window()
    assert window.size < whole.codes.shape[2] / 4
    chunked = codec.encode(audio, normalize=False)
    clear = margin(codec.latents(audio)[0], tiny.CONFIG.bottleneck.levels) > 1e-4
    assert (~clear).sum() <= 5
    np.testing.assert_array_equal(chunked.codes[0, 0][clear], whole.codes[0, 0][clear])
    np.testing.assert_allclose(codec.decode(whole), whole_audio, atol=2e-5)


@pytest.mark.parametrize(
    "switches", [{}, {"use_snake": True, "use_dilated_conv": True, "conformer": True, "strides": (2, 3)}]
)
def test_receptive_field_is_an_upper_bound(switches):
    """Moving one frame of audio moves no latent beyond the receptive field, and likewise for decoding."""
    cfg = tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, **switches))
    variables = tiny.variables(cfg)
    left, right = taae.geometry(cfg).receptive_field
    count, hop = 2 * (left + right) + 3, cfg.model.hop_length
    middle = count // 2
    audio = np.asarray(jax.random.normal(jax.random.key(0), (1, count * hop, 1)))
    moved = audio.copy()
    moved[:, middle * hop : (middle + 1) * hop] += 1
    analyse = jax.jit(taae.analyse, static_argnums=0)
    change = np.abs(np.asarray(analyse(cfg, variables, moved) - analyse(cfg, variables, audio))).max((0, 2))
    seen = np.flatnonzero(change)
    assert len(seen) > 3
    assert seen.min() >= middle - right
    assert seen.max() <= middle + left
    latents = np.asarray(jax.random.normal(jax.random.key(1), (1, count, 3)))
    moved = latents.copy()
    moved[:, middle] += 1
    synthesise = jax.jit(taae.synthesise, static_argnums=0)
    change = np.abs(np.asarray(synthesise(cfg, variables, moved) - synthesise(cfg, variables, latents))).max((0, 2))
    seen = np.flatnonzero(change) // hop
    assert seen.min() >= middle - right
    assert seen.max() <= middle + left


def test_latents_of_a_padded_batch(codec):
    """What lies behind an item's end changes nothing, in its last frame neither."""
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 411)).astype(np.float32)
    found = codec.latents(audio, lengths=[411, 203])
    silent = audio.copy()
    silent[1, 203:] = 0.0
    np.testing.assert_array_equal(found, codec.latents(silent, lengths=[411, 203]))
    np.testing.assert_allclose(found[1, :6], codec.latents(audio[1:, :203])[0], atol=1e-5)


def test_latents_and_back(codec):
    audio = speechlike(410)
    latents = codec.latents(audio)
    assert latents.shape == (1, 11, 3)
    assert codec.decode_latents(latents).shape == (1, 440)


def test_save_and_load(codec, tmp_path):
    codec.save(tmp_path / "model")
    loaded = codec_jax.load(tmp_path / "model")
    assert loaded.config == codec.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, codec.params)
    audio = speechlike(900)
    np.testing.assert_array_equal(loaded.encode(audio).codes, codec.encode(audio).codes)
    assert not list((tmp_path / "model").glob("*.partial"))


@settings(deadline=None, max_examples=15)
@given(st.binary(min_size=0, max_size=80))
def test_foreign_bytes_are_one_sentence(data):
    with pytest.raises(UserError):
        codec_jax.Encoded.from_bytes(data)


@pytest.mark.parametrize(
    ("audio", "match"),
    [
        (np.zeros((2, 2, 2, 2), np.float32), "shape"),
        (np.zeros(10, np.int16), "int16"),
        (np.zeros((1, 0), np.float32), "no samples"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
    ],
)
def test_bad_audio(codec, audio, match):
    with pytest.raises(UserError, match=match):
        codec.encode(audio)


def test_bad_arguments(codec):
    audio = speechlike(400)
    with pytest.raises(UserError, match="lengths"):
        codec.encode(audio, lengths=[401])
    with pytest.raises(UserError, match="dimensions"):
        codec.encode(audio, bottleneck="1x46656_400bps")
    with pytest.raises(UserError, match="ESC"):
        codec.encode(audio, num_streams=2)


def test_tokens_of_another_model_are_refused(codec):
    other = tiny.codec(tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, patch_size=40)))
    with pytest.raises(UserError, match="samples a frame"):
        codec.decode(other.encode(speechlike(400)))
    finer = tiny.codec(tiny.changed(tiny.CONFIG, bottleneck=taae.BottleneckConfig(levels=(9,) * 3)))
    with pytest.raises(UserError, match="training bottleneck"):
        codec.decode(finer.encode(speechlike(400)))


def test_load_says_what_is_missing(tmp_path, codec):
    with pytest.raises(UserError, match="there is no model"):
        codec_jax.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no model"):
        codec_jax.load(tmp_path / "empty")
    codec.save(tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        codec_jax.load(tmp_path / "weightless")
    codec.save(tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="safetensors"):
        codec_jax.load(tmp_path / "broken")

"""Codec and command line with every kind of bottleneck: round trips, prefixes, files that were cut, refusals."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import soundfile

import codec_jax
from codec_jax import cli, export, sources
from codec_jax.convert import taae_config
from codec_jax.errors import UserError
from codec_jax.models import taae
from codec_jax.train import validation
from tests import tiny
from tests.models.test_bottlenecks import ALL, NONE, RVQ
from tests.test_codec import speechlike

LAYERED = ("residual_vq", "scalable")


@pytest.fixture(scope="module")
def codecs():
    return {kind: tiny.codec(taae.Config(tiny.MODEL, bottleneck)) for kind, bottleneck in ALL.items()}


@pytest.mark.parametrize("kind", LAYERED)
def test_bytes_and_prefixes(codecs, kind):
    """The first n codebooks, asked for, kept, or left by a cut in the file, are one and the same."""
    codec, audio = codecs[kind], speechlike(2000)
    encoded = codec.encode(audio)
    count = ALL[kind].num_codebooks
    assert encoded.codes.shape == (1, count, 50)
    again = codec_jax.Encoded.from_bytes(encoded.to_bytes())
    assert again == encoded
    np.testing.assert_array_equal(codec.decode(again), codec.decode(encoded))
    heard = []
    for n, end in enumerate(encoded.stream_ends(), 1):
        fewer = codec.encode(audio, num_streams=n)
        assert encoded.prefix(n) == fewer
        assert codec_jax.Encoded.from_bytes(encoded.to_bytes()[:end]) == fewer
        assert fewer.bitrate == encoded.bitrate * n / count
        heard.append(codec.decode(fewer))
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.pairwise(heard))
    np.testing.assert_array_equal(heard[-1], codec.decode(encoded))


@pytest.mark.parametrize("kind", LAYERED)
def test_a_padded_batch_is_its_clips(codecs, kind):
    codec, lengths = codecs[kind], [400, 1234, 2000]
    clips = [speechlike(n, seed) for seed, n in enumerate(lengths)]
    batch = np.stack([np.pad(clip, (0, 2000 - len(clip)), constant_values=0.7) for clip in clips])
    together = codec.encode(batch, lengths=lengths, normalize=False)
    same = [
        (together.codes[i, :, : -(-n // 40)] == codec.encode(clips[i], normalize=False).codes[0]).mean()
        for i, n in enumerate(lengths)
    ]
    assert min(same) > 0.98  # a word on a boundary may flip, and what is left over with it


@pytest.mark.parametrize("kind", ALL)
def test_save_and_load(codecs, kind, tmp_path):
    codec = codecs[kind]
    codec.save(tmp_path / "model")
    loaded = codec_jax.load(tmp_path / "model")
    assert loaded.config == codec.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, codec.params)
    audio = speechlike(800)
    np.testing.assert_array_equal(loaded.unquantised(audio), codec.unquantised(audio))


def test_weights_of_another_kind_do_not_load(codecs, tmp_path):
    codecs["residual_vq"].save(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"residual_vq"', '"none"'))
    with pytest.raises(UserError, match="bottleneck"):
        codec_jax.load(tmp_path / "model")


def test_without_bottleneck(codecs):
    codec, audio = codecs["none"], speechlike(1600)
    assert not codec.has_tokens
    with pytest.raises(UserError, match="a codec without bottleneck has no tokens: give post-hoc FSQ"):
        codec.encode(audio)
    by_hand = codec.decode_latents(np.tanh(codec.latents(audio)))
    np.testing.assert_allclose(codec.unquantised(audio), by_hand, atol=1e-5)
    coarse, fine = (codec.decode(codec.encode(audio, bottleneck=[([n] * 3, 1.0)], normalize=False)) for n in (3, 1001))
    assert np.abs(fine - by_hand[0]).max() < 0.1 * np.abs(coarse - by_hand[0]).max()


def test_open_bottleneck_hears_no_padding(codecs):
    codec, clip = codecs["none"], speechlike(900)
    batch = np.stack([np.pad(clip, (0, 700), constant_values=0.7), speechlike(1600, 1)])
    heard = codec.unquantised(batch, lengths=[900, 1600])
    np.testing.assert_allclose(heard[0, :900], codec.unquantised(clip)[0, :900], atol=2e-5)


@pytest.mark.parametrize("kind", ALL)
def test_validation_hears_every_kind(codecs, kind):
    clips = [speechlike(n, seed)[None] for seed, n in enumerate((900, 1600))]
    codec = codecs[kind]
    for clip, heard in zip(clips, validation.reconstruct(codec, clips)):
        assert heard.shape == clip.shape
        if codec.has_tokens:
            alone = codec.decode(codec.encode(clip[0], normalize=False))
        else:
            alone = codec.unquantised(clip[0])[0, : clip.shape[1]]
        assert np.corrcoef(heard[0], alone)[0, 1] > 0.98


def test_tokens_of_another_kind_are_refused(codecs):
    audio = speechlike(400)
    tokens = {kind: codec.encode(audio) for kind, codec in codecs.items() if codec.has_tokens}
    for kind, given, match in (
        ("residual_vq", "fsq", "training bottleneck of another model"),
        ("none", "fsq", "training bottleneck of another model"),
        ("scalable", "fsq", "training bottleneck of another model"),
        ("fsq", "residual_vq", "in streams"),
        ("none", "scalable", "in streams"),
        ("scalable", "residual_vq", "codebooks of 16 words"),
    ):
        with pytest.raises(UserError, match=match):
            codecs[kind].decode(tokens[given])
    posthoc = codecs["fsq"].encode(audio, bottleneck=tiny.STAGES)
    with pytest.raises(UserError, match="of an FSQ"):
        codecs["residual_vq"].decode(posthoc)
    fewer = tiny.codec(taae.Config(tiny.MODEL, dataclasses.replace(RVQ, num_codebooks=2)))
    with pytest.raises(UserError, match="which this model has not"):
        fewer.decode(tokens["residual_vq"])


def test_layered_fsq_codes_are_the_posthoc_ones(codecs):
    audio, codec = speechlike(2000), codecs["scalable"]
    posthoc = codec.encode(audio, bottleneck=tiny.STAGES)
    np.testing.assert_array_equal(codec.encode(audio).codes, posthoc.codes)
    np.testing.assert_array_equal(codec.decode(codec.encode(audio)), codec.decode(posthoc))


# ---- PyTorch, and the command line -------------------------------------------------------------


@pytest.mark.parametrize("target", ["upstream", "twin"])
@pytest.mark.parametrize("kind", ["residual_vq", "scalable", "none"])
def test_pytorch_knows_one_fsq(codecs, kind, target, tmp_path):
    model = tiny.changed(tiny.MODEL, head_dim=128)
    with pytest.raises(UserError, match="has no counterpart in PyTorch") as error:
        taae_config.write(taae.Config(model, ALL[kind]), {}, target)
    assert "\n" not in str(error.value)
    codecs[kind].save(tmp_path / "model")
    with pytest.raises(UserError, match="has no counterpart in PyTorch"):
        export.to_torch(sources.open_model(tmp_path / "model"), tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


def test_command_line(codecs, tmp_path, capsys):
    for kind, codec in codecs.items():
        codec.save(tmp_path / kind)
    soundfile.write(tmp_path / "talk.wav", speechlike(4000), 16_000)

    def run(*arguments):
        status = cli.main([str(a) for a in arguments])
        return status, capsys.readouterr()

    talk, tokens = tmp_path / "talk.wav", tmp_path / "talk.cjx"
    assert run("encode", talk, "-o", tokens, "--model", tmp_path / "residual_vq", "--num-streams", 2)[0] == 0
    assert "2streams" in run("info", tokens)[1].out
    assert run("decode", tokens, "-o", tmp_path / "back.wav", "--model", tmp_path / "residual_vq")[0] == 0
    assert run("reconstruct", talk, "-o", tmp_path / "out", "--model", tmp_path / "scalable")[0] == 0
    for verb in ("encode", "reconstruct"):
        status, told = run(verb, talk, "-o", tmp_path / f"none-{verb}", "--model", tmp_path / "none")
        assert status == 1
        assert "a codec without bottleneck has no tokens" in told.err
        assert "Traceback" not in told.err
    assert "none: a codec without bottleneck" in run("info", tmp_path / "none")[1].out
    assert "(num_streams=3)" in run("info", tmp_path / "residual_vq")[1].out
    assert NONE.kind in run("info", tmp_path / "none")[1].out

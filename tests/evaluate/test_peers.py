"""Peers: names, reasons, and of those installed here that output is aligned and bytes are what was sent."""

import shutil
import stat

import librosa
import numpy as np
import pytest
import soundfile
from scipy import signal

from codec_jax.errors import UserError
from codec_jax.evaluate import peers
from codec_jax.evaluate.peers import payload, pretrained, programs

RATE = 16000


@pytest.fixture(scope="module")
def clips(speech):
    """Of 3.3 s and 1.3 s, the latter short enough for a single page of Ogg Speex at any rate."""
    audio = soundfile.read(speech[0], dtype="float32")[0]
    return audio, audio[8000:29000]


def needs(*commands):
    for command in commands:
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")


def waveform_lag(reference, estimate):
    """Samples by which the estimate is late."""
    found = np.abs(signal.correlate(estimate, reference, method="fft"))
    return int(found.argmax()) - (len(reference) - 1)


def spectral_lag(reference, estimate):
    """The same in ms, for codecs that keep no phase: where log mel spectrograms correlate best."""
    filters = librosa.filters.mel(sr=RATE, n_fft=512, n_mels=20, fmax=3800)
    a, b = (np.log10(filters @ np.abs(librosa.stft(x, n_fft=512, hop_length=16)) + 1e-3) for x in (reference, estimate))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    count = a.shape[1] - 80
    scores = [(a[:, 40 : 40 + count] * b[:, 40 + lag : 40 + lag + count]).sum() for lag in range(-40, 41)]
    return int(np.argmax(scores)) - 40


def check(system, clips, lag, most):
    for clip in clips:
        coded = system.process(clip, RATE)
        assert coded.audio.shape == clip.shape
        assert abs(lag(clip, coded.audio)) <= most
        spent = 8 * coded.num_bytes / (len(clip) / RATE)
        assert 0.6 * system.nominal_bps < spent < 1.6 * system.nominal_bps, spent
    assert system.process(clips[0][:1], RATE).audio.shape == (1,)  # one sample
    assert system.process(np.zeros(9001, np.float32), 22050).audio.shape == (9001,)  # silence, at another rate


@pytest.mark.parametrize("kbps", [6, 16])
def test_opus_tools(clips, kbps):
    needs("opusenc", "opusdec")
    check(peers.find([f"opus@{kbps}"])[0][0], clips, waveform_lag, 2)


@pytest.mark.parametrize("backend", ["ffmpeg", "av"])
def test_opus_elsewhere(clips, backend, monkeypatch):
    if backend == "ffmpeg":
        needs("ffmpeg")
    else:
        pytest.importorskip("av")
    which = shutil.which
    there = {"ffmpeg"} if backend == "ffmpeg" else set()
    monkeypatch.setattr(programs.shutil, "which", lambda name: which(name) if name in there else None)
    check(programs.opus(12.0), clips, waveform_lag, 5)  # their high-pass leads a little


@pytest.mark.parametrize("kbps", [3.95, 23.8])
def test_speex(clips, kbps):
    needs("speexenc", "speexdec")
    lag, most = (spectral_lag, 3) if kbps == 3.95 else (waveform_lag, 3)
    check(peers.find([f"speex@{kbps}"])[0][0], clips, lag, most)


@pytest.mark.parametrize("kbps", [0.7, 1.6, 3.2])
def test_codec2(clips, kbps):
    needs("c2enc", "c2dec")
    (system,) = peers.find([f"codec2@{kbps}"])[0]
    check(system, clips, spectral_lag, 2)
    spent = 8 * system.process(np.tile(clips[0], 5), RATE).num_bytes / (5 * len(clips[0]) / RATE)
    assert spent == pytest.approx(system.nominal_bps, rel=0.01)


def test_amrwb(clips):
    needs("ffmpeg")
    found, missing = peers.find(["amrwb@12.65"])
    if missing:
        pytest.skip(missing["amrwb@12.65"])
    check(found[0], clips, waveform_lag, 2)


# ---- names and reasons ---------------------------------------------------------------------------


def test_names(monkeypatch, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16000)
    monkeypatch.setitem(
        peers.PEERS, "opus", peers.Peer((6, 9), lambda kbps: programs._system("opus", "Opus", kbps, 48000, print))
    )
    names = ["opus", "opus@9", "lowpass@3500", "lowpass", "mu_law", "original", f"dir:{tmp_path}"]
    found, missing = peers.find(names)
    wanted = ["opus@6", "opus@9", "lowpass_3500", "lowpass_7000", "mu_law", "original", tmp_path.name]
    assert [system.name for system in found] == wanted
    assert not missing
    assert found[0].nominal_bps == 6000


@pytest.mark.parametrize("name", ["opsu", "opus@", "opus@x", "opus@-6", "opus@0", "lowpass@3.5k", "original@2", ""])
def test_unknown_names(name):
    with pytest.raises(UserError, match=r"no system .*choose from .*opus@6 or opus.*dir:PATH"):
        peers.find([name])


def test_two_of_one_name_are_an_error(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "theirs").mkdir(parents=True)
        soundfile.write(tmp_path / parent / "theirs" / "x.wav", np.zeros(100), RATE)
    both = [f"dir:{tmp_path / parent / 'theirs'}" for parent in ("a", "b")]
    assert len(peers.find(both[:1])[0]) == 1
    with pytest.raises(UserError, match="another system called theirs"):
        peers.find(both)


@pytest.mark.parametrize(
    ("name", "reason"), [("codec2@1", "choose from 0.7"), ("opus@1", "6 to 256"), ("speex@1", "3.95")]
)
def test_unknown_rates(name, reason):
    with pytest.raises(UserError, match=reason):
        peers.find([name])


def test_missing_programs_are_reasons(monkeypatch):
    monkeypatch.setattr(programs.shutil, "which", lambda name: None)
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    found, missing = peers.find(["opus@6", "codec2", "speex", "amrwb", "encodec", "mu_law"])
    assert [system.name for system in found] == ["mu_law"]
    assert list(missing) == ["opus@6", "codec2", "speex", "amrwb", "encodec"]
    assert missing["codec2"] == "codec2 needs c2enc and c2dec on the path (package codec2 of most systems)"
    assert "av" in missing["opus@6"]


def test_weights_that_cannot_be_loaded_are_a_reason(monkeypatch):
    transformers = pytest.importorskip("transformers")

    def refuse(hub):
        raise OSError("no network\nand more")

    pretrained._model.cache_clear()
    monkeypatch.setattr(transformers.MimiModel, "from_pretrained", refuse)
    assert peers.find(["mimi@1.1"]) == ([], {"mimi@1.1": "the weights kyutai/mimi cannot be loaded (no network)"})


def test_a_program_that_fails_is_named(monkeypatch, tmp_path):
    for name in ("opusenc", "opusdec"):
        (tmp_path / name).write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (system,) = peers.find(["opus@6"])[0]
    with pytest.raises(UserError, match=r"opusenc failed \(out of luck\)"):
        system.process(np.zeros(1000, np.float32), RATE)


# ---- pretrained models, here of random weights ------------------------------------------------------


def test_encodec():
    transformers = pytest.importorskip("transformers")
    config = transformers.EncodecConfig(num_filters=4, num_lstm_layers=1, hidden_size=8, codebook_dim=8)
    check_model(pretrained.encodec_of, transformers.EncodecModel(config), 3.0, 4)


def test_dac():
    transformers = pytest.importorskip("transformers")
    config = transformers.DacConfig(
        encoder_hidden_size=4, decoder_hidden_size=64, downsampling_ratios=[2, 4, 5, 8], n_codebooks=4, hidden_size=64
    )
    check_model(pretrained.dac_of, transformers.DacModel(config), 1.0, 2)


def test_mimi():
    transformers = pytest.importorskip("transformers")
    config = transformers.MimiConfig(
        num_filters=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        codebook_size=2048,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=8,
        upsample_groups=16,
    )
    check_model(pretrained.mimi_of, transformers.MimiModel(config), 0.55, 4)


def check_model(build, model, kbps, codebooks):
    system = build(model.eval(), kbps)
    audio = np.random.default_rng(0).normal(0, 0.1, 20001).astype(np.float32)
    coded = system.process(audio, RATE)
    assert coded.audio.shape == audio.shape
    assert len(coded.codes) == codebooks == len(system.codebook_sizes)
    assert coded.codes.max() < system.codebook_sizes[0]
    assert 8 * coded.num_bytes / (20001 / RATE) == pytest.approx(system.nominal_bps, rel=0.05)
    with pytest.raises(UserError, match="no rate of"):
        build(model, 0.3)


# ---- containers ----------------------------------------------------------------------------------


def page(*lacing, serial=1):
    return b"OggS" + bytes(22) + bytes([len(lacing), *lacing]) + bytes(sum(lacing))


def test_ogg_packets():
    """Two headers, the second over two pages; then packets, one of 255 + 45 bytes across a page."""
    data = page(19) + page(255) + page(3) + page(40, 255) + page(45, 0)
    assert payload.ogg_packets(data) == payload.Packets([40, 300, 0], 2)


def test_amr_payload():
    frames = bytes([2 << 3]) + bytes(32) + bytes([9 << 3]) + bytes(5) + bytes([15 << 3])
    assert payload.amr_payload(b"#!AMR-WB\n" + frames) == 37

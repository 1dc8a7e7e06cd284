"""Every verb on good and bad input: exit codes, one sentence, nothing half-written."""

import pathlib

import numpy as np
import pytest
import soundfile

from codec_jax import cli
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    tiny.codec().save(directory)
    return str(directory)


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "in" / "talk.wav"
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.standard_normal(12_345), 16_000)
    return path


def files_under(directory):
    return sorted(str(p.relative_to(directory)) for p in pathlib.Path(directory).rglob("*") if p.is_file())


def fails(capsys, *argv, says):
    """Exit code 1 and one sentence that holds `says`."""
    assert cli.main([str(a) for a in argv]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("codec-jax: ")
    assert "\n" not in error
    assert says in error
    assert "Traceback" not in error


def test_there_and_back(model, wav, tmp_path, capsys):
    assert cli.main(["encode", str(wav), "-o", str(tmp_path / "a.cjx"), "--model", model]) == 0
    assert cli.main(["decode", str(tmp_path / "a.cjx"), "-o", str(tmp_path / "a.flac"), "--model", model]) == 0
    info = soundfile.info(tmp_path / "a.flac")
    assert (info.frames, info.samplerate) == (12_345, 16_000)
    assert cli.main(["info", str(tmp_path / "a.cjx")]) == 0
    assert cli.main(["info", model]) == 0
    shown = capsys.readouterr().out
    assert "400 Hz" in shown
    assert "parameters" in shown
    assert not [name for name in files_under(tmp_path) if "partial" in name]


def test_reconstruct_writes_audio_tokens_and_metrics(model, wav, tmp_path, capsys):
    stereo = wav.with_name("stereo.flac")
    soundfile.write(stereo, np.random.default_rng(1).standard_normal((44_100, 2)) * 0.1, 44_100)
    assert cli.main(["reconstruct", str(wav.parent), "-o", str(tmp_path / "out"), "--model", model]) == 0
    assert files_under(tmp_path / "out") == ["stereo.cjx", "stereo.wav", "talk.cjx", "talk.wav"]
    assert soundfile.info(tmp_path / "out" / "talk.wav").frames == 12_345
    assert soundfile.info(tmp_path / "out" / "stereo.wav").frames == 16_000
    payload = -(-309 * 7 // 8)  # 309 frames of ceil(log2(125)) bits
    assert payload < (tmp_path / "out" / "talk.cjx").stat().st_size <= payload + 64
    shown = capsys.readouterr().out
    for column in ("mel_distance", "stoi", "si_sdr", "file_bps", "mean"):
        assert column in shown


def test_bad_audio(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    nothing = tmp_path / "nothing.wav"
    soundfile.write(nothing, np.zeros(0), 16_000)
    broken = tmp_path / "nan.wav"
    soundfile.write(broken, np.array([0.0, np.nan, 0.1], np.float32), 16_000, subtype="FLOAT")
    out = tmp_path / "out"
    for source in (tmp_path / "missing.wav", tmp_path / "empty", text, nothing, broken):
        for verb in ("encode", "reconstruct"):
            fails(capsys, verb, source, "-o", out, "--model", model, says=source.name)
    assert not files_under(out) if out.exists() else True


def test_bad_tokens(model, wav, tmp_path, capsys):
    good = tmp_path / "good.cjx"
    cli.main(["encode", str(wav), "-o", str(good), "--model", model])
    data = good.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    cases = {"cut.cjx": data[:-9], "flipped.cjx": bytes(flipped), "foreign.cjx": b"RIFF" + data, "empty.cjx": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        fails(capsys, "decode", tmp_path / name, "-o", tmp_path / "x.wav", "--model", model, says=name)
        fails(capsys, "info", tmp_path / name, says=name)
    assert not (tmp_path / "x.wav").exists()
    fails(capsys, "decode", tmp_path / "none.cjx", "-o", tmp_path / "x.wav", "--model", model, says="none.cjx")


def test_bad_models(wav, tmp_path, capsys, model):
    (tmp_path / "weightless").mkdir()
    config = pathlib.Path(model, "config.json").read_text()
    (tmp_path / "weightless" / "config.json").write_text(config)
    out = tmp_path / "a.cjx"
    fails(capsys, "encode", wav, "-o", out, "--model", tmp_path / "weightless", says="model.safetensors")
    fails(capsys, "encode", wav, "-o", out, "--model", tmp_path / "nowhere", says="nowhere")
    (tmp_path / "weightless" / "config.json").write_text(config.replace('"use_snake"', '"use_cobra"'))
    (tmp_path / "weightless" / "model.safetensors").write_bytes(pathlib.Path(model, "model.safetensors").read_bytes())
    fails(capsys, "encode", wav, "-o", out, "--model", tmp_path / "weightless", says="use_cobra")
    (tmp_path / "weightless" / "config.json").write_text(config.replace('"channels": 16', '"channels": 24'))
    fails(capsys, "encode", wav, "-o", out, "--model", tmp_path / "weightless", says="does not fit")
    assert not out.exists()


def test_outputs_are_never_overwritten_unasked(model, wav, tmp_path, capsys):
    out = tmp_path / "a.cjx"
    out.write_text("precious")
    fails(capsys, "encode", wav, "-o", out, "--model", model, says="--force")
    assert out.read_text() == "precious"
    assert cli.main(["encode", str(wav), "-o", str(out), "--model", model, "--force"]) == 0
    assert out.read_bytes() != b"precious"


def test_outputs_that_cannot_be(model, wav, tmp_path, capsys):
    twin = tmp_path / "other" / "talk.flac"
    twin.parent.mkdir()
    soundfile.write(twin, np.zeros(100), 16_000)
    fails(capsys, "encode", wav, twin, "-o", tmp_path / "out", "--model", model, says="talk")
    fails(capsys, "encode", wav, twin, "-o", tmp_path / "one.cjx", "--model", model, says="directory")
    fails(capsys, "encode", wav, "-o", tmp_path / "one.wav", "--model", model, says="suffix")
    fails(capsys, "encode", wav, "-o", wav, "--model", model, says="suffix")
    fails(
        capsys, "encode", wav, "-o", tmp_path / "o.cjx", "--model", model, "--bottleneck", "9x9", says="1x46656_400bps"
    )
    fails(capsys, "encode", wav, "-o", tmp_path / "o.cjx", "--model", model, "--num-streams", "3", says="ESC")
    fails(capsys, "info", tmp_path / "nothing", says="nothing")
    assert files_under(tmp_path) == ["in/talk.wav", "other/talk.flac"]


@pytest.mark.parametrize("argv", [[], ["encode"], ["encode", "x"], ["sing"], ["data"], ["encode", "--colour", "x"]])
def test_wrong_usage_exits_with_two(argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2


@pytest.mark.parametrize("verb", [["encode"], ["decode"], ["reconstruct"], ["info"], ["data", "synth"]])
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*verb, "--help"])
    assert stop.value.code == 0
    assert f"example: codec-jax {' '.join(verb)}" in capsys.readouterr().out


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="none"):
        cli.main(["info", str(tmp_path / "none"), "--debug"])

"""The verb: one command from a directory to a report, and one sentence for whatever cannot be."""

import csv
import json
import pathlib

import numpy as np
import pytest
import soundfile

from codec_jax import cli
from codec_jax.evaluate import prepare
from tests import browser, tiny
from tests.test_cli import fails

RATE = 16_000
CHEAP = "si_sdr,mel_distance_esc,loudness_error"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    tiny.codec().save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three voices of noise, one at another rate, and a silent file."""
    directory = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    for name, seconds, rate in (("en_a", 1.0, RATE), ("en_b", 0.9, RATE), ("it_c", 0.7, 22_050)):
        soundfile.write(directory / f"{name}.wav", 0.1 * rng.standard_normal(round(seconds * rate)), rate)
    soundfile.write(directory / "silent.wav", np.zeros(RATE), RATE)
    return directory


def evaluate(*argv):
    return cli.main(["evaluate", *map(str, argv), "--workers", "1"])


def test_one_command_to_a_report(model, folder, tmp_path, capsys, monkeypatch):
    """All files are there; a missing peer is said; again it goes on, and --force begins anew."""
    monkeypatch.setenv("PATH", "/nowhere")
    out = tmp_path / "out"
    asked = (folder, "-o", out, "--model", model, "--against", "codec2@1.2,mu_law", "--metrics", CHEAP)
    assert evaluate(*asked) == 0
    told = capsys.readouterr()
    assert "codec2@1.2 is left out: codec2 needs c2enc" in told.err
    assert "tiny works at 16000 Hz and there are files of 22050 Hz" in told.err
    assert "of 16 rows have a note" in told.err
    assert told.out.splitlines()[-1] == f"report: {out / 'report.html'}"
    for name in ("original", "tiny@train", "mu_law", "lowpass_3500"):
        assert name in told.out
    means = json.loads((out / "summary.json").read_text())
    assert list(means) == ["original", "tiny@train", "mu_law", "lowpass_3500"]
    assert all(set(one) == {"mean", "low", "high", "n"} for there in means.values() for one in there.values())
    assert means["tiny@train"]["si_sdr"]["n"] == 3  # not of the silent file
    assert means["tiny@train"]["first_call_seconds"]["n"] <= 4
    assert means["original"]["mel_distance_esc"]["mean"] == 0
    with (out / "utterances.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert [row["note"] for row in rows if row["utterance"] == "silent"] == ["not defined: si_sdr, loudness_error"] * 4
    assert {row["language"] for row in rows} == {"en", "it", ""}
    assert not list(out.rglob("*partial"))
    machines = json.loads((out / "machines.json").read_text())["machines"]
    assert machines[0]["versions"]["codec-jax"]

    lines = (out / "utterances.csv").read_text().splitlines(keepends=True)
    (out / "utterances.csv").write_text("".join(lines[:9]) + lines[9][:20])  # as a kill leaves it
    (out / "report.html").unlink()
    assert evaluate(*asked) == 0
    assert (out / "utterances.csv").read_text().splitlines(keepends=True)[:9] == lines[:9]
    assert json.loads((out / "summary.json").read_text())["mu_law"]["si_sdr"] == means["mu_law"]["si_sdr"]
    with browser.opened(out / "report.html") as page:
        page.wait_for_function("player.seconds > 0")
        assert page.locator("#notes").inner_text().count("not defined: si_sdr, loudness_error") == 1

    capsys.readouterr()
    fails(capsys, "evaluate", *asked[:-1], "si_sdr", says="other metrics")
    assert evaluate(*asked[:-1], "si_sdr", "--against", "lowpass", "--force") == 0
    assert list(json.loads((out / "summary.json").read_text())) == [
        "original",
        "tiny@train",
        "lowpass_3500",
        "lowpass_7000",
    ]
    assert not (out / "decoded" / "clean" / "mu_law").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--against", "opsu@6"], "there is no system opsu@6"),
        (["--against", "opus@600"], "opus@600 is beyond its range"),
        (["--against", "lowpass", "--metrics", "pesq"], "there is no metric pesq: choose from pesq_wb"),
        (["--against", "lowpass", "--metrics", "wer"], "--asr"),
        (["--against", "lowpass", "--asr", "true"], "{audio}"),
        (["--against", "lowpass", "--asr", "no_such_program {audio}"], "no program no_such_program"),
        (["--against", "lowpass", "--conditions", "rain@3"], 'there is no condition "rain@3"'),
        (["--against", "lowpass", "--conditions", "length@900"], "too short for length@900"),
        (["--against", "lowpass", "--rates", "train"], "--rates are of models"),
        (["--against", "dir:/nowhere/at/all"], "no such directory"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--against", "lowpass", "--workers", "0"], "--workers"),
        ([], "nothing to compare"),
    ],
)
def test_what_cannot_be(folder, tmp_path, capsys, flags, says):
    fails(capsys, "evaluate", folder, "-o", tmp_path / "out", *flags, says=says)
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be(folder, model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    fails(capsys, "evaluate", tmp_path / "empty", "-o", tmp_path / "out", "--against", "lowpass", says="no audio")
    fails(capsys, "evaluate", tmp_path / "none", "-o", tmp_path / "out", "--against", "lowpass", says="none")
    (tmp_path / "file").write_text("mine")
    fails(capsys, "evaluate", folder, "-o", tmp_path / "file", "--against", "lowpass", says="is a file")
    fails(capsys, "evaluate", folder, "-o", tmp_path, "--against", "lowpass", "--force", says="holds no evaluation")
    assert (tmp_path / "file").read_text() == "mine"
    fails(
        capsys, "evaluate", folder, "-o", tmp_path / "out", "--model", model, "--rates", "9streams", says="from train"
    )


def test_nothing_that_can_be_read(tmp_path, capsys):
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "torn.wav").write_bytes(b"RIFF")
    argv = ["evaluate", str(tmp_path / "speech"), "-o", str(tmp_path / "out"), "--against", "lowpass", "--workers", "1"]
    assert cli.main(argv) == 1
    assert "none of the files could be read" in capsys.readouterr().err


def test_help_has_an_example_and_bad_flags_are_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--help"])
    assert stop.value.code == 0
    assert "example: codec-jax evaluate" in capsys.readouterr().out
    for argv in (["evaluate"], ["evaluate", "x"], ["evaluate", "x", "-o", "y", "--workers", "many"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 2


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/nano"], ["nano"]),
        (["runs/a/nano", "runs/b/nano", "small"], ["a-nano", "b-nano", "small"]),
        (["nano", "runs/nano"], ["nano", "runs-nano"]),
        (["runs/nano/", "runs/nano"], ["nano", "nano-2"]),
        (["models/opus", "original"], ["opus-2", "original-2"]),
        (["org/speech-codec", "../speech"], ["speech-codec", "speech"]),
    ],
)
def test_names_of_models(paths, names):
    assert prepare.unique_names(paths) == names


def test_a_limit_is_spread_over_the_names():
    from codec_jax.evaluate.conditions import Condition
    from codec_jax.evaluate.inputs import Utterance

    every = [
        Utterance(f"u{i}", "", Condition(kind), (pathlib.Path(f"u{i}.wav"),))
        for kind in ("clean", "silence")
        for i in range(9)
    ]
    kept = prepare._limited(every, 3)
    assert [(str(one.condition), one.name) for one in kept] == [
        (kind, name) for kind in ("clean", "silence") for name in ("u0", "u4", "u8")
    ]
    assert prepare._limited(every, 0) == every
    assert prepare._limited(every, 99) == every

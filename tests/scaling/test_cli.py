"""codec-jax scaling fit as typed: files, exit codes, sentences."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from codec_jax import cli
from codec_jax.scaling import intervals
from tests.scaling.coverage import SWEEPS
from tests.scaling.test_table import config, entry, rows, sweep

LETTERS = ("E", "A", "alpha", "B", "beta")


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 40)


@pytest.fixture
def runs(tmp_path):
    of = SWEEPS["4 x 3"]
    loss = of.loss * np.exp(0.003 * np.random.default_rng(0).standard_normal(12))
    lines = [
        f"{n!r},{d!r},{value!r}" for n, d, value in zip(*(c.tolist() for c in (of.params, of.audio_seconds, loss)))
    ]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["params,audio_seconds,loss", *lines]) + "\n")
    return path


def fit(*arguments):
    return cli.main(["scaling", "fit", *map(str, arguments)])


def test_a_table_to_files(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert fit("--table", runs, "-o", out) == 0
    found = json.loads((out / "fit.json").read_text())
    for name, value in zip(LETTERS, SWEEPS["4 x 3"].law):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
        assert found[name]["low"] < value < found[name]["high"]
    assert set(found["refused"]) == {"isoflop", "rate_distortion"}
    said = capsys.readouterr()
    assert "alpha 0.3" in said.out
    assert "refused: isoflop" in said.err
    names = {path.name for path in out.iterdir()}
    pictures = {f"{name}.{kind}" for name in ("law", "frontier", "residuals") for kind in ("png", "svg")}
    assert names == {"fit.json", "report.md", *pictures}
    for name in pictures:
        if name.endswith("svg"):
            ET.parse(out / name)
        else:
            assert (out / name).read_bytes().startswith(b"\x89PNG")
    report = (out / "report.md").read_text()
    assert "| alpha |" in report
    assert "isoFLOP profiles: no compute was spent" in report
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert fit("--table", runs, "-o", out) == 1
    assert "exists already: give another -o, or --force" in capsys.readouterr().err
    # The same rows in another order, over what is there: the same law, the same pictures.
    header, *lines = runs.read_text().splitlines()
    runs.write_text("\n".join([header, *lines[::-1]]) + "\n")
    assert fit("--table", runs, "-o", out, "--force") == 0
    again = {path.name: path.read_bytes() for path in out.iterdir()}
    assert all(again[name] == first[name] for name in pictures)
    for key in (*LETTERS, "noise", "compute_optimal"):
        assert json.loads(again["fit.json"])[key] == found[key]
    runs.write_text("\n".join([header, *lines]) + "\n")
    assert fit("--table", runs, "-o", out, "--force") == 0
    assert (out / "fit.json").read_bytes() == first["fit.json"]


def test_a_law_refused_still_leaves_its_reasons(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert fit("--table", runs, "-o", out) == 0
    runs.write_text("\n".join([*runs.read_text().splitlines()[:6], "1e6,5,nan"]))
    capsys.readouterr()
    assert fit("--table", runs, "-o", out, "--force") == 1
    said = capsys.readouterr().err
    assert "there are 5 runs, and 5 parameters need at least 8" in said
    assert "left out: line 7 loss is nan" in said
    found = json.loads((out / "fit.json").read_text())
    assert found["alpha"] == {"value": None, "low": None, "high": None}
    assert "parametric" in found["refused"]
    assert found["excluded"][0]["run"] == "line 7"
    # Pictures of the fit before are gone.
    assert {path.name for path in out.iterdir()} == {"fit.json", "report.md"}


def test_a_sweep(tmp_path, capsys):
    of = SWEEPS["4 x 3"]
    loss = of.loss * np.exp(0.003 * np.random.default_rng(0).standard_normal(12))
    runs = {
        f"run-{i}": (entry(float(of.params[i]), float(of.audio_seconds[i])), config(), rows(float(loss[i])))
        for i in range(12)
    }
    runs["late"] = (entry(7e6), config(), rows(3.0, step=5))
    directory = sweep(tmp_path / "sweep", runs)
    assert fit(directory, "-o", directory / "fit") == 0
    found = json.loads((directory / "fit" / "fit.json").read_text())
    assert found["loss"] == "valid/mel_distance"
    assert found["alpha"]["low"] < 0.34 < found["alpha"]["high"]
    assert found["compute_unit"] == "flop"
    assert "left out: late is unfinished" in capsys.readouterr().err
    assert [entry["run"] for entry in found["excluded"]] == ["late"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "out"], "give either a sweep directory or --table"),
        (["nowhere", "--table", "runs.csv", "-o", "out"], "give either a sweep directory or --table"),
        (["nowhere", "-o", "out"], "is no sweep"),
        (["--table", "nowhere.csv", "-o", "out"], "there is no file nowhere.csv"),
        (["--table", "runs.csv", "-o", "runs.csv"], "is a file: give a directory"),
        (["--table", "runs.csv", "-o", "out", "--compute", "-3"], "--compute takes numbers above zero"),
        (["--table", "runs.csv", "-o", "out", "--bitrate", "700"], "no run has 700 bit/s"),
    ],
)
def test_bad_input(runs, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert fit(*arguments) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_and_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        fit("--help")
    assert stopped.value.code == 0
    assert "example: codec-jax scaling fit" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        fit()
    assert stopped.value.code == 2

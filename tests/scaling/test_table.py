"""Runs read, and runs left out with the reason."""

import json

import pytest

from codec_jax.errors import UserError
from codec_jax.scaling import table

HEADER = "params,audio_seconds,loss,bitrate,flops,seed,name"


def write(tmp_path, *rows, header=HEADER):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def reasons(found):
    return {entry.run: entry.reason for entry in found.excluded}


def test_a_table(tmp_path):
    found = table.read_table(write(tmp_path, "2e6,100,3.5,700,1e12,1,b", "", "1e6,100,4.0,,,,"))
    assert [run[1:] for run in found.runs] == [
        (1e6, 100.0, 4.0, None, None, None),
        (2e6, 100.0, 3.5, 700.0, 1e12, "1"),
    ]
    assert found.runs[1].name == "line 2 (b)"
    assert not found.excluded


def test_columns_in_any_order_and_others_ignored(tmp_path):
    found = table.read_table(write(tmp_path, "x,3.5,1e6,100", header="\ufeffnote, loss ,params,audio_seconds"))
    assert found.runs[0][:4] == ("line 2", 1e6, 100.0, 3.5)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1e6,100,nan,,,,", "loss is nan"),
        ("1e6,100,,,,,", "loss is missing"),
        ("1e6,100,inf,,,,", "loss is inf"),
        ("1e6,100,-2,,,,", "loss is -2, no number above zero"),
        ("many,100,3,,,,", "params is many"),
        ("1e6,0,3,,,,", "audio_seconds is 0"),
        ("1e6,100,3,fast,,,", "bitrate is fast"),
        ("1e6,100,3,,0,,", "flops is 0"),
        ("1e6,100,3", "has 3 cells, and the first line 7"),
    ],
)
def test_a_bad_row_is_named_and_left_out(tmp_path, row, reason):
    found = table.read_table(write(tmp_path, "1e6,200,3.1,,,,", row))
    assert len(found.runs) == 1
    assert reason in reasons(found)["line 3"]


def test_duplicates_are_left_out_and_seeds_are_not(tmp_path):
    rows = ["1e6,100,3,700,,1,", "1e6,100,3.1,700,,2,", "1e6,100,3.2,700,,1,", "1e6,100,3.2,1000,,1,"]
    found = table.read_table(write(tmp_path, *rows))
    assert len(found.runs) == 3
    assert reasons(found) == {"line 4": "is a duplicate: line 2 has the same params, audio, bit rate and seed"}
    bare = table.read_table(
        write(tmp_path, "1e6,100,3", "1e6,100,3.1", "1e6,100,3", header="params,audio_seconds,loss")
    )
    assert len(bare.runs) == 2
    assert "the same params, audio, bit rate and loss" in reasons(bare)["line 4"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("params,loss\n1,2\n", "has no column audio_seconds"),
        ("params,audio_seconds,loss,loss\n1,2,3,4\n", "has two columns loss"),
        ('params,audio_seconds,loss\n"1,2,3\n', "is no CSV file"),
    ],
)
def test_what_is_no_table(tmp_path, text, sentence):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        table.read_table(path)
    with pytest.raises(UserError, match="there is no file"):
        table.read_table(tmp_path / "other.csv")


# ---- a sweep -----------------------------------------------------------------------------------


def config(seed=0, **changes):
    of = {
        "family": "taae",
        "bottleneck": {"levels": [17] * 6},
        "data": {"train": None, "valid": None, "valid_fraction": 0.05, "max_valid_clips": 32, "loudness": -20.0},
        "losses": {"l1": 100.0},
        "stages": {},
        "init_from": None,
        "optim": {"ema_decay": 0.999, "learning_rate": 1e-3},
        "training": {"steps": 100, "seed": seed},
    }
    for path, value in changes.items():
        inner = of
        *parents, last = path.split("__")
        for name in parents:
            inner = inner[name]
        inner[last] = value
    return of


def sweep(directory, runs):
    """runs: name to (entry, config, rows or raw text)."""
    listed = []
    for name, (entry, of, rows) in runs.items():
        listed.append({"name": name, "config": f"runs/{name}/config.json", **entry})
        workdir = directory / "runs" / name
        workdir.mkdir(parents=True)
        if of is not None:
            (workdir / "config.json").write_text(json.dumps(of))
        if rows is not None:
            text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (workdir / "metrics.jsonl").write_text(text)
    (directory / "sweep.json").write_text(json.dumps({"version": 1, "runs": listed}))
    return directory


def entry(params=1e6, seconds=100.0, rate=700.0):
    return {"params": params, "audio_seconds": seconds, "bitrate": rate, "flops": params * seconds * 300}


def rows(value, step=100):
    return [
        {"step": 0, "valid/mel_distance": 12.0, "valid/si_sdr": -20.0},
        {"step": step, "train/loss": 1.0},
        {"step": step, "valid/mel_distance": value, "valid/si_sdr": 10.0},
    ]


def test_a_sweep_and_all_that_can_be_wrong_with_its_runs(tmp_path):
    runs = {f"good-{i}": (entry(1e6 * (i + 1)), config(), rows(5.0 - i / 10)) for i in range(4)}
    runs |= {
        "other-rate": (entry(rate=1400.0), config(bottleneck={"levels": [17] * 12}), rows(4.0)),
        "seed": (entry(), config(seed=1), rows(5.01)),
        "nan": (entry(2.5e6), config(), rows(None)),
        "unfinished": (entry(2.6e6), config(), rows(5.0, step=60)),
        "waiting": (entry(2.7e6), config(), None),
        "gone": (entry(2.8e6), None, None),
        "broken": (entry(2.9e6), config(), '{"step": 0, "valid/mel'),
        "no-metric": (entry(3.1e6), config(), [{"step": 100, "valid/si_sdr": 1.0}]),
        "held-out": (entry(3.2e6), config(data__valid="elsewhere"), rows(1.0)),
        "bottleneck": (entry(3.3e6), config(bottleneck={"levels": [5] * 6}), rows(1.0)),
        "raw": (entry(3.4e6), config(optim__ema_decay=0.0), rows(1.0)),
        "twice": (entry(1e6), config(), rows(5.0)),
        "no-params": ({"audio_seconds": 3.0}, config(), rows(5.0)),
    }
    found = table.read_sweep(sweep(tmp_path, runs), "mel_distance")
    assert sorted(run.name for run in found.runs) == ["good-0", "good-1", "good-2", "good-3", "other-rate", "seed"]
    assert found.loss == "valid/mel_distance"
    said = reasons(found)
    expected = {
        "nan": "not a finite number at step 100",
        "unfinished": "its last evaluation is of step 60 of 100",
        "waiting": "has not been run",
        "gone": "has no runs/gone/config.json",
        "broken": "damaged metrics.jsonl",
        "no-metric": "has no valid/mel_distance at step 100",
        "held-out": 'data.valid: "elsewhere", and most have null',
        "bottleneck": "differs from most runs in bottleneck",
        "raw": "ema_decay above 0: false",
        "twice": "is a duplicate: good-0",
        "no-params": "params is missing",
    }
    assert set(said) == set(expected)
    for name, part in expected.items():
        assert part in said[name], said[name]
    run = next(run for run in found.runs if run.name == "seed")
    assert run == ("seed", 1e6, 100.0, 5.01, 700.0, 3e10, "1")


def test_what_rises_with_quality_is_turned(tmp_path):
    found = table.read_sweep(sweep(tmp_path, {"one": (entry(), config(), rows(5.0))}), "valid/si_sdr")
    assert found.runs[0].loss == pytest.approx(0.1)
    assert found.turned.startswith("10^")


def test_what_is_no_sweep(tmp_path):
    with pytest.raises(UserError, match=r"is no sweep: there is no sweep\.json"):
        table.read_sweep(tmp_path, "mel_distance")
    (tmp_path / "sweep.json").write_text('{"version": 1, "runs": []}')
    with pytest.raises(UserError, match="lists no runs"):
        table.read_sweep(tmp_path, "mel_distance")
    sweep(tmp_path, {"one": (entry(), config(), rows(5.0))})
    with pytest.raises(UserError, match=r"no run in .* has valid/pesq: give one of valid/mel_distance, valid/si_sdr"):
        table.read_sweep(tmp_path, "pesq")

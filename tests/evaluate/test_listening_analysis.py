"""Figures of a listening test: rules by hand, intervals against simulated listeners, files that must not count."""

import csv
import itertools
import json
import math
import pathlib

import numpy as np
import pytest
from scipy import stats

from codec_jax import cli
from codec_jax.evaluate.listening import analysis, mushra, preference, results
from tests import listeners

NAMES = ["original", "lowpass_3500", "lowpass_7000", "good", "bad"]
TRUTH = {"original": 97.0, "lowpass_3500": 30.0, "lowpass_7000": 60.0, "good": 72.0, "bad": 45.0}


def ratings(scores, names=None):
    """Ratings of hand-made [listener, trial] scores per system."""
    count, trials = np.shape(next(iter(scores.values())))
    who = tuple(names or (f"L{i}" for i in range(count)))
    return mushra.Ratings(
        who, tuple(f"clip{j}" for j in range(trials)), {k: np.array(v, float) for k, v in scores.items()}
    )


# ---- post-screening ------------------------------------------------------------------------------


def flat(value, listeners=5, trials=20):
    return np.full((listeners, trials), float(value))


def test_reference_below_90_on_more_than_15_percent():
    scores = {"original": flat(100), "lowpass_7000": flat(50)}
    scores["original"][1, :3] = 89  # 15 %: stays
    scores["original"][2, :4] = 89  # 20 %
    scores["original"][3, :] = 90  # 90 is not below 90
    found = mushra.screen(ratings(scores))
    assert [(one.listener, one.share) for one in found.excluded] == [("L2", 0.2)]
    assert "hidden reference below 90 (20% of the items; ITU-R BS.1534-3, 4.1.2)" in str(found.excluded[0])
    assert mushra.kept(ratings(scores), found).listeners == ("L0", "L1", "L3", "L4")


def test_anchor_above_90_on_more_than_15_percent():
    scores = {"original": flat(100), "lowpass_7000": flat(50)}
    scores["lowpass_7000"][0, :3] = 91
    scores["lowpass_7000"][1, 3:7] = 91
    scores["lowpass_7000"][2, 8:] = 90  # 90 is not above 90
    found = mushra.screen(ratings(scores))
    assert [one.listener for one in found.excluded] == ["L1"]
    assert "mid-range anchor above 90" in found.excluded[0].rule
    assert found.exempt == ()


def test_an_anchor_that_fools_many_tells_nothing():
    """Two of five above 90 on ten items: those items say nothing, and the other ten have 15 % of their own."""
    scores = {"original": flat(100), "lowpass_7000": flat(50)}
    scores["lowpass_7000"][:2, :10] = 95
    found = mushra.screen(ratings(scores))
    assert found.excluded == ()
    assert found.exempt == tuple(f"clip{j}" for j in range(10))
    scores["lowpass_7000"][0, 10:12] = 95  # 2 of the 10 that stay
    assert [(one.listener, one.share) for one in mushra.screen(ratings(scores)).excluded] == [("L0", 0.2)]
    scores["lowpass_7000"][:] = 95
    assert mushra.screen(ratings(scores)).excluded == ()


def test_one_of_four_is_not_more_than_a_quarter():
    scores = {"original": flat(100, 4), "lowpass_7000": flat(50, 4)}
    scores["lowpass_7000"][0] = 95
    assert [one.listener for one in mushra.screen(ratings(scores)).excluded] == ["L0"]
    three = {name: values[:3] for name, values in scores.items()}
    assert mushra.screen(ratings(three)).excluded == ()  # one of three is


# ---- figures -------------------------------------------------------------------------------------


def test_quartiles_are_those_of_the_recommendation():
    assert mushra.quartiles(np.array([7.0, 1, 3, 5, 9])) == (3, 5, 7)  # halves 1 3 5 and 5 7 9
    assert mushra.quartiles(np.array([1.0, 2, 3, 4])) == (1.5, 2.5, 3.5)
    assert mushra.quartiles(np.array([4.0])) == (4, 4, 4)


def test_outliers_are_named_and_stay():
    scores = {"original": flat(100, 6, 3), "lowpass_7000": flat(50, 6, 3)}
    scores["lowpass_7000"][:, 1] = [50, 51, 52, 53, 54, 90]
    (found,) = mushra.outliers(ratings(scores))
    assert found == {"listener": "L5", "utterance": "clip1", "system": "lowpass_7000", "rating": 90}


def drawn(rng, rows, columns, sizes=(8.0, 6.0, 10.0), mean=60.0):
    """Listeners that differ, utterances that differ, and the rest."""
    a, b, rest = sizes
    return (
        mean
        + a * rng.standard_normal((rows, 1))
        + b * rng.standard_normal(columns)
        + rest * rng.standard_normal((rows, columns))
    )


@pytest.mark.parametrize(("rows", "columns"), [(6, 8), (20, 10)])
def test_over_listeners_covers_the_mean_for_these_utterances(rows, columns):
    rng = np.random.default_rng(0)
    utterances, hit = 6 * rng.standard_normal(columns), 0
    for _ in range(200):
        scores = utterances + drawn(rng, rows, columns, (8.0, 0.0, 10.0))
        found = mushra.over_listeners(scores)
        hit += found.low <= 60 + utterances.mean() <= found.high
        assert found.n == rows
    assert abs(hit / 200 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 200), hit


@pytest.mark.parametrize(("rows", "columns"), [(6, 8), (20, 10), (12, 4)])
@pytest.mark.parametrize("sizes", [(8.0, 6.0, 10.0), (2.0, 10.0, 5.0), (0.0, 0.0, 10.0)])
def test_over_both_covers_the_mean_of_the_population(rows, columns, sizes):
    rng = np.random.default_rng(1)
    hit, alone = 0, 0
    for _ in range(600):
        scores = drawn(rng, rows, columns, sizes)
        found = mushra.over_both(scores)
        hit += found.low <= 60 <= found.high
        alone += abs(scores.mean() - 60) < stats.sem(scores.mean(axis=1)) * stats.t.ppf(0.975, rows - 1)
    margin = 4 * math.sqrt(0.95 * 0.05 / 600)
    assert hit / 600 > 0.95 - margin, hit  # where nothing but the rest varies it is wider than it must be
    if sizes[1] > sizes[0]:
        assert alone / 600 < 0.85, alone  # what listeners alone would claim
    if min(sizes) > 0 and rows == 20:
        assert hit / 600 < 0.95 + margin + 0.02, hit


def test_too_few_have_no_interval():
    assert np.isnan(mushra.over_both(drawn(np.random.default_rng(0), 2, 9)).low)
    assert np.isnan(mushra.over_listeners(drawn(np.random.default_rng(0), 2, 9)).low)
    same = mushra.over_both(np.full((4, 4), 50.0))
    assert (same.low, same.high) == (50, 50)


def test_shares_are_exact():
    """Clopper and Pearson's interval by its definition: tails of 2.5 %."""
    found = preference.share(7, 10)
    assert stats.binom.sf(6, 10, found["low"]) == pytest.approx(0.025, abs=1e-6)
    assert stats.binom.cdf(7, 10, found["high"]) == pytest.approx(0.025, abs=1e-6)
    assert preference.share(0, 5)["low"] == 0
    assert preference.share(5, 5)["high"] == 1


# ---- whole tests ---------------------------------------------------------------------------------


@pytest.fixture
def simulated(tmp_path):
    """Eight listeners of known means, of whom L7 does not hear the reference."""
    made = listeners.key(tmp_path / "site.key.json", NAMES, 6)
    rng = np.random.default_rng(5)
    scores = {name: drawn(rng, 8, 6, (2.0, 3.0, 4.0), TRUTH[name]) for name in NAMES}
    scores["original"] = np.clip(scores["original"], 91, 100)
    scores["original"][7] = 70
    (tmp_path / "results").mkdir()
    return made, scores, listeners.raters(made, scores, tmp_path / "results"), tmp_path


def test_a_mushra_test_from_files_to_figures(simulated, capsys):
    _, scores, paths, directory = simulated
    out = directory / "out"
    assert cli.main(["listen", "--analyse", *paths, "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "8 listeners, 6 trials, 1 excluded" in told
    assert "L7 is excluded: rates the hidden reference below 90 (100% of the items" in told
    assert {path.name for path in out.iterdir()} == {"analysis.json", "ratings.csv", "analysis.png", "analysis.svg"}
    found = json.loads((out / "analysis.json").read_text())
    for name in NAMES:
        row, kept = found["systems"][name], np.clip(np.round(scores[name][:7]), 0, 100)
        assert row["mean"] == pytest.approx(kept.mean())
        assert row["low"] < row["mean"] < row["high"]
        assert row["low_both"] < row["low"] + 1
        assert row["n"] == 7
        for j in range(6):
            assert found["utterances"][f"clip{j}"][name]["mean"] == pytest.approx(kept[:, j].mean())
    gap = found["differences"]["good"]["bad"]
    assert gap["mean"] == pytest.approx(found["systems"]["good"]["mean"] - found["systems"]["bad"]["mean"])
    assert gap["low"] < 27 < gap["high"]
    assert found["differences"]["bad"]["good"]["high"] == pytest.approx(-gap["low"], abs=0.5)
    assert found["screening"]["excluded"][0]["listener"] == "L7"
    rows = list(csv.DictReader((out / "ratings.csv").open()))
    assert len(rows) == 8 * 6 * 5
    assert {row["listener"] for row in rows if row["used"] == "0"} == {"L7"}
    assert np.mean(
        [float(row["rating"]) for row in rows if row["system"] == "good" and row["used"] == "1"]
    ) == pytest.approx(found["systems"]["good"]["mean"])
    assert (out / "analysis.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "analysis.svg").read_text()
    lines = [line.split()[0] for line in told.splitlines()[3:8]]
    assert lines == ["original", "good", "lowpass_7000", "bad", "lowpass_3500"]


def test_a_directory_of_results_and_outputs_that_stay(simulated, capsys):
    _, _, _, directory = simulated
    flags = ["listen", "--analyse", str(directory / "results"), "-o", str(directory / "out")]
    assert cli.main(flags) == 0
    assert cli.main(flags) == 1
    assert "exists already: give another -o, or --force" in capsys.readouterr().err
    assert cli.main([*flags, "--force"]) == 0


def test_nobody_left_is_said(tmp_path, capsys):
    made = listeners.key(tmp_path / "x.key.json", NAMES, 3)
    paths = listeners.raters(made, {name: np.full((1, 3), 50.0) for name in NAMES}, tmp_path)
    assert cli.main(["listen", "--analyse", *paths]) == 0
    told = capsys.readouterr().out
    assert "post-screening would leave nobody" in told
    assert "too few for an interval" in told
    assert "asks for five at least" in told


def test_ab_from_files_to_figures(tmp_path, capsys):
    made = listeners.key(tmp_path / "ab.key.json", ["x", "y", "z"], 4, "ab")
    (tmp_path / "in").mkdir()
    for i in range(5):
        answers = {}
        for trial in made["trials"]:
            pair = [one["system"] for one in trial["stimuli"].values()]
            answers[trial["trial"]] = "x" if "x" in pair else [None, "y", "z"][i % 3]
        (tmp_path / "in" / f"{i}.json").write_text(json.dumps(listeners.session(made, f"L{i}", answers)))
    assert cli.main(["listen", "--analyse", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    pairs = {(row["first"], row["second"]): row for row in found["pairs"]}
    assert set(pairs) == set(itertools.combinations("xyz", 2))
    won = pairs["x", "y"]
    assert (won["answers"], won["first_preferred"]["count"], won["score"]["mean"]) == (20, 20, 1.0)
    assert won["first_preferred"]["low"] == pytest.approx(0.025 ** (1 / 20))
    assert won["p"] == pytest.approx(2 * 0.5**20)
    even = pairs["y", "z"]  # L0 and L3 neither, L1 and L4 y, L2 z
    assert [even[name]["count"] for name in ("first_preferred", "second_preferred", "no_preference")] == [8, 4, 8]
    assert even["score"]["mean"] == pytest.approx((0.5 + 1 + 0 + 0.5 + 1) / 5)
    assert even["score"]["n"] == 5
    assert len(found["utterances"]) == 12
    assert "x : y" in capsys.readouterr().out
    assert len(list(csv.DictReader((tmp_path / "out" / "ratings.csv").open()))) == 60


# ---- what does not count -------------------------------------------------------------------------


def edited(path, change):
    result = json.loads(path.read_text())
    change(result)
    return json.dumps(result)


def _other_score(result):
    name = next(iter(result["trials"][0]["ratings"]))
    result["trials"][0]["ratings"][name] = 1


def _beyond(result):
    name = next(iter(result["trials"][0]["ratings"]))
    result["trials"][0]["ratings"][name] = 140


def _unknown(result):
    result["trials"][0]["ratings"]["sX"] = 50


def _renamed(result):
    result["trials"][0]["shown"][0] = "sX"


BROKEN = {
    "was edited or damaged": _other_score,
    "a rating of 140 in trial": _beyond,
    "rates a sound": _unknown,
    "shows other sounds": _renamed,
    "1 of 6 trials are missing": lambda result: result["trials"].pop(),
    "trial t0p0 twice": lambda result: result["trials"].append(result["trials"][0]),
    "is incomplete: 1 ratings": lambda result: result["trials"][0]["ratings"].popitem(),
    "is of another test (ffff": lambda result: result.update(test="ffff"),
    "is no result of a listening test": lambda result: result.pop("trials"),
    "by another version": lambda result: result.update(format=99),
    "has a trial tX that": lambda result: result["trials"][0].update(trial="tX"),
    "damaged times or counts": lambda result: result["trials"][0].update(plays=3),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_bad_results_are_named_and_others_count(simulated, capsys, sentence):
    _, _, paths, directory = simulated
    bad = directory / "results" / "listener3.json"
    bad.write_text(edited(bad, BROKEN[sentence]))
    assert cli.main(["listen", "--analyse", *paths]) == 0
    told = capsys.readouterr().out
    (note,) = [line for line in told.splitlines() if "listener3.json" in line]
    assert sentence in note
    assert "7 listeners" in told
    key = str(directory / "site.key.json")
    assert cli.main(["listen", "--analyse", str(bad), "--key", key]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_cut_off_file(simulated, capsys):
    _, _, paths, directory = simulated
    bad = directory / "results" / "listener3.json"
    bad.write_text(bad.read_text()[:400])
    assert cli.main(["listen", "--analyse", str(bad)]) == 1
    assert "listener3.json: is no JSON, or cut off; have it saved again." in capsys.readouterr().err
    assert cli.main(["listen", "--analyse", *paths]) == 0


def test_one_listener_counts_once(simulated, capsys):
    made, _, paths, directory = simulated
    (directory / "results" / "copy.json").write_text(pathlib.Path(paths[2]).read_text())
    again = {trial["trial"]: dict.fromkeys(NAMES, 95) for trial in made["trials"]}
    later = listeners.session(made, "L4", again, began="2026-02-01T00:00:00Z")
    (directory / "results" / "again.json").write_text(json.dumps(later))
    assert cli.main(["listen", "--analyse", str(directory / "results")]) == 0
    told = capsys.readouterr().out
    assert "8 listeners" in told
    assert "is a copy of" in told
    assert "again.json: listener L4 is in" in told


def test_the_key(simulated, capsys, tmp_path_factory):
    _, _, paths, directory = simulated
    moved = tmp_path_factory.mktemp("elsewhere") / "deep"
    moved.mkdir()
    (moved / "one.json").write_text(pathlib.Path(paths[0]).read_text())
    assert cli.main(["listen", "--analyse", str(moved / "one.json")]) == 1
    assert "the key of its test is not beside it; give --key SITE_DIR.key.json" in capsys.readouterr().err
    assert cli.main(["listen", "--analyse", str(moved / "one.json"), "--key", str(moved / "no.json")]) == 1
    assert "there is no key" in capsys.readouterr().err
    assert cli.main(["listen", "--analyse", str(moved / "one.json"), "--key", paths[1]]) == 1
    assert "is no key of a listening test, or damaged" in capsys.readouterr().err
    assert cli.main(["listen", "--analyse", str(moved / "one.json"), "--key", str(directory / "site.key.json")]) == 0
    listeners.key(moved / "other.key.json", NAMES, 6, test="beef")
    assert cli.main(["listen", "--analyse", str(moved / "one.json"), "--key", str(moved / "other.key.json")]) == 1
    assert "is of another test (1234abcd, and the key is of beef)" in capsys.readouterr().err


def test_wrong_use(simulated, capsys):
    _, _, paths, directory = simulated
    with pytest.raises(SystemExit, match="2"):
        cli.main(["listen", "speech", "--analyse", *paths])
    assert "leave AUDIO_DIR and systems out" in capsys.readouterr().err
    assert cli.main(["listen", "--analyse", str(directory / "none.json")]) == 1
    assert "there is no file" in capsys.readouterr().err
    (directory / "empty").mkdir()
    assert cli.main(["listen", "--analyse", str(directory / "empty")]) == 1
    assert "holds no results" in capsys.readouterr().err


def test_names_of_the_check_sum():
    """By hand, for whoever writes another page: CRC-32 of lines joined by a newline."""
    made = {
        "format": 1,
        "test": "t",
        "kind": "ab",
        "listener": "Zoë",
        "seed": 3,
        "trials": [{"trial": "a", "shown": ["p", "q"], "answer": "q"}],
    }
    assert results._check(made) == listeners.checked(made)["check"]


def test_mixed_transducers_are_said(simulated):
    made, _, _, directory = simulated
    answers = {trial["trial"]: {name: round(TRUTH[name]) for name in NAMES} for trial in made["trials"]}
    (directory / "results" / "loud.json").write_text(
        json.dumps(listeners.session(made, "LX", answers, transducer="loudspeakers"))
    )
    found = analysis.run([str(directory / "results")])
    assert any("some heard through headphones" in note for note in found.notes)
    assert any("8 listeners: intervals are wide and rough" in note for note in found.notes)

"""Runs of an evaluation: what is written, what goes wrong for one utterance, and going on after a kill."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from codec_jax.audio import files
from codec_jax.errors import UserError
from codec_jax.evaluate import conditions as conditions_
from codec_jax.evaluate import inputs, outputs, rows, run, summary, systems
from codec_jax.evaluate.systems import Coded, System
from codec_jax.storage import read_json

RATE = 16000
METRICS = ("si_sdr", "log_spectral_distance", "mel_distance_esc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("speech")
    for i, name in enumerate(("en_a", "en_b", "it_c", "it_d", "it_e")):
        rng = np.random.default_rng(i)
        time = np.arange(RATE + 1000 * i) / RATE
        audio = 0.1 * np.sin(2 * np.pi * (150 + 20 * i) * time) * (1 + np.sin(9 * time)) + rng.normal(
            0, 0.01, len(time)
        )
        files.write(directory / f"{name}.wav", audio.astype(np.float32), RATE)
    return directory


def coarse(levels=32):
    """A codec of so many levels a sample: five bits of each in a byte, and codes to count."""

    def code(audio, sample_rate, stem):
        codes = np.clip(np.round((audio + 1) / 2 * (levels - 1)), 0, levels - 1).astype(np.int32)
        return Coded((codes / (levels - 1) * 2 - 1).astype(np.float32), len(audio), codes[None])

    return System("coarse", "coarse", "few levels", code, codebook_sizes=(levels,))


def evaluation(folder, out, *others, conditions=("clean",)):
    wanted = (systems.original(), coarse(), systems.lowpass(3500), *others)
    return run.Evaluation(
        inputs.find(folder, [conditions_.parse(text) for text in conditions]), wanted, METRICS, epath.Path(out)
    )


def finish(job, tell=lambda text: None, advance=lambda: None):
    outputs.begin(job, outputs.settings("speech", {}, job), False)
    found = run.run(job, 2, run.Watch(advance, tell))
    outputs.write(job, found)
    return found


def without_time(table):
    costs = {"real_time_factor": 0.0, "peak_memory_mib": 0.0}
    return [repr(row._replace(**costs)) for row in table]  # as text, NaN equals NaN


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    job = evaluation(folder, tmp_path_factory.mktemp("whole"))
    return job, finish(job)


def test_what_is_written(whole):
    job, table = whole
    assert [row.key for row in table] == [
        (system.name, "clean", utterance.name) for system in job.systems for utterance in job.utterances
    ]
    read = read_json(job.directory / outputs.SUMMARY)
    assert list(read) == ["original", "coarse", "lowpass_3500"]
    assert set(read["coarse"]["si_sdr"]) == {"mean", "low", "high", "n"}
    assert read["original"]["log_spectral_distance"]["mean"] == 0
    assert read["original"]["bits_per_second"]["mean"] is None
    assert read["coarse"]["bits_per_second"]["mean"] == pytest.approx(8 * RATE)
    means = summary.by_system(table)["coarse"]["si_sdr"]
    assert read["coarse"]["si_sdr"]["low"] == pytest.approx(means.low)
    heard, rate = files.read(run.audio_path(job.directory, table[5]))
    assert (heard.shape[1], rate) == (len(inputs.read(job.utterances[0])[0]), RATE)


def test_codes_are_counted_over_all_utterances(whole):
    job, _ = whole
    codes = np.concatenate([job.systems[1].process(*inputs.read(one)).codes[0] for one in job.utterances])
    shares = np.bincount(codes, minlength=32) / len(codes)
    entropy = -sum(share * np.log2(share) for share in shares if share)
    found = read_json(job.directory / outputs.CODES)["coarse"]
    assert found["entropy_bits"] == [pytest.approx(entropy)]
    assert found["usage"] == [np.count_nonzero(shares) / 32]
    summarised = read_json(job.directory / outputs.SUMMARY)["coarse"]["bitrate_utilisation"]
    assert (summarised["mean"], summarised["n"]) == (pytest.approx(entropy / 5), 5)


@pytest.mark.parametrize("after", [1, 7, 14])
def test_stopped_anywhere_it_goes_on(folder, tmp_path, whole, after):
    """What is in the table is not done again, and the end is the same."""
    left = [after]

    def stop():
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(evaluation(folder, tmp_path), advance=stop)
    done = [row.key for row in rows.read(tmp_path / run.TABLE)]
    assert len(done) == after
    asked = []
    spied = [
        dataclasses.replace(
            system,
            code=lambda audio, rate, stem, system=system: (
                asked.append((system.name, stem)) or system.code(audio, rate, stem)
            ),
        )
        for system in evaluation(folder, tmp_path).systems
    ]
    job = evaluation(folder, tmp_path)._replace(systems=spied)
    assert without_time(finish(job)) == without_time(whole[1])
    assert not {(name, stem) for name, _, stem in done} & set(asked)


def test_one_utterance_fails_and_the_others_go_on(folder, tmp_path):
    def code(audio, sample_rate, stem):
        if stem == "it_c":
            raise UserError("no it_c here.")
        return Coded(audio)

    said = []
    table = finish(evaluation(folder, tmp_path, System("picky", "picky", "picky", code)), said.append)
    assert said == ["picky, it_c: no it_c here."]
    failed = [row for row in table if row.note]
    assert [(row.key, row.note) for row in failed] == [(("picky", "clean", "it_c"), "no it_c here.")]
    assert np.isnan(failed[0].scores["si_sdr"])
    assert read_json(tmp_path / outputs.SUMMARY)["picky"]["si_sdr"]["n"] == 4


def test_a_broken_file_is_named_and_left_out(folder, tmp_path):
    broken = tmp_path / "speech"
    broken.mkdir()
    for path in folder.glob("en_*"):
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "torn.wav").write_bytes(b"RIFF")
    said = []
    table = finish(evaluation(broken, tmp_path / "out"), said.append)
    assert {row.utterance for row in table} == {"en_a", "en_b"}
    assert all("torn.wav" in text for text in said)
    assert said


def test_conditions_are_apart(folder, tmp_path):
    job = evaluation(folder, tmp_path, conditions=("clean", "noise@5", "silence"))
    table = finish(job)
    assert {row.condition for row in table} == {"clean", "noise@5", "silence"}
    assert all("not defined: si_sdr" in row.note for row in rows.select(table, condition="silence"))
    means = read_json(tmp_path / outputs.SUMMARY)  # of the first condition
    assert means["original"]["si_sdr"]["n"] == means["coarse"]["bitrate_utilisation"]["n"] == 5
    assert "lowpass_3500, noise@5" in outputs.table(table, METRICS)


def test_another_evaluation_is_not_mixed_in(folder, tmp_path):
    job = evaluation(folder, tmp_path)
    outputs.begin(job, outputs.settings("speech", {}, job), False)
    other = job._replace(metrics=("si_sdr",))
    with pytest.raises(UserError, match="other metrics"):
        outputs.begin(other, outputs.settings("speech", {}, other), False)
    outputs.begin(other, outputs.settings("speech", {}, other), True)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no evaluation"):
        outputs.begin(job._replace(directory=epath.Path(tmp_path / "more")), {}, True)
    assert (tmp_path / "more" / "notes.txt").exists()

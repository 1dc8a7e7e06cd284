"""Scores in other processes: in order, and past an utterance that ends the process, or makes a metric raise."""

import math
import os

import numpy as np
import pytest

from codec_jax.evaluate import memory, scoring
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.scoring import Task

NAN = math.nan


class Deadly(np.ndarray):
    """Ends whatever process it is sent to, as a package that writes beyond its tables does."""

    def __reduce__(self):
        return os._exit, (1,)


def task(name, audio=None, sample_rate=16000, note=""):
    reference = np.sin(np.arange(8000.0)).astype(np.float32)
    estimate = 0.5 * reference if audio is None else audio
    return Task(Row("ours", "clean", name, "", 0.5, NAN, NAN, NAN, NAN, note, {}), reference, estimate, sample_rate)


def test_one_ends_its_process_and_the_others_go_on():
    deadly = np.zeros(8000, np.float32).view(Deadly)
    tasks = [task("a"), task("b", deadly), task("c", note="0.20 s shorter"), task("slow", sample_rate=4000)]
    tasks += [task("unequal", np.zeros(10, np.float32)), task("failed")._replace(estimate=None)]
    with scoring.Scorers(["si_sdr", "loudness_error"], 1) as scorers:
        for one in tasks:
            scorers.submit(one)
        scorers.idle()
        found = {row.utterance: row for row in scorers.finished(everything=True)}
    assert list(found) == [one.row.utterance for one in tasks]
    assert found["a"].scores["si_sdr"] > 60
    assert found["a"].scores["loudness_error"] > 3
    assert found["a"].note == ""
    assert found["b"].note == "the process that scored it ended itself"
    assert math.isnan(found["b"].scores["si_sdr"])
    assert found["c"].note == "0.20 s shorter"
    assert found["c"].scores["si_sdr"] > 60
    assert "8000 Hz or more" in found["slow"].note
    assert found["unequal"].note.startswith("ValueError: reference and estimate have 8000 and 10 samples")
    assert found["failed"].scores == {}


def test_peak_memory_is_of_what_went_between():
    if not memory.restart():
        pytest.skip("this system does not let its mark be set back")
    before = memory.peak_mib()
    block = np.ones(64 << 17)  # 64 MiB
    assert memory.peak_mib() - before > 60
    del block
    memory.restart()
    assert memory.peak_mib() - before < 30

"""Bits and entropies folded over utterances: upstream's utilisation, hand-made counts, what is wrong."""

import json

import numpy as np
import pytest

from codec_jax.evaluate import rates


def test_utilisation_is_upstreams(golden):
    """Codes [clip, stream, group, frame] of 64 words; upstream rounds to four places."""
    codes = golden("esc/losses/golden.safetensors")["util_codes_K64"]
    meta = json.loads((golden.path("esc/losses") / "meta.json").read_text())["metrics"]
    tally = rates.empty((64,) * 12)
    for clip in codes:
        tally = rates.add(tally, 1.0, 100, clip.reshape(12, -1))
    found = rates.figures(tally)
    assert found.utilisation == pytest.approx(meta["utilization_total"], abs=1e-4)
    per_book = list(meta["utilization_per_book"].values())
    np.testing.assert_allclose(np.array(found.entropy_bits) / 6, per_book, atol=1e-4)


def test_by_hand():
    tally = rates.empty((4, 2**20))
    tally = rates.add(tally, 2.0, 30, np.array([[0, 3], [7, 7]], np.int32))
    tally = rates.add(tally, 1.0, 15, np.array([[3, 0], [7, 7]], np.int32))
    assert [words.tolist() for words in tally.words] == [[0, 3], [7]]
    assert [counts.tolist() for counts in tally.counts] == [[2, 2], [4]]
    assert (tally.utterances, tally.num_bytes) == (2, 45)
    found = rates.figures(tally)
    assert found.entropy_bits == (1.0, 0.0)
    assert found.usage == (0.5, 1 / 2**20)
    assert found.utilisation == pytest.approx(1 / 22)
    assert found.measured_bps == 8 * 45 / 3


def test_adding_changes_nothing_given():
    before = rates.add(rates.empty((4,)), 1.0, 1, np.array([[1]]))
    rates.add(before, 1.0, 1, np.array([[1, 2]]))
    assert before.counts[0].tolist() == [1]


def test_what_is_not_known():
    nothing = rates.figures(rates.empty((4,)))
    assert (nothing.entropy_bits, nothing.usage) == ((), ())
    assert np.isnan([nothing.utilisation, nothing.measured_bps]).all()
    uncoded = rates.figures(rates.add(rates.empty(), 1.0, None))
    assert np.isnan(uncoded.measured_bps)
    lost = rates.add(rates.add(rates.empty(), 1.0, None), 1.0, 10)
    assert lost.num_bytes is None
    only_bytes = rates.figures(rates.add(rates.empty(), 2.0, 100))
    assert only_bytes.measured_bps == 400


def test_wrong_codes():
    with pytest.raises(ValueError, match="2 codebooks, and 1 are counted"):
        rates.add(rates.empty((4,)), 1.0, 1, np.array([[1], [1]]))
    with pytest.raises(ValueError, match="tokens 0 to 4 are not of a codebook of 4"):
        rates.add(rates.empty((4,)), 1.0, 1, np.array([[0, 4]]))

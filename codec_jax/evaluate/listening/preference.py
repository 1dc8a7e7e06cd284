"""Answers of an AB test to shares: exact intervals of answers, and intervals over listeners."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy import stats

from codec_jax.evaluate import intervals
from codec_jax.evaluate.intervals import LEVEL
from codec_jax.evaluate.listening.results import NEITHER, Key, Session


class Vote(NamedTuple):
    """One answer, unblinded. shown: system heard as A, then as B. preferred: a system, or NEITHER."""

    listener: str
    utterance: str
    shown: tuple[str, str]
    preferred: str


def gather(sessions: Sequence[Session], key: Key) -> list[Vote]:
    """Every answer."""
    votes = []
    for session in sessions:
        for trial, answer in session.answers.items():
            shown = tuple(key.system(trial, stimulus) for stimulus in answer.shown)
            preferred = answer.preferred if answer.preferred == NEITHER else key.system(trial, answer.preferred)
            votes.append(Vote(session.listener, key.trials[trial]["utterance"], (shown[0], shown[1]), preferred))
    return votes


def share(count: int, total: int) -> dict[str, Any]:
    """A share of independent answers with its exact interval (Clopper and Pearson 1934)."""
    found = stats.binomtest(count, total).proportion_ci(LEVEL, "exact")
    return {"count": count, "share": count / total, "low": float(found.low), "high": float(found.high)}


def score(votes: Sequence[Vote], first: str) -> dict[str, Any]:
    """Of `first` over listeners: 1 an answer for it, 1/2 for neither, a listener's mean being one value."""
    by_listener: dict[str, list[float]] = {}
    for vote in votes:
        worth = 0.5 if vote.preferred == NEITHER else float(vote.preferred == first)
        by_listener.setdefault(vote.listener, []).append(worth)
    return intervals.of_mean([sum(one) / len(one) for one in by_listener.values()])._asdict()


def compare(votes: Sequence[Vote], first: str, second: str) -> dict[str, Any]:
    """What a pair comes to; p: of the exact sign test of as many for either, answers for neither left out."""
    counts = [sum(vote.preferred == name for vote in votes) for name in (first, second, NEITHER)]
    decided = counts[0] + counts[1]
    return {
        "first": first,
        "second": second,
        "answers": len(votes),
        "first_preferred": share(counts[0], len(votes)),
        "second_preferred": share(counts[1], len(votes)),
        "no_preference": share(counts[2], len(votes)),
        "score": score(votes, first),
        "p": float(stats.binomtest(counts[0], decided).pvalue) if decided else 1.0,
    }


def analyse(sessions: Sequence[Session], key: Key) -> dict[str, Any]:
    """Every pair, every pair by utterance, and how often what was heard first was preferred."""
    votes = gather(sessions, key)
    pairs, utterances = [], []
    for first, second in itertools.combinations(key.systems, 2):
        mine = [vote for vote in votes if set(vote.shown) == {first, second}]
        pairs.append(compare(mine, first, second))
        for name in dict.fromkeys(sorted(vote.utterance for vote in mine)):
            some = [vote for vote in mine if vote.utterance == name]
            counts = {what: sum(vote.preferred == what for vote in some) for what in (first, second, NEITHER)}
            utterances.append({"utterance": name, "first": first, "second": second, "counts": counts})
    decided = [vote for vote in votes if vote.preferred != NEITHER]
    notes = [] if decided else ["nobody preferred anything."]
    if len(sessions) > 1:
        notes.append(
            "intervals of shares, and p, take every answer as independent, which those of one listener are not: the "
            "score's interval takes listeners."
        )
    as_a = share(sum(vote.preferred == vote.shown[0] for vote in decided), len(decided)) if decided else None
    return {"votes": votes, "notes": notes, "pairs": pairs, "utterances": utterances, "preferred_as_a": as_a}

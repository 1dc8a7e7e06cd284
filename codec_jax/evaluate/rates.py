"""How many bits a system spends, and how well its codes use them, folded over utterances.

Counts are kept of the codewords that occurred, so memory is bounded by the codebooks and by the tokens there were.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer


class Tally(NamedTuple):
    """What has been seen so far.

    codebook_sizes: number of different tokens per codebook; empty where there are no codes. words, counts: per
    codebook, the tokens that occurred, sorted, and how often. seconds: of audio. num_bytes: that they took; None once
    an utterance's are not known. utterances: how many.
    """

    codebook_sizes: tuple[int, ...]
    words: tuple[Int[np.ndarray, " word"], ...]
    counts: tuple[Int[np.ndarray, " word"], ...]
    seconds: float = 0.0
    num_bytes: int | None = 0
    utterances: int = 0


class Figures(NamedTuple):
    """What a tally comes to; NaN where nothing was counted, tuples empty without codes.

    entropy_bits: per codebook, of a token (its plain estimate: it is below log2 of the tokens seen, so too small for a
    large codebook and a small corpus). usage: per codebook, the share of its codewords that occurred, 0 .. 1.
    utilisation: the entropies together over their maximum (ESC's bit-rate utilisation, 0 .. 1). measured_bps: bits per
    second of audio, of the bytes as counted.
    """

    entropy_bits: tuple[float, ...]
    usage: tuple[float, ...]
    utilisation: float
    measured_bps: float


def empty(codebook_sizes: tuple[int, ...] = ()) -> Tally:
    """Nothing seen yet of codebooks of these sizes."""
    nothing = (np.zeros(0, np.int64),) * len(codebook_sizes)
    return Tally(tuple(codebook_sizes), nothing, nothing)


def add(
    tally: Tally, seconds: float, num_bytes: int | None, codes: Integer[np.ndarray, "codebook frame"] | None = None
) -> Tally:
    """The tally with one more utterance; codes: None where the system has none.

    ValueError: another number of codebooks, or tokens that a codebook does not have.
    """
    books = [] if codes is None else list(codes)
    if codes is not None and len(books) != len(tally.codebook_sizes):
        raise ValueError(f"codes have {len(books)} codebooks, and {len(tally.codebook_sizes)} are counted")
    for size, book in zip(tally.codebook_sizes, books):
        if book.size and not 0 <= book.min() <= book.max() < size:
            raise ValueError(f"tokens {book.min()} to {book.max()} are not of a codebook of {size}")
    merged = [_merged(words, counts, book) for words, counts, book in zip(tally.words, tally.counts, books)]
    together = None if tally.num_bytes is None or num_bytes is None else tally.num_bytes + num_bytes
    return tally._replace(
        words=tuple(words for words, _ in merged) or tally.words,
        counts=tuple(counts for _, counts in merged) or tally.counts,
        seconds=tally.seconds + seconds,
        num_bytes=together,
        utterances=tally.utterances + 1,
    )


def figures(tally: Tally) -> Figures:
    """Entropy, usage, utilisation and measured bits per second of all utterances together."""
    seen = bool(tally.counts) and all(len(counts) for counts in tally.counts)
    entropies = tuple(map(_entropy, tally.counts)) if seen else ()
    most = sum(math.log2(size) for size in tally.codebook_sizes)
    measured = tally.num_bytes is not None and tally.seconds > 0
    return Figures(
        entropies,
        tuple(len(words) / size for words, size in zip(tally.words, tally.codebook_sizes)) if seen else (),
        sum(entropies) / most if seen else math.nan,
        8 * (tally.num_bytes or 0) / tally.seconds if measured else math.nan,
    )


def _merged(words: np.ndarray, counts: np.ndarray, book: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    more, times = np.unique(book.astype(np.int64), return_counts=True)
    together = np.union1d(words, more)
    total = np.zeros(len(together), np.int64)
    total[np.searchsorted(together, words)] += counts
    total[np.searchsorted(together, more)] += times
    return together, total


def _entropy(counts: np.ndarray) -> float:
    shares = counts / counts.sum()
    return float(max(0.0, -(shares * np.log2(shares)).sum()))

"""Connectionist temporal classification of phones, and phone error rates (spec TAAE section 6).

Targets are int32, padded on the right with anything above the blank, which is the last class.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int


def ctc_loss(logits: Float[Array, "batch frame class"], targets: Int[Array, "batch phone"]) -> Float[Array, ""]:
    """Mean over the batch of every clip's negative log likelihood over its number of phones, as PyTorch's "mean".

    A clip whose targets no path of so many frames spells counts as zero, and so do its gradients.
    """
    blank = logits.shape[-1] - 1
    padded = targets > blank
    loss = optax.ctc_loss(
        logits.astype(jnp.float32),
        jnp.zeros(logits.shape[:2], jnp.float32),
        jnp.where(padded, 0, targets),
        padded.astype(jnp.float32),
        blank_id=blank,
    )
    counts = (~padded).sum(1)
    return jnp.where(feasible(targets, blank, logits.shape[1]), loss / jnp.maximum(counts, 1), 0.0).mean()


def feasible(targets: Int[Array, "batch phone"], blank: int, frames: int) -> Bool[Array, " batch"]:
    """Whether some path of so many frames spells them: one frame a phone, and a blank between equal neighbours."""
    known = targets <= blank
    repeated = (targets[:, 1:] == targets[:, :-1]) & known[:, 1:]
    return known.sum(1) + repeated.sum(1) <= frames


def greedy(logits: Float[np.ndarray, "frame class"]) -> list[int]:
    """The likeliest class of every frame, repeats as one, without blanks."""
    best = np.asarray(logits).argmax(-1)
    starts = np.flatnonzero(np.diff(best, prepend=-1))
    return [int(phone) for phone in best[starts] if phone != logits.shape[-1] - 1]


def edit_distance(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions that make one the other (Levenshtein)."""
    places = np.arange(len(wanted) + 1)
    row = places
    for phone in found:
        differs = np.asarray(wanted, np.int64) != phone
        best = np.minimum(row[1:] + 1, row[:-1] + differs)
        # Insertions along the row: a running minimum of what is left after one per place.
        row = np.minimum.accumulate(np.concatenate([row[:1] + 1, best]) - places) + places
    return int(row[-1])


def phone_error_rate(logits: Sequence[Float[np.ndarray, "_ class"]], targets: Sequence[Int[np.ndarray, " _"]]) -> float:
    """Edit distance of greedy decoding over the number of phones, the mean over clips that have any; NaN without."""
    rates = [edit_distance(greedy(x), y.tolist()) / len(y) for x, y in zip(logits, targets, strict=True) if len(y)]
    return float(np.mean(rates)) if rates else float("nan")

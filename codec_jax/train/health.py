"""Is the run healthy? Skipped steps and what they were fed, the codes in use, and alarms in words."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from codec_jax.errors import UserError
from codec_jax.experiment import TrainingConfig
from codec_jax.storage import is_remote

SKIPPED = "skipped.jsonl"
_COLLAPSED, _ONE_SIDED, _SETTLED = 0.2, 0.98, 500


def check_step(
    config: TrainingConfig, workdir: epath.Path, number: int, metrics: dict[str, Any], batch: dict[str, Any]
) -> str | None:
    """Looks at a step that is done; of a skipped one, its batch goes into skipped.jsonl and a sentence is returned.

    batch: host arrays "audio" [clip, channel, time], and "names" of this process's clips. Raises UserError once
    `max_skips` steps in a row were skipped.
    """
    if not float(metrics["skipped"]):
        return None
    norms = {name: float(value) for name, value in metrics.items() if name.startswith(("grad_norm", "loss"))}
    audio = np.asarray(batch["audio"])
    clips = [
        {"file": str(name), "peak": float(np.abs(x).max()), "rms": float(np.sqrt(np.square(x).mean()))}
        for name, x in zip(batch["names"], audio)
    ]
    row = {"step": number, "figures": {k: str(v) for k, v in norms.items()}, "clips": clips}
    _write_down(workdir, number, json.dumps(row))
    streak = int(metrics["streak"])
    if streak >= config.max_skips:
        raise UserError(
            f"{streak} steps in a row up to {number} were not finite or spiked (training.max_skips): see "
            f"{workdir / SKIPPED} for the files they were fed, and lower optim.learning_rate."
        )
    return f"step {number} skipped: loss {norms['loss']:.3g}, gradient norm {norms.get('grad_norm', float('nan')):.3g}"


def _write_down(workdir: epath.Path, number: int, row: str) -> None:
    """A line of skipped.jsonl; on an object store, where nothing can be appended, an object of its own."""
    if is_remote(workdir):
        directory = workdir / SKIPPED.removesuffix(".jsonl")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number:08d}-{jax.process_index()}.json").write_text(row)
        return
    with (workdir / SKIPPED).open("a") as file:
        file.write(row + "\n")


def code_figures(counts: np.ndarray) -> dict[str, float]:
    """How well the codes are used, from counts [codebook, word], negative where there is no word.

    Of an FSQ, codebooks are its latent dimensions and words their levels. Entropies are over their maximum, the log of
    the codebook's number of words: 1 is uniform, 0 a single word. Empty without codebooks.
    """
    if not len(counts):
        return {}
    there = np.asarray(counts) >= 0
    counts, levels = np.where(there, counts, 0).astype(np.float64), there.sum(1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) / np.log(levels)
    used = (counts > 0).sum(1) / levels
    return {
        "codes/entropy": float(entropy.mean()),
        "codes/entropy_min": float(entropy.min()),
        "codes/used": float(used.mean()),
    }


def alarms(step: int, figures: dict[str, float]) -> Sequence[str]:
    """Sentences for what these figures of a row mean, empty while all is well. A run's first steps are no measure."""
    if step < _SETTLED:
        return []
    found = []
    if figures.get("codes/entropy_min", 1.0) < _COLLAPSED:
        found.append(f"a codebook has collapsed: the entropy of its codes is {figures['codes/entropy_min']:.2f} of 1")
    if min(figures.get("d_accuracy_real", 0.0), figures.get("d_accuracy_fake", 0.0)) > _ONE_SIDED:
        found.append("the discriminators see through everything: the codec learns little from them")
    return found

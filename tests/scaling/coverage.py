"""Sweeps drawn from known laws, and how often stated intervals hold what they were drawn from.

As a program it prints the table of docs/scaling.md: python -m tests.scaling.coverage 400
"""

import sys
from typing import NamedTuple

import numpy as np

from codec_jax.scaling import intervals, laws

ALPHA, BETA = 0.34, 0.28
FIGURES = ("E", "A", "alpha", "B", "beta", "a", "params 0", "audio_seconds 0", "loss 0")


class Sweep(NamedTuple):
    """N and D [run] of a grid, and its true losses [run]; the law in the order E, A, alpha, B, beta."""

    params: np.ndarray
    audio_seconds: np.ndarray
    loss: np.ndarray
    law: tuple


def sweep(sizes, budgets, floor=2.0, excess=1.5, alpha=ALPHA, beta=BETA, seeds=1):
    """excess: of the smallest size and of the smallest budget, over the floor."""
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(*sizes), np.geomspace(*budgets), indexing="ij"))
    N, D = np.repeat(N, seeds), np.repeat(D, seeds)
    law = (floor, excess * N.min() ** alpha, alpha, excess * D.min() ** beta, beta)
    return Sweep(N, D, floor + law[1] * N**-alpha + law[3] * D**-beta, law)


SWEEPS = {
    "4 x 3": sweep((1e5, 5e6, 4), (1e3, 3e4, 3)),
    "5 x 4": sweep((1e6, 1e8, 5), (1e4, 1e6, 4)),
    "6 x 6": sweep((1e6, 1e9, 6), (1e4, 1e7, 6)),
    "4 x 3, 2 seeds": sweep((1e5, 5e6, 4), (1e3, 3e4, 3), seeds=2),
}
NOISES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "Student, 3": lambda rng, n: rng.standard_t(3, n) / np.sqrt(3),
    "8 % five times": lambda rng, n: rng.standard_normal(n) * np.where(rng.random(n) < 0.08, 5.0, 1.0),
}


def truth(of: Sweep, compute: float) -> np.ndarray:
    """Of FIGURES, free of sign, N D being `compute`; the optimum by search."""
    E, A, alpha, B, beta = of.law
    size = np.linspace(0, np.log(compute), 400_001)
    loss = E + A * np.exp(-alpha * size) + B * np.exp(-beta * (np.log(compute) - size))
    best = size[loss.argmin()]
    logs = [np.log(value) for value in of.law]
    return np.array([*logs, logs[4] - logs[2], best, np.log(compute) - best, np.log(loss.min())])


def covered(of: Sweep, noise: float, kind: str, draws: int, seed: int = 0, resamples: int = 200):
    """[draw, figure]: whether the interval holds the truth, and its width; percentiles of resamples [draw, exponent]."""
    rng = np.random.default_rng(seed)
    where = laws.design([np.log(of.params), np.log(of.audio_seconds)])
    compute = 10 * float((of.params * of.audio_seconds).max())
    figures, true = laws.figures(where, [np.log(compute)], where.z[:0]), truth(of, compute)
    held, widths, percentiles = [], [], []
    for _ in range(draws):
        losses = np.log(of.loss) + noise * NOISES[kind](rng, len(of.loss))
        found = laws.fit(where, losses)
        drawn = intervals.resample(where, found, losses, resamples)
        ends = intervals.profile(where, found, losses, drawn, figures)
        low, high = np.where(ends.open_low, -np.inf, ends.low), np.where(ends.open_high, np.inf, ends.high)
        held.append((low <= true) & (true <= high))
        widths.append(high - low)
        low, high = np.quantile(drawn.fits.params[:, [2, 4]], [0.025, 0.975], axis=0)
        percentiles.append((low <= true[[2, 4]]) & (true[[2, 4]] <= high))
    return np.array(held), np.array(widths), np.array(percentiles)


def main(draws: int) -> None:
    """A row a case."""
    print("| runs | noise | " + " | ".join(FIGURES) + " | percentiles: alpha, beta | width of alpha, beta |")
    cases = [(name, noise, "normal") for name in ("4 x 3", "5 x 4") for noise in (0.005, 0.01)]
    cases += [("4 x 3", 0.01, kind) for kind in list(NOISES)[1:]]
    cases += [(name, 0.01, "normal") for name in ("4 x 3, 2 seeds", "6 x 6")]
    for name, noise, kind in cases:
        held, widths, percentiles = covered(SWEEPS[name], noise, kind, draws)
        shares = " | ".join(f"{100 * share:.0f}" for share in held.mean(0))
        others = ", ".join(f"{100 * share:.0f}" for share in percentiles.mean(0))
        wide = ", ".join(f"{np.exp(width / 2) - 1:.0%}" for width in np.median(widths[:, [2, 4]], axis=0))
        print(f"| {name} | {noise:.1%}, {kind} | {shares} | {others} | ± {wide} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""From a budget to runs: sizes N, seconds of audio D and bit rates R, and the rules that give a run the rest.

Every run is the base experiment at another size (ladder.py), for another number of steps, with all that its loss is
measured by left as it is. The rules, with everything of the base marked 0, B the batch in clips, w the width:

    steps          D / (B · seconds of a crop)
    batch          B = B0 · (D / D0)^batch_exponent, to a multiple of batch_multiple; exponent 0: always the base's
    learning rate  lr = lr0 · (B / B0)^lr_batch_exponent · (w0 / w)^lr_width_exponent
                   with µP the width is left to the initialisation and the rates of the layers (train/mup.py)
    warm-up        the base's, but no more than a tenth of the steps
    decay          the base's schedule over the whole of the run: none is another's beginning
    average        the EMA looks back over `ema_share` of the steps, at most as far as the base's: a run of any length
                   is then judged by weights that lag behind by the same share of it
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from codec_jax import models
from codec_jax.errors import UserError, require
from codec_jax.experiment import Experiment, MupConfig, OptimConfig
from codec_jax.scaling import bitrates, ladder

LEAST_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a run takes from its size and its data, see the formulas above; None is the base's."""

    batch_size: int | None = None
    batch_exponent: float = 0.0
    batch_multiple: int = 1
    learning_rate: float | None = None
    lr_batch_exponent: float = 0.5
    lr_width_exponent: float = 1.0
    ema_share: float = 0.02
    evaluations: int = 1
    checkpoints: int = 10
    mup: bool = False

    def validate(self) -> None:
        """Raises UserError for numbers that mean nothing."""
        counts = (
            1 if self.batch_size is None else self.batch_size,
            self.batch_multiple,
            self.evaluations,
            self.checkpoints,
        )
        require(min(counts) >= 1, "batch sizes and multiples, evaluations and checkpoints of a sweep are at least 1.")
        require(0 < self.ema_share <= 0.5, f"ema_share is a share of a run in (0, 0.5], not {self.ema_share}.")
        fine = self.learning_rate is None or self.learning_rate > 0
        require(fine, f"a sweep's learning rate must be positive, not {self.learning_rate}.")


class Point(NamedTuple):
    """One run that is wanted. params: asked of the ladder. bitrate: None is the base's. layers: None is the aspect's.

    flops: the IsoFLOP budget that it is of, None in a grid of D.
    """

    params: int
    audio_seconds: float
    bitrate: float | None = None
    layers: int | None = None
    seed: int = 0
    flops: float | None = None


class Run(NamedTuple):
    """One run that is planned. params, audio_seconds, bitrate, flops: what it really has. flops: of the whole run, as
    `ladder.Work.step` counts. codec_flops: the codec's part of them.
    """

    name: str
    params: int
    audio_seconds: float
    bitrate: float
    flops: float
    codec_flops: float
    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    width: int
    layers: int
    asked: Point
    experiment: Experiment


# ---- points ------------------------------------------------------------------------------------


def parametric(
    sizes: Sequence[int], seconds: Sequence[float], rates: Sequence[float | None], **more: Any
) -> list[Point]:
    """All combinations of sizes, seconds of audio and bit rates, for a parametric fit (Chinchilla's third way)."""
    return [Point(size, d, rate, **more) for rate in rates for size in sizes for d in seconds]


def isoflop(
    base: Experiment,
    budgets: Sequence[float],
    sizes: Sequence[int],
    rates: Sequence[float | None],
    target: str = "cpu",
    **more: Any,
) -> list[Point]:
    """Of every budget in FLOPs all sizes, each for as much audio as the budget buys it (Chinchilla's second way).

    target: see `ladder.work`.
    """
    require(all(0 < c < math.inf for c in budgets), "a compute budget is a positive number of FLOPs.")
    points = []
    for rate in rates:
        for size in sizes:
            sized = ladder.resize(bitrates.at_rate(base, rate), size, more.get("layers"))
            per_second = ladder.work(sized, target).step
            points += [Point(size, budget / per_second, rate, flops=budget, **more) for budget in budgets]
    return points


def around(base: Experiment, budget: float, count: int, seconds_per_parameter: float, target: str = "cpu") -> list[int]:
    """`count` sizes, a factor of the square root of two apart, around the one whose D / N is `seconds_per_parameter`.

    Where the optimum lies is not known beforehand: the ratio is a guess, and the fit refuses minima at the edge.
    """
    size = float(ladder.parameters(base))
    for _ in range(6):  # N² = C / (FLOPs per second and parameter · D / N), where these FLOPs hardly depend on N
        per_parameter = ladder.work(ladder.resize(base, round(size)), target).step / size
        size = math.sqrt(budget / (per_parameter * seconds_per_parameter))
    return [round(size * 2 ** ((i - (count - 1) / 2) / 2)) for i in range(count)]


# ---- one run -----------------------------------------------------------------------------------


def planned(base: Experiment, points: Sequence[Point], rules: Rules, target: str = "cpu") -> list[Run]:
    """Runs, with names of their own, from the smallest to the largest FLOPs. Raises UserError for what cannot be."""
    rules.validate()
    require(points, "the sweep is empty: give sizes, and budgets or seconds of audio.")
    runs = [_run(base, point, rules, target) for point in points]
    seen: dict[tuple, Run] = {}
    for run in runs:
        key = (run.params, run.layers, run.steps, run.batch_size, run.bitrate, run.seed)
        if key in seen:
            raise UserError(
                f"{run.asked.params:,} and {seen[key].asked.params:,} parameters are one rung, of {run.params:,}, for "
                f"{run.audio_seconds:g} s of audio: give sizes or seconds farther apart."
            )
        seen[key] = run
    return _named(sorted(runs, key=lambda run: (run.flops, run.params, run.seed)))


def _run(base: Experiment, point: Point, rules: Rules, target: str) -> Run:
    require(0 < point.audio_seconds < math.inf, f"a run needs seconds of audio above 0, not {point.audio_seconds:g}.")
    rung = ladder.rung(bitrates.at_rate(base, point.bitrate), point.params, point.layers)
    experiment, steps = resolved(base, rung.experiment, point, rules)
    experiment.validate()
    work, crop = ladder.work(experiment, target), _crop_seconds(experiment)
    seconds = steps * experiment.data.batch_size * crop
    return Run(
        name="",
        params=rung.params,
        audio_seconds=seconds,
        bitrate=ladder.bitrate(experiment),
        flops=work.step * seconds,
        codec_flops=(work.forward + work.backward) * seconds,
        seed=point.seed,
        steps=steps,
        batch_size=experiment.data.batch_size,
        learning_rate=experiment.optim.learning_rate,
        ema_decay=experiment.optim.ema_decay,
        width=rung.width,
        layers=rung.layers,
        asked=point,
        experiment=experiment,
    )


def resolved(base: Experiment, sized: Experiment, point: Point, rules: Rules) -> tuple[Experiment, int]:
    """The experiment of a run by the rules, and its steps. sized: the base on its rung of the ladder."""
    crop, usual = _crop_seconds(base), base.data.batch_size
    wanted = rules.batch_size or usual * (point.audio_seconds / _audio_seconds(base)) ** rules.batch_exponent
    multiple = math.lcm(rules.batch_multiple, base.training.accumulate)
    batch = max(1, round(wanted / multiple)) * multiple
    steps = round(point.audio_seconds / (batch * crop))
    require(
        steps >= LEAST_STEPS,
        f"{ladder.size_name(point.params)} parameters for {point.audio_seconds:g} s of audio are {steps} steps of "
        f"{batch * crop:g} s: give more audio, a larger budget, or smaller batches.",
    )
    grown = (batch / usual) ** rules.lr_batch_exponent
    if not rules.mup:
        grown *= (ladder_width(base) / ladder_width(sized)) ** rules.lr_width_exponent
    if rules.learning_rate is not None:
        grown *= rules.learning_rate / base.optim.learning_rate

    def tuned(optim: OptimConfig | None, rate: float) -> OptimConfig | None:
        if optim is None:
            return None
        warmup = max(1, min(optim.warmup_steps, steps // 10))
        decay = min(optim.ema_decay, max(0.0, 1 - 1 / (rules.ema_share * steps)))
        lr = float(f"{optim.learning_rate * rate:.6g}")
        return dataclasses.replace(optim, learning_rate=lr, warmup_steps=warmup, ema_decay=decay)

    every = {
        name: dataclasses.replace(
            stage, optim=tuned(stage.optim, grown), discriminator_optim=tuned(stage.discriminator_optim, 1.0)
        )
        for name, stage in sized.stages.items()
    }
    training = dataclasses.replace(
        sized.training,
        steps=steps,
        seed=point.seed,
        log_every=max(1, min(sized.training.log_every, steps // 20)),
        eval_every=math.ceil(steps / rules.evaluations),
        checkpoint_every=math.ceil(steps / rules.checkpoints),
        keep_checkpoints=1,
        max_samples=min(1, sized.training.max_samples),
    )
    optim = tuned(sized.optim, grown)
    assert optim is not None
    return (
        dataclasses.replace(
            sized,
            data=dataclasses.replace(sized.data, batch_size=batch),
            optim=optim,
            stages=every,
            training=training,
            mup=MupConfig(_mup_base(base)) if rules.mup else sized.mup,
        ),
        steps,
    )


def ladder_width(experiment: Experiment) -> int:
    """The width that learning rates go by: the widest stage of a TAAE, the coarsest scale of an ESC."""
    model = experiment.model
    return max(model.widths) if experiment.family == "taae" else model.h_dims[-1]


def _mup_base(base: Experiment) -> int:
    return base.model.channels if base.family == "taae" else ladder_width(base)  # validate() refuses the latter


def _crop_seconds(experiment: Experiment) -> float:
    return experiment.crop_samples / models.FAMILIES[experiment.family].geometry(experiment.codec).sample_rate


def _audio_seconds(experiment: Experiment) -> float:
    return experiment.training.steps * experiment.data.batch_size * _crop_seconds(experiment)


def _named(runs: Sequence[Run]) -> list[Run]:
    """Names of size, seconds, and of rate, depth and seed where these differ; fit for file systems and Kubernetes."""
    several = {
        "r": len({run.bitrate for run in runs}) > 1,
        "l": any(run.asked.layers for run in runs),
        "s": len({run.seed for run in runs}) > 1,
    }
    named: list[Run] = []
    taken: dict[str, int] = {}
    for run in runs:
        parts = {"r": round(run.bitrate), "l": run.layers, "s": run.seed}
        name = "-".join(
            [f"n{ladder.size_name(run.params)}", f"d{_seconds_name(run.audio_seconds)}"]
            + [f"{letter}{value}" for letter, value in parts.items() if several[letter]]
        )
        taken[name] = taken.get(name, 0) + 1
        named.append(run._replace(name=name if taken[name] == 1 else f"{name}-{taken[name]}"))
    return named


def _seconds_name(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 36_000 else f"{seconds / 3600:.0f}h"

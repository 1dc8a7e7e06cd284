"""The stages of a run with their absolute steps, and how the state passes from one to the next."""

from typing import NamedTuple

from codec_jax.errors import UserError
from codec_jax.experiment import Experiment, LossConfig, OptimConfig, StageConfig


class Stage(NamedTuple):
    """A stage with everything resolved: updates number start + 1 to stop."""

    name: str
    start: int
    stop: int
    losses: LossConfig
    optim: OptimConfig
    discriminator_optim: OptimConfig | None
    freeze: tuple[str, ...]
    quantise: bool
    fresh_optim: bool = False
    kmeans: int = 0
    revive_after: int = 0

    @property
    def steps(self) -> int:
        """Updates in the stage."""
        return self.stop - self.start


def resolve(experiment: Experiment) -> tuple[Stage, ...]:
    """The stages, scaled so that together they fill `training.steps`. Raises UserError where one gets no step."""
    configs = experiment.stages or {"training": StageConfig()}
    total, whole = experiment.training.steps, sum(config.steps for config in configs.values())
    stages, begun = [], 0.0
    for name, config in configs.items():
        start, begun = round(begun / whole * total), begun + config.steps
        stop = round(begun / whole * total)
        if start == stop:
            raise UserError(f"training.steps={total} leaves the stage {name} without a step: give more.")
        optim = config.optim or experiment.optim
        discriminator_optim = (config.discriminator_optim or optim) if config.discriminate else None
        losses = config.losses or experiment.losses
        how = {n: getattr(config, n) for n in ("freeze", "quantise", "fresh_optim", "kmeans", "revive_after")}
        stages.append(Stage(name, start, stop, losses, optim, discriminator_optim, **how))
    return tuple(stages)


def rescaled(experiment: Experiment) -> bool:
    """True where stages name absolute steps that do not add up to `training.steps`."""
    steps = [config.steps for config in experiment.stages.values()]
    return any(n > 1 for n in steps) and sum(steps) != experiment.training.steps


def at(stages: tuple[Stage, ...], step: int) -> Stage:
    """The stage of the next update after `step` of them; at the end of a run, its last."""
    return next((stage for stage in stages if step < stage.stop), stages[-1])


def named(stages: tuple[Stage, ...], name: str) -> Stage:
    """Raises UserError for a name that no stage has."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise UserError(f"there is no stage {name}: this experiment has {', '.join(stage.name for stage in stages)}.")

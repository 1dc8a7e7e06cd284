"""Training: `run(experiment, workdir)`."""

from codec_jax.train.loop import run
from codec_jax.train.stopping import Preempted

__all__ = ["Preempted", "run"]

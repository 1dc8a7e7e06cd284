"""Training: `run(experiment, workdir)`."""

from codec_jax.train.loop import run

__all__ = ["run"]

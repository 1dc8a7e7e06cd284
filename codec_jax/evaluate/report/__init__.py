"""report.html: one file that opens without a network, with the figures, plots and players of an evaluation."""

from codec_jax.evaluate.report.gather import Context
from codec_jax.evaluate.report.page import write

__all__ = ["Context", "write"]

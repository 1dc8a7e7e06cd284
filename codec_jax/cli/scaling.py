"""scaling: sweeps over sizes, audio and bit rates, and the laws fitted to them."""

from codec_jax.cli import scaling_sweep


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    p = verbs.add_parser("scaling", help="scaling laws of codecs", description="Scaling laws of codecs.")
    steps = p.add_subparsers(required=True, metavar="VERB")
    scaling_sweep.add_verbs(steps)

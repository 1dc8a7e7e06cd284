"""data synth: training corpora."""

import argparse
import pathlib

from codec_jax.cli.files import add_verb


def data_synth(arguments: argparse.Namespace) -> None:
    """The synthetic multilingual corpus."""
    from codec_jax.data import synth

    synth.synthesise(pathlib.Path(arguments.output), seed=arguments.seed, clips=arguments.clips)
    print(f"corpus: {arguments.output}/train and {arguments.output}/valid")


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    p = verbs.add_parser("data", help="training corpora", description="Training corpora.")
    corpora = p.add_subparsers(required=True, metavar="VERB")
    p = add_verb(corpora, "synth", data_synth, "codec-jax data synth -o corpus")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="made anew, with train/ and valid/ inside")
    p.add_argument("--clips", type=int, metavar="N", help="training clips (default: about half an hour of speech)")
    p.add_argument("--seed", type=int, default=0, help="another corpus of the same kind")

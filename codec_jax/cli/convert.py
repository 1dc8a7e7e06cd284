"""convert: checkpoints to and from PyTorch."""

import argparse

from codec_jax.cli.files import add_verb

_EXAMPLE = "codec-jax convert stable-codec/ stable-codec-jax --to jax"


def convert(arguments: argparse.Namespace) -> None:
    """Checkpoints between PyTorch and JAX, both ways, bit for bit."""
    from codec_jax import export, sources

    model = sources.open_model(
        arguments.source, arguments.weights, step=arguments.step, model_config=arguments.model_config
    )
    if arguments.to == "jax":
        export.to_jax(model, arguments.destination, arguments.force)
    else:
        export.to_torch(model, arguments.destination, arguments.target, arguments.force)
    kind = {"ema": "EMA weights", "raw": "raw weights", None: "weights"}[model.weights]
    step = f" of step {model.step}" if model.step is not None else ""
    print(f"{arguments.destination}: {model.family}, {export.count_parameters(model):,} parameters, {kind}{step}")
    for note in model.notes:
        print(note)
    print("Optimizer state is not converted: a fine-tune starts with fresh moments.")


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    p = add_verb(verbs, "convert", convert, _EXAMPLE)
    p.add_argument(
        "source",
        metavar="SRC",
        help="upstream directory (model_config.json of a TAAE or config.yaml of an ESC, with model.safetensors, .ckpt "
        "or .pth), training checkpoint, weights file, saved codec, run directory, or hub id",
    )
    p.add_argument(
        "destination", metavar="DST", help="a directory to make; with --to torch also weights alone, DST.safetensors"
    )
    p.add_argument("--to", required=True, choices=("jax", "torch"), help="jax: a codec for codec_jax.load")
    p.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="of a run or training checkpoint (ema where present)"
    )
    p.add_argument("--step", type=int, metavar="N", help="of a run (default: its newest complete checkpoint)")
    p.add_argument(
        "--model-config", metavar="FILE", help="upstream's model_config.json or config.yaml of a bare weights file"
    )
    p.add_argument(
        "--target",
        choices=("upstream", "twin"),
        default="upstream",
        help="with --to torch: twin allows what upstream cannot express, for codec_jax.pytorch alone",
    )
    p.add_argument("--force", action="store_true", help="replace DST")

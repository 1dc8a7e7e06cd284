"""An opened model to a directory: as codec_jax saves it, or as PyTorch loads it. Whole, or not at all."""

import contextlib
import math
import shutil
from collections.abc import Iterator

import jax
from etils import epath

from codec_jax import convert, experiment, model_card, storage
from codec_jax.convert import configs
from codec_jax.errors import UserError
from codec_jax.sources import Model

CARD = "README.md"


def to_jax(model: Model, destination: epath.PathLike, force: bool = False) -> None:
    """A saved codec, one parameter in memory at a time. Raises UserError where `destination` exists."""
    if epath.Path(destination).suffix == ".safetensors":
        raise UserError(f"{destination} is one file, and a saved codec is a directory.")
    config = {"family": model.family, **experiment.to_dict(model.config)}
    with staged(destination, force) as directory:
        storage.write(directory, config, model.variables, model.extras)


def to_torch(model: Model, destination: epath.PathLike, target: str = "upstream", force: bool = False) -> None:
    """Upstream's config and weights with a model card, or the weights alone where `destination` ends in .safetensors.

    target: "upstream", or "twin" for what only codec_jax.pytorch can load. Raises UserError where `destination` exists,
    and for a model that the target cannot express.
    """
    family = convert.FAMILIES[model.family]
    config, tensors = family.to_torch(model.config, model.variables, model.extras, target)
    metadata = model.extras.upstream.get("metadata", {} if model.extras.upstream else {"format": "pt"})
    destination = epath.Path(destination)
    if destination.suffix == ".safetensors":
        _check_free(destination, force)
        storage.write_tensors(destination, tensors, metadata)
        return
    with staged(destination, force) as directory:
        storage.write_tensors(directory / storage.WEIGHTS, tensors, metadata)
        configs.write(directory / family.CONFIG_FILE, config)
        (directory / CARD).write_text(model_card.text(model, count_parameters(model), target))


def count_parameters(model: Model) -> int:
    """Numbers in the parameters, read from shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.variables["params"]))


@contextlib.contextmanager
def staged(destination: epath.PathLike, force: bool) -> Iterator[epath.Path]:
    """A directory under a temporary name that takes its own once the block is done, and vanishes where it fails."""
    destination = epath.Path(destination)
    _check_free(destination, force)
    partial = destination.with_name(f".{destination.name}.partial")
    if partial.exists():
        partial.rmtree()
    try:
        partial.mkdir(parents=True)
        yield partial
        old = destination.with_name(f".{destination.name}.old")
        if destination.exists():
            destination.rename(old)
        partial.rename(destination)
        if old.exists():
            old.rmtree() if old.is_dir() else old.unlink()
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def _check_free(destination: epath.Path, force: bool) -> None:
    if destination.exists() and not force:
        raise UserError(f"{destination} exists already: give another destination, or --force to replace it.")
    if destination.is_dir() and not {path.name for path in destination.iterdir()} <= _OURS:
        raise UserError(f"{destination} holds more than a converted model, so it is not replaced: remove it first.")


_OURS = {storage.CONFIG, storage.WEIGHTS, storage.EXTRAS, CARD} | {m.CONFIG_FILE for m in convert.FAMILIES.values()}

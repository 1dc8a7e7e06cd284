"""What verbs share: flags, inputs found and checked before work begins, outputs that appear whole."""

import argparse
import pathlib
from collections.abc import Sequence

TOKENS = ".cjx"
AUDIO_OUT = (".wav", ".flac")


def add_verb(verbs, name: str, function, example: str) -> argparse.ArgumentParser:
    """A subparser whose help is the function's docstring."""
    text = function.__doc__.strip()
    p = verbs.add_parser(name, help=text, description=text, epilog=f"example: {example}")
    p.set_defaults(verb=function)
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def audio_inputs(names: Sequence[str]) -> list[pathlib.Path]:
    """Files as given, directories searched."""
    from codec_jax.audio import files

    found: list[pathlib.Path] = []
    for name in names:
        path = pathlib.Path(name)
        found += files.find(path) if path.is_dir() else [path]
    return found


def is_file(output: str, suffixes: Sequence[str]) -> bool:
    """True where -o names a file of this verb and not a directory."""
    return pathlib.Path(output).suffix.lower() in suffixes


def jobs_of(sources: list[pathlib.Path], arguments: argparse.Namespace, suffixes: tuple[str, ...]):
    """Every source with its outputs, checked before anything is computed: they exist, are distinct, and are free."""
    from codec_jax.errors import UserError

    output = pathlib.Path(arguments.output)
    for source in sources:
        if not source.is_file():
            raise UserError(f"there is no file {source}.")
    as_file = is_file(arguments.output, suffixes)
    if as_file and len(sources) > 1:
        raise UserError(f"{output} is one file, but there are {len(sources)} inputs: give a directory as -o.")
    if not as_file and is_file(arguments.output, (TOKENS, *AUDIO_OUT)):
        raise UserError(f"{output} has the wrong suffix: this verb writes {' and '.join(suffixes)} files.")
    jobs = []
    taken: dict[str, pathlib.Path] = {}
    for source in sources:
        if source.stem in taken:
            raise UserError(f"{taken[source.stem]} and {source} would both be written as {source.stem}{suffixes[0]}.")
        taken[source.stem] = source
        base = output.with_suffix("") if as_file else output / source.stem
        jobs.append((source, tuple(base.with_name(base.name + suffix) for suffix in suffixes)))
    existing = [target for _, targets in jobs for target in targets if target.exists()]
    if existing and not arguments.force:
        raise UserError(f"{existing[0]} exists already: give another -o, or --force to overwrite.")
    if not as_file and output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: give a directory as -o.")
    (output.parent if as_file else output).mkdir(parents=True, exist_ok=True)
    return jobs


def read_bytes(path: pathlib.Path) -> bytes:
    """Raises UserError where there is no such file."""
    from codec_jax.errors import UserError

    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    return path.read_bytes()


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Under a temporary name first."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def named(path: pathlib.Path, function):
    """function(path), errors prefixed with the file they are about."""
    from codec_jax.errors import UserError

    try:
        return function(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def progress(jobs):
    """A bar over several files, silent for one and where nobody looks."""
    from tqdm import tqdm

    return tqdm(jobs, unit="file", leave=False, disable=None if len(jobs) > 1 else True)

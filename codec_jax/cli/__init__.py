"""codec-jax: one thin function per verb. Exit codes: 0 done, 1 could not do it, 2 wrong usage."""

import argparse
import sys
from collections.abc import Sequence

from codec_jax import accelerators
from codec_jax.cli import bench, coding, convert, data, plan, scaling


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; errors are one sentence on stderr."""
    arguments = _parse(argv)
    if argv is None:  # a process of its own
        accelerators.ask_for_huge_pages()
    accelerators.choose_platform()
    from codec_jax.errors import UserError

    try:
        arguments.verb(arguments)
    except UserError as error:
        if arguments.debug:
            raise
        print(f"codec-jax: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("codec-jax: stopped", file=sys.stderr)
        return 1
    except Exception as error:
        if arguments.debug:
            raise
        first_line = str(error).splitlines()[0] if str(error) else ""
        print(f"codec-jax: {type(error).__name__}: {first_line} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags of the verb; --config.a.b=value is passed on as `overrides` where the verb takes a config."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    arguments.overrides = [flag for flag in rest if flag.startswith("--config.")]
    unknown = [flag for flag in rest if flag not in arguments.overrides]
    if unknown or (rest and not getattr(arguments, "takes_overrides", False)):
        top.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    return arguments


def parser() -> argparse.ArgumentParser:
    """All verbs and their flags."""
    top = argparse.ArgumentParser(prog="codec-jax", description="Neural speech codecs in JAX.")
    verbs = top.add_subparsers(required=True, metavar="VERB")
    coding.add_verbs(verbs)
    convert.add_verbs(verbs)
    data.add_verbs(verbs)
    plan.add_verbs(verbs)
    bench.add_verbs(verbs)
    scaling.add_verbs(verbs)
    return top

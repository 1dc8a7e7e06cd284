"""Trains a codec: python train.py --config=configs/taae.py:nano --workdir=runs/nano

The same command again goes on from the newest checkpoint. Any config field can be set on the command line:
--config.training.steps=200 --config.data.train=DIR --config.optim.learning_rate=3e-4
"""

import argparse
import sys


def main() -> int:
    """Exit codes: 0 trained, 1 could not, 2 wrong usage, 130 interrupted, 143 told to stop (SIGTERM), and saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE.py:VARIANT", help="or a resolved config.json")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="run directory, new or to be resumed")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments, overrides = parser.parse_known_args()

    from codec_jax import accelerators

    accelerators.ask_for_huge_pages()
    accelerators.choose_platform()
    import codec_jax.experiment  # after the arguments: --help need not wait for JAX
    import codec_jax.train
    from codec_jax.train import processes

    try:
        processes.start()
        experiment = codec_jax.experiment.load_config(arguments.config, overrides)
        codec_jax.train.run(experiment, arguments.workdir)
    except codec_jax.UserError as error:
        if arguments.debug:
            raise
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except codec_jax.train.Preempted as stop:
        print(f"train.py: {stop}; the same command goes on from there", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("train.py: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One run of a sweep, in a process of its own: python -m codec_jax.scaling.worker SWEEP NAME

Exit codes: 0 done, 1 could not, 75 another process has it, 143 told to stop (SIGTERM), and saved. Where the process
that started it is gone, it saves and stops too.
"""

import os
import signal
import sys
import threading
import time


def main() -> int:
    """Takes the lock, and trains unless the run is done by now."""
    directory, name = sys.argv[1:3]
    from codec_jax import accelerators

    accelerators.ask_for_huge_pages()
    accelerators.choose_platform()
    from codec_jax import train
    from codec_jax.errors import UserError
    from codec_jax.scaling import runner, sweep

    _follow(os.getppid())
    try:
        found = sweep.read(directory).named([name])
        (entry,) = found.entries
        with runner.locked(found.lock(name)) as ours:
            if not ours:
                print(f"{name}: {runner.holder(found.lock(name))} has it")
                return runner.HELD
            if not runner.is_done(entry):
                train.run(entry.experiment(), entry.workdir)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except train.Preempted as stop:
        print(stop, file=sys.stderr)
        return 143
    return 0


def _follow(parent: int) -> None:
    """Stops this process, saving, once the parent is another."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

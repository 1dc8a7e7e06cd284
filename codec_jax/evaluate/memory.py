"""The most memory that this process held at once, since asked."""

import math
import pathlib

_RESET, _STATUS = pathlib.Path("/proc/self/clear_refs"), pathlib.Path("/proc/self/status")


def restart() -> bool:
    """The mark of the highest resident memory is set back to what is resident now; False where that cannot be done."""
    try:
        _RESET.write_text("5")
    except OSError:  # not Linux, or not allowed
        return False
    return True


def peak_mib() -> float:
    """The highest resident memory of this process since `restart`, in MiB; NaN where Linux does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), math.nan)

"""Which platform JAX is to look for, decided before JAX starts."""

import glob
import os

_DEVICES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd")


def choose_platform() -> None:
    """With libtpu installed but no accelerator at hand, JAX would search for a TPU and print errors at every start."""
    if not any(glob.glob(pattern) for pattern in _DEVICES):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")

"""What must be decided before JAX starts: the platform it is to look for, and how malloc asks for memory."""

import glob
import os
import pathlib
import sys

_DEVICES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd")
_HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"


def choose_platform() -> None:
    """With libtpu installed but no accelerator at hand, JAX would search for a TPU and print errors at every start."""
    if not _accelerators():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def ask_for_huge_pages() -> None:
    """Starts this process again, once, with a malloc that asks Linux for huge pages, where it has to be asked.

    XLA takes fresh memory for every call, and on CPUs a quarter to a third of a training step went into faults of
    small pages (docs/training.md). glibc reads the setting at the start of a process alone. Nothing happens where
    GLIBC_TUNABLES is set, or an accelerator is at hand.
    """
    if _TUNABLES in os.environ or _accelerators() or not _HUGE_PAGES.exists():
        return
    if "[madvise]" in _HUGE_PAGES.read_text():
        os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _accelerators() -> bool:
    return any(glob.glob(pattern) for pattern in _DEVICES)

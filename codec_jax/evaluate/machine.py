"""What the figures of speed belong to: processors, accelerators, versions."""

import os
import pathlib
import platform
from importlib import metadata
from typing import Any

import jax

_PACKAGES = ("codec-jax", "jax", "jaxlib", "numpy", "scipy", "soundfile", "pesq", "pystoi", "librosa", "torch")


def describe() -> dict[str, Any]:
    """Of this machine and this process, for JSON: names, counts and versions, nothing of the user."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": " ".join(dict.fromkeys([device.platform, device.device_kind])),
        "devices": jax.device_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

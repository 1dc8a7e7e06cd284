"""The TPU chips that a plan can be made for, and the devices of a topology that need not exist."""

import importlib.util
import os
from typing import Any, NamedTuple

from codec_jax.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """One chip, all figures per chip; FLOP/s are those of bfloat16 products, bandwidths bytes per second.

    ici_bandwidth: in one direction over all links, half the bidirectional figure that the vendor prints.
    dcn_bandwidth: between slices. cycles_per_second: turns the compiler's `estimated_cycles` into seconds, set so that
    its estimate of an 8192³ bfloat16 product takes what peak FLOP/s allow (measured with libtpu 0.0.51).
    """

    name: str
    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    cycles_per_second: float


# Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture", read 2026-11. Network between slices:
# v5e 2 x 100 and v6e 4 x 200 Gbit/s per host of 8 chips, v5p 50 Gbit/s per chip; v4 is not printed, v5p's is taken.
CHIPS = {
    "v4": Chip("v4", 32 * GIB, 275e12, 1228e9, 150e9, 6.25e9, 1.13e9),
    "v5e": Chip("v5e", 16 * GIB, 197e12, 819e9, 200e9, 3.125e9, 1.71e9),
    "v5p": Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9, 6.25e9, 1.94e9),
    "v6e": Chip("v6e", 32 * GIB, 918e12, 1638e9, 400e9, 12.5e9, 2.49e9),
}
# What JAX calls a device, and peak FLOP/s of dense bfloat16 products: above for TPUs, data sheets for GPUs.
_DEVICE_KINDS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
}
# Without these, libtpu asks the network what machine this is, and reports at length that it is none.
_QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def chip(topology: str) -> Chip:
    """The chip of a topology such as "v5e:16x16". Raises UserError for any other text."""
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not shape:
        raise UserError(
            f'there is no topology "{topology}": name a chip ({", ".join(CHIPS)}) and a shape, as in v5e:16x16.'
        )
    return CHIPS[name]


def peak_flops(device_kind: str) -> float | None:
    """Of one device, by JAX's name for its kind ("TPU v5 lite", "NVIDIA H100 80GB HBM3"); None of an unknown one."""
    found = [name for name in _DEVICE_KINDS if f"{device_kind} ".startswith((f"{name} ", f"{name}-"))]
    return _DEVICE_KINDS[max(found, key=len)] if found else None


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of `slices` such slices, for compiling alone. Needs libtpu, no TPU.

    Raises UserError without libtpu, and for a shape that the chip does not come in.
    """
    name = chip(topology).name
    if not importlib.util.find_spec("libtpu"):
        raise UserError("planning compiles for a TPU with libtpu, which is not here: pip install 'codec-jax[plan]'.")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if name == "v4" else {}  # one device per chip
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # JAX raises its own kinds, and they change
        raise UserError(f'{name} does not come as "{topology}": {str(error).splitlines()[0]}') from error
    return list(found.devices)

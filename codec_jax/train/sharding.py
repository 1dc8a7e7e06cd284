"""The mesh, the one table of rules from logical names to mesh axes, and the shardings that follow."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from codec_jax.errors import UserError
from codec_jax.experiment import MeshConfig

PyTree = Any
AXES = ("replica", "fsdp", "tensor")

# Parameters are cut over fsdp along their input and over tensor along heads, hidden units or output channels.
RULES: Mapping[str, Any] = {
    "batch": ("replica", "fsdp"),
    "time": None,
    "layers": None,
    "tap": None,
    "embed": "fsdp",
    "heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "conv_in": "fsdp",
    "conv_out": "tensor",
}


def make_mesh(config: MeshConfig) -> Mesh:
    """All devices as replica × fsdp × tensor; a -1 takes what is left. Raises UserError where they do not divide."""
    sizes, devices = [config.replica, config.fsdp, config.tensor], jax.device_count()
    if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
        raise UserError(f"mesh sizes are positive, and at most one is -1, not {tuple(sizes)}.")
    known = math.prod(size for size in sizes if size > 0)
    sizes = [devices // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != devices:
        raise UserError(
            f"a mesh of {' x '.join(map(str, sizes))} needs {math.prod(sizes)} devices, but there are {devices}: "
            "set mesh.replica, mesh.fsdp and mesh.tensor, one of them to -1."
        )
    # Flax's logical constraints work under Auto axes alone.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises UserError unless the global batch divides over the mesh's data axes."""
    shards = mesh.shape["replica"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise UserError(f"data.batch_size={batch_size} does not divide over {shards} data shards: use a multiple.")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """A batch is cut along its first axis over all data axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
    """A sharding for every leaf of a tree with logical names (`nn.get_partition_spec` of a boxed abstract state).

    A mesh axis that does not divide its dimension is dropped, and the log says so once.
    """
    dropped: set[str] = set()
    specs = nn.get_partition_spec(abstract)
    leaves = nn.unbox(abstract)
    tree = jax.tree.map(
        lambda leaf, spec: NamedSharding(mesh, _resolve(leaf.shape, spec, mesh, dropped)),
        leaves,
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
    if dropped:
        logging.getLogger(__name__).warning("not sharded, because sizes do not divide: %s", ", ".join(sorted(dropped)))
    return tree


def _resolve(shape: tuple[int, ...], spec: PartitionSpec | None, mesh: Mesh, dropped: set[str]) -> PartitionSpec:
    axes: list[str | None] = []
    for size, name in zip(shape, tuple(spec or ())):
        axis = RULES[name] if name is not None else None
        if axis is not None and (size % mesh.shape[axis] or axis in axes):
            if size % mesh.shape[axis]:
                dropped.add(f"{name} of {size} over {axis}={mesh.shape[axis]}")
            axis = None
        axes.append(axis)
    return PartitionSpec(*axes)

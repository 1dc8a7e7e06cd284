"""The mesh, the one table of rules from logical names to mesh axes, and the shardings that follow."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
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


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (None: JAX's own) as replica × fsdp × tensor; a -1 takes what is left.

    Of several slices, `replica` joins them, so that only gradients cross the slow network between slices. Raises
    UserError where the sizes do not divide.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes, count = [config.replica, config.fsdp, config.tensor], len(devices)
    if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
        raise UserError(f"mesh sizes are positive, and at most one is -1, not {tuple(sizes)}.")
    known = math.prod(size for size in sizes if size > 0)
    sizes = [count // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != count:
        raise UserError(
            f"a mesh of {' x '.join(map(str, sizes))} needs {math.prod(sizes)} devices, but there are {count}: "
            "set mesh.replica, mesh.fsdp and mesh.tensor, one of them to -1."
        )
    # Flax's logical constraints work under Auto axes alone.
    axis_types = (AxisType.Auto,) * 3
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # A torus may be cut anywhere: 4 x 64 of 16 x 16 chips needs it.
    if slices == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=axis_types)
    if sizes[0] % slices:
        raise UserError(
            f"mesh.replica={sizes[0]} does not divide over the {slices} slices that it joins: use a multiple."
        )
    within = (sizes[0] // slices, sizes[1], sizes[2])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=axis_types)


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


def place(array: Any, leaf: Any) -> jax.Array:
    """A host's array on the devices, in the dtype and with the sharding of `leaf`, an array or its abstract shape."""
    host = np.asarray(array).astype(leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: host[index])


def whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """The tree as this process can read it: itself, or of several processes, gathered from all of them."""
    if jax.process_count() == 1:
        return tree
    gathered = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)


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

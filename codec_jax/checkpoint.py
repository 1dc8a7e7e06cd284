"""Checkpoints of a run, the only importer of Orbax (its v1 API).

A checkpoint is the training state and, as metadata, JSON: the data iterator's position, the resolved config, and
whatever else names what was saved. Restoring always goes through our own abstract tree and shardings.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from codec_jax.errors import UserError
from codec_jax.storage import is_remote

PyTree = Any
_STATE = "state"
_policies = ocp.training


class Checkpoints:
    """The directory `checkpoints/` of a run: saves in the background, keeps the last `keep` and every `keep_every`."""

    def __init__(self, directory: epath.PathLike, keep: int, keep_every: int = 0):
        preserved = [_policies.preservation_policies.LatestN(keep)]
        if keep_every:
            preserved.append(_policies.preservation_policies.EveryNSteps(keep_every))
        self._checkpointer = ocp.training.Checkpointer(
            _absolute(directory),
            # The loop decides when to save; Orbax's own default would save whenever it is idle, and keep everything.
            save_decision_policy=_policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_policies.preservation_policies.AnyPreservationPolicy(preserved),
            cleanup_tmp_directories=True,
        )
        self._directory = directory
        self._pending: Any = None

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: PyTree, metadata: dict[str, Any]) -> None:
        """Starts a save; waits for the one before, so that its failure surfaces here and not at the end."""
        self.wait()
        if step != self.latest_step:
            with self._explained():
                self._pending = self._checkpointer.save_checkpointables_async(
                    step, {_STATE: state}, custom_metadata=metadata, force=True
                )

    def wait(self) -> None:
        """Blocks until the save under way is complete. Raises UserError where it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._explained():
                pending.result()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the file system, of tensorstore, of an object store's client
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            newest = self.latest_step
            intact = "there is none yet" if newest is None else f"step {newest} is the last complete one"
            raise UserError(f"a checkpoint could not be saved to {self._directory}, {intact}: {reason}") from error

    def metadata(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step."""
        return dict(self._checkpointer.checkpointables_metadata(step).custom_metadata or {})

    def restore(self, step: int, abstract_state: PyTree) -> PyTree:
        """The state of a step, with the shardings of `abstract_state`."""
        return self._checkpointer.load_checkpointables(step, {_STATE: abstract_state})[_STATE]

    def close(self) -> None:
        """Waits and lets go of the directory."""
        self.wait()
        self._checkpointer.close()


def restore_subtree(
    directory: epath.PathLike, path: tuple[str, ...], step: int | None = None
) -> tuple[PyTree | None, int]:
    """One subtree of a checkpoint (None: the newest) on the default device, None where the state has no such subtree.

    Also the step. Raises UserError where the directory holds no complete checkpoint, or not the one asked for.
    """
    with ocp.training.Checkpointer(_absolute(directory)) as checkpointer:
        tree, step = _saved_tree(checkpointer, directory, step)
        wanted = _branch(tree, path)
        if wanted is None:
            return None, step
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding), wanted)
        loaded = checkpointer.load_checkpointables(step, {_STATE: _only(tree, path, abstract)})
    return _branch(loaded[_STATE], path), step


def subtree_shapes(directory: epath.PathLike, path: tuple[str, ...]) -> PyTree | None:
    """What `restore_subtree` would give of the newest checkpoint, as shapes and dtypes; no array is read."""
    with ocp.training.Checkpointer(_absolute(directory)) as checkpointer:
        found = _branch(_saved_tree(checkpointer, directory, None)[0], path)
    return found and jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), found)


def _saved_tree(checkpointer: Any, directory: epath.PathLike, step: int | None) -> tuple[PyTree, int]:
    """Orbax's metadata of the state of a step, and the step. Raises UserError as `restore_subtree`."""
    steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
    if not steps:
        raise UserError(f"{directory} holds no complete checkpoint yet.")
    step = max(steps) if step is None else step
    if step not in steps:
        raise UserError(f"{directory} has no checkpoint of step {step}: it has {', '.join(map(str, steps))}.")
    return checkpointer.checkpointables_metadata(step).metadata[_STATE], step


def _branch(tree: PyTree, path: tuple[str, ...]) -> PyTree | None:
    """The subtree at `path`, None where there is none or nothing in it."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return None if isinstance(tree, dict) and not tree else tree


def _absolute(directory: epath.PathLike) -> epath.Path:
    """Orbax writes under absolute paths alone; an object store's are, and `absolute` would spoil them."""
    path = epath.Path(directory)
    return path if is_remote(path) else path.absolute()


def _only(tree: PyTree, path: tuple[str, ...], value: PyTree) -> PyTree:
    """`tree` with placeholders everywhere but at `path`."""
    if not path:
        return value
    rest = {key: jax.tree.map(lambda _: ocp.PLACEHOLDER, branch) for key, branch in tree.items()}
    return {**rest, path[0]: _only(tree[path[0]], path[1:], value)}

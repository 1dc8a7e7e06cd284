"""What a codec family owes the rest of the house. `models/__init__.py` holds the table of families."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

PyTree = Any
Variables = Mapping[str, PyTree]
"""`{"params": ...}`, and for families with running statistics also `{"batch_stats": ...}`."""


class Rate(NamedTuple):
    """How latents become tokens: hashable, so that it can be static under jit.

    name: `"train"` for the bottleneck the codec was trained with, the name of a preset, or `"custom"`.
    stages: FSQ stages `((levels, scale), ...)`, or `(num_streams,)`: so many streams of an ESC, or codebooks of a TAAE
    that has several.
    """

    name: str
    stages: tuple


def in_streams(rate: Rate) -> bool:
    """True for rates of a number of streams, false for stages of levels."""
    return isinstance(rate.stages[0], int)


def rate_of_streams(count: int) -> Rate:
    """The rate of the first `count` streams."""
    return Rate(f"{count}streams", (count,))


class Geometry(NamedTuple):
    """Fixed facts about time.

    hop_length: samples per code frame. receptive_field: code frames to the left and right of a frame that can change
    its codes (or, decoding, its audio); None where chunked coding differs from whole-file coding by nature. alignment:
    chunks begin at multiples of so many code frames. normalizes: trained on audio of one loudness.
    """

    sample_rate: int
    channels: int
    hop_length: int
    receptive_field: tuple[int, int] | None
    alignment: int = 1
    normalizes: bool = True


class Keys(NamedTuple):
    """Chance in a training forward pass: one key for the whole step, and one for every clip of the batch.

    A clip's draws are its own, so that a batch computed in parts is the batch computed whole.
    """

    step: PRNGKeyArray
    clips: Key[Array, " batch"]


def spread(key: PRNGKeyArray, places: Int[Array, " batch"]) -> Keys:
    """One key into those of a step and of its clips, by their places in the global batch."""
    step, each = jax.random.split(key)
    return Keys(step, jax.vmap(lambda place: jax.random.fold_in(each, place))(places))


class Forward(NamedTuple):
    """What one training forward pass gives. `target` is the audio to compare `audio` with, aligned with it."""

    audio: Float[Array, "batch time channel"]
    target: Float[Array, "batch time channel"]
    codes: Int[Array, "batch codebook frame"]
    latents: Float[Array, "batch frame latent"]
    losses: dict[str, Array]
    variables: Variables


class Family(Protocol):
    """Module-level functions of `models/<family>.py`.

    `cfg` is an instance of `Config`: frozen, hashable, with `validate()`. `frames` counts the valid code frames of
    every item; what lies behind them is padding and changes nothing (None: all frames are valid).
    """

    Config: type

    def geometry(self, cfg: Any) -> Geometry: ...
    def padded_length(self, cfg: Any, samples: int) -> int: ...
    def rate(self, cfg: Any, bottleneck: Any, num_streams: int | None) -> Rate: ...
    def rates(self, cfg: Any) -> dict[str, Rate]: ...
    def codebook_sizes(self, cfg: Any, rate: Rate) -> tuple[int, ...]: ...
    def init(self, cfg: Any, key: PRNGKeyArray) -> Variables: ...
    def forward(
        self, cfg: Any, variables: Variables, audio: Array, keys: Keys, *, train: bool, quantise: bool = True
    ) -> Forward: ...
    def usage(self, cfg: Any, forward: Forward) -> Array: ...
    def encode(self, cfg: Any, variables: Variables, audio: Array, frames: Array | None, rate: Rate) -> Array: ...
    def decode(self, cfg: Any, variables: Variables, codes: Array, frames: Array | None, rate: Rate) -> Array: ...
    def flops(self, cfg: Any, samples: int) -> dict[str, float]: ...

    def has_tokens(self, cfg: Any) -> bool: ...

    # Learned codebooks; the last two only where there are some.
    def has_codebooks(self, cfg: Any) -> bool: ...
    def seed_codebooks(
        self, cfg: Any, variables: Variables, audio: Array, iterations: int, key: PRNGKeyArray
    ) -> Variables: ...
    def revive(self, cfg: Any, params: PyTree, points: PyTree, dead: Array, key: PRNGKeyArray) -> PyTree: ...

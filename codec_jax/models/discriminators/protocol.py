"""What a kind of discriminator owes the trainer. `discriminators/__init__.py` holds the table of kinds."""

from typing import Any, NamedTuple, Protocol

import flax.linen as nn
from jaxtyping import Array, Float


class Judgement(NamedTuple):
    """What one judge says of a batch: logits float32, and the output of every hidden layer, in order.

    Layouts are [batch, frame, bin, channel] of spectrograms, [batch, phase, frame, channel] of periods; logits have one
    channel. Higher logits: more real.
    """

    logits: Float[Array, "batch _ _ 1"]
    features: tuple[Float[Array, "batch _ _ _"], ...]


class Kind(Protocol):
    """Module-level functions of `models/discriminators/<kind>.py`.

    `cfg` is an instance of `Config`: frozen, hashable, with `validate()`, its `kind` (the name in the table of kinds)
    and `in_channels` (of the audio). Judges share nothing: each is a module of its own, [batch, time, channel] to its
    `Judgement`, so its feature maps need not outlive its own (rematerialised) loss.
    """

    Config: type

    def judges(self, cfg: Any) -> dict[str, nn.Module]: ...
    def least_samples(self, cfg: Any) -> int: ...
    def flops(self, cfg: Any, samples: int) -> dict[str, float]: ...

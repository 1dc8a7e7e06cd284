"""What a system is in a report: the original, an anchor, a peer, or a model of ours."""

from collections.abc import Collection

from codec_jax.evaluate import peers
from codec_jax.evaluate.systems import System

ORIGINAL, ANCHOR, PEER, MODEL = "original", "anchor", "peer", "model"


def kind(system: System, models: Collection[str]) -> str:
    """models: the families of ours. Files decoded elsewhere are a peer's."""
    if system.name == "original":
        return ORIGINAL
    if system.family in peers.ANCHORS:
        return ANCHOR
    return MODEL if system.family in models else PEER

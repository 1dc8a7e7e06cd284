"""What a system is in a report: the original, an anchor, a peer, or a model of ours."""

from codec_jax.evaluate import peers
from codec_jax.evaluate.systems import System

ORIGINAL, ANCHOR, PEER, MODEL = "original", "anchor", "peer", "model"


def kind(system: System) -> str:
    """By its name, and whether it codes: files decoded elsewhere are a peer's."""
    if system.name == "original":
        return ORIGINAL
    if system.family in peers.ANCHORS:
        return ANCHOR
    return MODEL if "@" in system.name and system.family not in peers.PEERS else PEER

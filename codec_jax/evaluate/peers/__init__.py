"""Other codecs to compare with, each used only where it is installed.

Payload alone is counted, not the container: of an Ogg or AMR file the packets without headers and framing, of codec2
its frames in bits, and so of a model's codes. (A .cjx of this library is counted whole, see systems.py.) What a
codec delays is taken off again, so that a system's output is aligned with its input.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from codec_jax.errors import UserError, require
from codec_jax.evaluate import systems
from codec_jax.evaluate.peers import pretrained, programs
from codec_jax.evaluate.peers.missing import Missing
from codec_jax.evaluate.systems import System

DIRECTORY = "dir:"


class Peer(NamedTuple):
    """A codec by name. swept: kbit/s of its bare name. build: the system at one rate; raises Missing, or UserError."""

    swept: tuple[float, ...]
    build: Callable[[float], System]


PEERS: dict[str, Peer] = {
    "opus": Peer((6, 9, 12, 16, 24), programs.opus),
    "codec2": Peer((0.7, 1.2, 1.6, 2.4, 3.2), programs.codec2),
    "speex": Peer((3.95, 7.75, 12.8, 16.8, 23.8), programs.speex),
    "amrwb": Peer((6.6, 8.85, 12.65, 15.85, 23.85), programs.amrwb),
    "encodec": Peer((1.5, 3, 6, 12, 24), pretrained.encodec),
    "dac": Peer((1, 2, 4, 6), pretrained.dac),
    "mimi": Peer((0.55, 1.1, 2.2, 4.4), pretrained.mimi),
}
ANCHORS: dict[str, Callable[[], list[System]]] = {
    "original": lambda: [systems.original()],
    "mu_law": lambda: [systems.mu_law()],
    "lowpass": lambda: [systems.lowpass(3500), systems.lowpass(7000)],
}


def known() -> str:
    """The names that `find` understands, in words."""
    swept = [f"{name}@{peer.swept[0]:g} or {name}" for name, peer in PEERS.items()]
    return ", ".join([*ANCHORS, "lowpass@3500", *swept, f"{DIRECTORY}PATH"])


def find(names: Sequence[str]) -> tuple[list[System], dict[str, str]]:
    """The systems of these names in their order, each once, and of every name that is missing here the reason.

    `opus@6` is one rate in kbit/s, `opus` several, `lowpass@3500` a cutoff in Hz, `dir:PATH` files that were decoded
    elsewhere. UserError: a name or rate that nobody knows, or a directory that cannot be used.
    """
    found: dict[str, System] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            for system in _named(name):
                twice = f"{name}: there is another system called {system.name}; rename the directory, or leave one out."
                require(not (name.startswith(DIRECTORY) and system.name in found), twice)
                found.setdefault(system.name, system)
        except Missing as reason:
            missing[name] = str(reason)
    return list(found.values()), missing


def _named(name: str) -> list[System]:
    if name.startswith(DIRECTORY):
        return [systems.decoded_directory(name.removeprefix(DIRECTORY))]
    if name in ANCHORS:
        return ANCHORS[name]()
    base, _, rate = name.partition("@")
    if base == "lowpass" and rate.isdecimal() and int(rate) > 0:
        return [systems.lowpass(int(rate))]
    if base not in PEERS or (name != base and not _is_number(rate)):
        raise UserError(f"there is no system {name} to compare with: choose from {known()}.")
    rates = PEERS[base].swept if name == base else (float(rate),)
    return [PEERS[base].build(float(kbps)) for kbps in rates]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal() and float(text) > 0

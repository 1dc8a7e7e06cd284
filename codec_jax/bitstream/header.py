"""The header of a .cjx file: what stands before the tokens, and the rate they were made at."""

import math
import struct
import zlib

import numpy as np

from codec_jax.errors import require
from codec_jax.models.protocol import Rate, in_streams, rate_of_streams
from codec_jax.quantizers import residual_fsq

MAGIC = b"\x89CJX"
VERSION = 1
FAMILIES = {"taae": 1, "esc": 2}
MAX_CODEBOOKS = 4096
BAD_HEADER = "The header of this .cjx file holds values that no encoder writes: encode the audio again."


def write(fields: dict) -> bytes:
    """All of a file before its first block, from the fields of an `Encoded`."""
    numbers = [FAMILIES[fields["family"]], fields["ndim"], len(fields["lengths"])]
    numbers += [fields[name] for name in ("sample_rate", "model_sample_rate", "hop_length")]
    parts = [*map(varint, numbers), _write_rate(fields["rate"], fields["codebook_sizes"])]
    for length, frames, gain in zip(fields["lengths"].tolist(), fields["frames"].tolist(), fields["gain"]):
        parts += [varint(length), varint(frames), struct.pack(">f", gain)]
    header = b"".join(parts)
    head = MAGIC + bytes([VERSION]) + varint(len(header)) + header
    return head + struct.pack(">I", zlib.crc32(head))


def _write_rate(rate: Rate, sizes: tuple[int, ...]) -> bytes:
    spelled = b"\2" + varint(len(rate.name.encode())) + rate.name.encode()
    name = {_derived_name(rate.stages): b"\0", "train": b"\1"}.get(rate.name, spelled)
    if in_streams(rate):
        return name + b"".join(map(varint, (2, *rate.stages, len(sizes), *sizes)))
    levels = [n for stage, _ in rate.stages for n in stage]
    kind, stored = (0, levels[:1]) if len(set(levels)) == 1 else (1, levels)
    numbers = (kind, len(rate.stages), len(rate.stages[0][0]), *stored)
    return name + b"".join(map(varint, numbers)) + b"".join(_write_scale(scale) for _, scale in rate.stages)


def _write_scale(scale: float) -> bytes:
    mantissa, exponent = math.frexp(scale)  # 2^-n is 0.5 * 2^(1 - n)
    if mantissa == 0.5 and 0 <= 1 - exponent <= 63:
        return bytes([1 - exponent])
    return b"\xff" + struct.pack(">d", scale)


def varint(value: int) -> bytes:
    """7 bits a byte, most significant first, the top bit set on all but the last."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def _derived_name(stages: tuple) -> str:
    if isinstance(stages[0], int):
        return rate_of_streams(stages[0]).name
    return next((name for name, preset in residual_fsq.PRESETS.items() if preset == stages), "custom")


class _Reader:
    """Takes fields off the front of some bytes; UserError where they end or make no sense."""

    def __init__(self, data: bytes, position: int = 0):
        self.data, self.position = data, position

    def take(self, size: int) -> bytes:
        require(size <= len(self.data) - self.position, BAD_HEADER)
        self.position += size
        return self.data[self.position - size : self.position]

    def float32(self) -> float:
        return struct.unpack(">f", self.take(4))[0]

    def varint(self, low: int = 0, high: int = 2**62) -> int:
        value, byte = 0, 0x80
        while byte & 0x80:
            (byte,) = self.take(1)
            value = value << 7 | byte & 0x7F
            require(value <= high, BAD_HEADER)
        require(value >= low, BAD_HEADER)
        return value


def read(data: bytes) -> tuple[dict, int, int]:
    """All fields but codes, where the blocks start, and the header's CRC. UserError: no header, or a damaged one."""
    ours = data[:4] == MAGIC[: len(data)] != b""
    require(ours, "This is not a .cjx file: it does not begin like one.")
    short = f"This .cjx file is cut short or damaged: it ends after {len(data)} bytes, within its header."
    require(len(data) > 14, short)  # so the size of the header is there, whatever follows
    versions = f"format version {data[4]}, but this codec_jax reads version {VERSION}"
    require(data[4] == VERSION, f"This .cjx file has {versions}: install the codec_jax that wrote it.")
    start = _Reader(data, 5)
    end = start.varint(high=2**40) + start.position
    require(end + 4 <= len(data), short)
    (crc,) = struct.unpack_from(">I", data, end)
    require(crc == zlib.crc32(data[:end]), "The header of this .cjx file is damaged: encode it again.")
    reader = _Reader(data[:end], start.position)
    fields = _read_fields(reader)
    require(reader.position == end, BAD_HEADER)
    return fields, end + 4, crc


def _read_fields(reader: _Reader) -> dict:
    family = reader.varint()
    names = {number: name for name, number in FAMILIES.items()}
    require(family in names, f"This .cjx file is of codec family {family}, unknown to this codec_jax.")
    fields: dict = {"family": names[family], "ndim": reader.varint(1, 3)}
    batch = reader.varint(1)
    for name in ("sample_rate", "model_sample_rate", "hop_length"):
        fields[name] = reader.varint(1, 2**31 - 1)
    fields["rate"], fields["codebook_sizes"] = _read_rate(reader)
    # Every item takes bytes, so the header's size bounds the loop.
    items = [(reader.varint(), reader.varint(0, 2**40), reader.float32()) for _ in range(batch)]
    lengths, frames, gain = map(np.array, zip(*items))
    return {**fields, "lengths": lengths, "frames": frames, "gain": gain.astype(np.float32)}


def _read_rate(reader: _Reader) -> tuple[Rate, tuple[int, ...]]:
    code = reader.varint(0, 2)
    name = reader.take(reader.varint()).decode(errors="replace") if code == 2 else "train"
    kind = reader.varint(0, 2)
    if kind == 2:
        stages: tuple = (reader.varint(),)
        sizes = tuple(reader.varint(2, 2**31) for _ in range(reader.varint(1, MAX_CODEBOOKS)))
    else:
        count, dims = reader.varint(1, MAX_CODEBOOKS), reader.varint(1, 30)
        same = reader.varint(2, 2**31) if kind == 0 else 0
        levels = [tuple(same or reader.varint(2, 2**31) for _ in range(dims)) for _ in range(count)]
        stages = residual_fsq.parse([(stage, _read_scale(reader)) for stage in levels])
        sizes = residual_fsq.codebook_sizes(stages)
    return Rate(_derived_name(stages) if code == 0 else name, stages), sizes


def _read_scale(reader: _Reader) -> float:
    (code,) = reader.take(1)
    return 2.0**-code if code < 255 else struct.unpack(">d", reader.take(8))[0]

"""The payload of a .cjx file: tokens packed into bits, in blocks that each carry a checksum."""

import itertools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32

from codec_jax.bitstream.header import BAD_HEADER
from codec_jax.errors import require
from codec_jax.models.protocol import Rate, in_streams, rate_of_streams

_MAX_CODES = 2**31  # entries of `codes`: a header that asks for more is refused before anything is allocated


def bit_width(size: int) -> int:
    """ceil(log2(size)): bits of one token of a codebook of `size` entries."""
    return (size - 1).bit_length()


def block_frames(frames: int) -> int:
    """Frames per block: a quarter of the item, at least 64, a multiple of 8 so that blocks end on a byte."""
    return max(64, -(-frames // 32) * 8)


def layers(rate: Rate, sizes: tuple[int, ...]) -> list[slice]:
    """The codebooks that are packed together: all of them, or of streams one after the other those of each."""
    count = rate.stages[0] if in_streams(rate) and len(sizes) % rate.stages[0] == 0 else 1
    each = len(sizes) // count
    return [slice(n * each, (n + 1) * each) for n in range(count)]


def blocks(frames: list[int], layers: list[slice]) -> Iterator[tuple[slice, int, int, int]]:
    """(codebooks, item, first frame, end) of every block in file order."""
    for books in layers:
        for item, count in enumerate(frames):
            for start in range(0, count, block_frames(count)):
                yield books, item, start, min(start + block_frames(count), count)


def cut_to(fields: dict, there: int) -> dict:
    """The fields of a file that was cut to `there` bytes of payload just behind a stream: those of fewer streams."""
    rate, sizes, frames = fields["rate"], fields["codebook_sizes"], fields["frames"].tolist()
    parts = layers(rate, sizes)
    ends = list(itertools.accumulate(size(frames, [books], sizes) for books in parts))
    for count, end in enumerate(ends, start=1):
        if end == there < ends[-1]:  # of clips without a frame, all streams end where the first does
            return {**fields, "rate": rate_of_streams(count), "codebook_sizes": sizes[: parts[count - 1].stop]}
    return fields


def size(frames: list[int], layers: list[slice], sizes: tuple[int, ...]) -> int:
    """Bytes of all blocks of these codebooks, checksums included."""
    return sum(packed_size(stop - start, sizes[books]) + 4 for books, _, start, stop in blocks(frames, layers))


def check_size(there: int, frames: list[int], layers: list[slice], sizes: tuple[int, ...]) -> None:
    """UserError unless `there` bytes are just what the blocks of these items take."""
    missing = size(frames, layers, sizes) - there
    require(missing <= 0, f"This .cjx file is cut short: {missing} of its bytes are missing at the end.")
    require(missing >= 0, f"This .cjx file has {-missing} surplus bytes at its end: is it two files in one?")
    require(len(frames) * len(sizes) * max(frames) <= _MAX_CODES, BAD_HEADER)


def block_crc(packed: bytes, seed: int, number: int) -> bytes:
    """The 4 bytes behind a block; `number` counts the blocks of the file."""
    return struct.pack(">I", zlib.crc32(packed, (seed + number) & 0xFFFFFFFF))


def packed_size(frames: int, sizes: tuple[int, ...]) -> int:
    """Bytes of one block's tokens."""
    return -(-frames * sum(map(bit_width, sizes)) // 8)


def pack(codes: Int32[np.ndarray, "codebook frame"], sizes: tuple[int, ...]) -> bytes:
    """One block's tokens, frame by frame, in whole bits each."""
    bits = []
    for row, size in zip(codes, sizes):
        bits += [(row >> shift & 1).astype(np.uint8) for shift in reversed(range(bit_width(size)))]
    return np.packbits(np.stack(bits, axis=1)).tobytes()


def unpack(packed: bytes, frames: int, sizes: tuple[int, ...]) -> Int32[np.ndarray, "codebook frame"]:
    """The inverse of `pack`."""
    width = sum(map(bit_width, sizes))
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=frames * width).reshape(frames, width)
    codes, column = np.zeros((len(sizes), frames), np.int32), 0
    for row, size in zip(codes, sizes):
        for _ in range(bit_width(size)):
            row <<= 1
            row |= bits[:, column]
            column += 1
    return codes

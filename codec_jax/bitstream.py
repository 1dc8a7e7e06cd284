r"""`Encoded`, what a codec's encoder gives and its decoder takes, and its bytes: the container `.cjx`.

Layout, version 1. A varint is an unsigned integer in 7-bit groups, most significant group first, the top bit
set on all but the last. Everything else is in network byte order too.

    magic         4 bytes    89 43 4A 58 ("\x89CJX")
    version       1 byte     1
    header size   varint     bytes from family to the last gain
    family        varint     1 taae, 2 esc
    ndim          varint     rank of the encoded array: 1, 2 or 3
    batch         varint     items
    sample_rate   varint     Hz, of the input
    model_rate    varint     Hz, of the model
    hop_length    varint     model samples per frame
    rate name     varint     0 follows from the stages (a preset's name, else "custom"), 1 "train",
                             2 spelled out: varint size and UTF-8 follow
    rate kind     varint     0 FSQ with the same levels everywhere, 1 any FSQ, 2 streams
      kinds 0, 1  varints    stages, dims, then levels: once (0), or dims of them per stage (1)
                  per stage  scale: 1 byte n <= 63 for 2^-n, or 255 and a float64
      kind 2      varints    num_streams, codebooks, size of every codebook
    per item      varints    length (samples at sample_rate before padding), frames
                  4 bytes    gain, float32
    header CRC    4 bytes    CRC-32 of all bytes so far
    per item      blocks     (of streams, all items of the first stream, then of the second, ...: cut behind a
                             stream, the file is one of the streams so far)
                             at most 4 (see `block_frames`): codes frame by frame, codebook by codebook within
                             a frame, ceil(log2(size)) bits each, most significant first, no gaps, the last
                             block filled up to a byte with zero bits; each block is followed by its CRC-32
                             (4 bytes), started from header CRC + number of the block in the file, so that
                             no block passes for another

Around the packed codes of one clip that is at most 64 bytes for every preset and for the training levels.
"""

import dataclasses
import itertools
import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int32, Integer

from codec_jax.errors import UserError
from codec_jax.models.protocol import Rate
from codec_jax.quantizers import residual_fsq

MAGIC = b"\x89CJX"
VERSION = 1
FAMILIES = {"taae": 1, "esc": 2}
_MAX_CODEBOOKS = 4096
_MAX_CODES = 2**31  # entries of `codes`: a header that asks for more is refused before anything is allocated
_BAD_HEADER = "The header of this .cjx file holds values that no encoder writes: encode the audio again."


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of a batch of clips, and what decoding needs to give audio of the right length, level and shape.

    family: of the codec. rate: how latents became tokens. codes: [batch, codebook, frame]; what lies behind
    an item's last frame is 0. lengths: samples of each item before padding, at sample_rate. sample_rate:
    Hz, of the audio that was encoded. gain: what encode multiplied each item by. model_sample_rate: Hz.
    hop_length: model samples per frame. codebook_sizes: number of different tokens per codebook. ndim: rank
    of the encoded array. frames: frames per item.

    Building one cuts codes to the longest item and zeroes the padding (in a copy). UserError: fields that
    contradict each other, or a token its codebook does not have. `==` compares all fields, arrays by value.
    """

    family: str
    rate: Rate
    codes: Integer[np.ndarray, "batch codebook frame"]
    lengths: Integer[np.ndarray, " batch"]
    sample_rate: int
    gain: Float[np.ndarray, " batch"]
    model_sample_rate: int
    hop_length: int
    codebook_sizes: tuple[int, ...]
    ndim: int
    frames: Integer[np.ndarray, " batch"]

    def __post_init__(self):
        _check_fields(self)
        frames = self.frames.astype(np.int64)
        valid = np.arange(frames.max()) < frames[:, None]
        codes = np.where(valid[:, None], self.codes[:, :, : frames.max()], 0)
        for number, size in enumerate(self.codebook_sizes):
            low, high = codes[:, number].min(initial=0), codes[:, number].max(initial=0)
            wrong = f"Codebook {number} holds tokens from {low} to {high}, beyond its 0 to {size - 1}"
            _require(low >= 0 and high < size, f"{wrong}: they are damaged or belong to another rate.")
        codes, gain = codes.astype(np.int32), self.gain.astype(np.float32)  # copies: nothing is shared
        vars(self).update(codes=codes, gain=gain, frames=frames, lengths=self.lengths.astype(np.int64))

    @property
    def num_codebooks(self) -> int:
        """Tokens per frame."""
        return len(self.codebook_sizes)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.model_sample_rate / self.hop_length

    @property
    def bits_per_frame(self) -> int:
        """Bits of one frame's tokens, each in whole bits."""
        return sum(map(bit_width, self.codebook_sizes))

    @property
    def bitrate(self) -> float:
        """Nominal bits per second, without the container."""
        return self.frame_rate * self.bits_per_frame

    @property
    def duration(self) -> np.ndarray:
        """Seconds of every item, float64 [batch]."""
        return self.lengths / self.sample_rate

    def to_bytes(self) -> bytes:
        """The bytes of a .cjx file, see the module's docstring."""
        header = _write_header(self)
        head = MAGIC + bytes([VERSION]) + _varint(len(header)) + header
        seed = zlib.crc32(head)
        parts = [head, struct.pack(">I", seed)]
        blocks = _blocks(self.frames.tolist(), _layers(self.rate, self.codebook_sizes))
        for number, (books, item, start, stop) in enumerate(blocks):
            packed = _pack(self.codes[item, books, start:stop], self.codebook_sizes[books])
            parts += [packed, _block_crc(packed, seed, number)]
        return b"".join(parts)

    def prefix(self, num_streams: int) -> "Encoded":
        """The first streams alone, as if no more had been encoded. UserError: there are not so many, or no streams."""
        layers = _layers(self.rate, self.codebook_sizes)
        _require(_in_streams(self.rate), f"Tokens of {self.family} are not in streams: encode at another rate.")
        fine = 1 <= num_streams <= len(layers)
        _require(fine, f"There are {len(layers)} streams here, so a prefix has 1 to {len(layers)}, not {num_streams}.")
        stop = layers[num_streams - 1].stop
        return dataclasses.replace(
            self,
            rate=_rate_of_streams(num_streams),
            codes=self.codes[:, :stop],
            codebook_sizes=self.codebook_sizes[:stop],
        )

    def stream_ends(self) -> list[int]:
        """Bytes of the file up to the end of every stream; cut there, it is a file of the streams so far."""
        layers, frames = _layers(self.rate, self.codebook_sizes), self.frames.tolist()
        sizes = [_payload_size(frames, [books], self.codebook_sizes) for books in layers]
        return [len(self.to_bytes()) - sum(sizes[n + 1 :]) for n in range(len(sizes))]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> "Encoded":
        """Reads the bytes of a .cjx file. UserError: something else than that, a newer version, missing or
        surplus bytes, damage anywhere (every flipped bit is noticed), values no encoder writes.
        """
        data = bytes(data)
        fields, position, seed = _read_header(data)
        fields = _cut_to(fields, len(data) - position)
        sizes, frames = fields["codebook_sizes"], fields["frames"].tolist()
        layers = _layers(fields["rate"], sizes)
        _check_size(len(data) - position, frames, layers, sizes)
        codes = np.zeros((len(frames), len(sizes), max(frames)), np.int32)
        for number, (books, item, start, stop) in enumerate(_blocks(frames, layers)):
            packed = data[position : position + _packed_size(stop - start, sizes[books])]
            position += len(packed) + 4
            if data[position - 4 : position] != _block_crc(packed, seed, number):
                seconds = fields["hop_length"] / fields["model_sample_rate"]
                block = f"block {start // block_frames(frames[item]) + 1} of item {item}"
                span = f"{start * seconds:.2f} s to {stop * seconds:.2f} s"
                raise UserError(f"This .cjx file is damaged in {block}, {span}: fetch or encode it again.")
            codes[item, books, start:stop] = _unpack(packed, stop - start, sizes[books])
        return cls(codes=codes, **fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoded):
            return NotImplemented
        mine, theirs = vars(self), vars(other)
        same = all(np.array_equal(mine[n], theirs[n]) for n in mine if n != "rate")
        return same and self.rate == other.rate


def bit_width(size: int) -> int:
    """ceil(log2(size)): bits of one token of a codebook of `size` entries."""
    return (size - 1).bit_length()


def block_frames(frames: int) -> int:
    """Frames per block: a quarter of the item, at least 64, a multiple of 8 so that blocks end on a byte."""
    return max(64, -(-frames // 32) * 8)


def _require(fine: bool | np.bool, sentence: str) -> None:
    if not fine:
        raise UserError(sentence)


def _check_fields(enc: Encoded) -> None:
    shape, sizes, stages = enc.codes.shape, enc.codebook_sizes, enc.rate.stages
    _require(enc.family in FAMILIES, f"The codec family is one of {list(FAMILIES)}, not {enc.family!r}.")
    batched = enc.ndim in (2, 3) and shape[0] > 0
    _require(batched or (enc.ndim == shape[0] == 1), f"{enc.ndim} dimensions cannot hold {shape[0]} items.")
    sized = 1 <= shape[1] == len(sizes) <= _MAX_CODEBOOKS and all(2 <= size <= 2**31 for size in sizes)
    _require(sized, f"{shape[1]} codebooks cannot have the sizes {sizes}.")
    _require(_fits(stages, sizes), f"Codebook sizes {sizes} are not those of the rate's stages {stages}.")
    positive = all(1 <= n < 2**31 for n in (enc.sample_rate, enc.model_sample_rate, enc.hop_length))
    _require(positive, "Sample rates and hop length must be positive and below 2^31.")
    counted = enc.lengths.min() >= 0 and enc.frames.min() >= 0 and enc.frames.max() <= shape[2]
    _require(counted, f"Lengths and frames must be at least 0, and frames at most {shape[2]}.")
    _require(np.isfinite(enc.gain).all(), "Gains must be finite.")


def _fits(stages: tuple, sizes: tuple[int, ...]) -> bool:
    if len(stages) == 1 and isinstance(stages[0], int):
        return 0 < stages[0] < 2**31  # how streams share the codebooks is the family's business
    return residual_fsq.parse(stages) == stages and residual_fsq.codebook_sizes(stages) == sizes


def _derived_name(stages: tuple) -> str:
    if isinstance(stages[0], int):
        return _rate_of_streams(stages[0]).name
    return next((name for name, preset in residual_fsq.PRESETS.items() if preset == stages), "custom")


def _in_streams(rate: Rate) -> bool:
    return isinstance(rate.stages[0], int)


def _rate_of_streams(count: int) -> Rate:
    return Rate(f"{count}streams", (count,))


def _layers(rate: Rate, sizes: tuple[int, ...]) -> list[slice]:
    """The codebooks that are packed together: all of them, or of streams one after the other those of each."""
    count = rate.stages[0] if _in_streams(rate) and len(sizes) % rate.stages[0] == 0 else 1
    each = len(sizes) // count
    return [slice(n * each, (n + 1) * each) for n in range(count)]


def _blocks(frames: list[int], layers: list[slice]) -> Iterator[tuple[slice, int, int, int]]:
    """(codebooks, item, first frame, end) of every block in file order."""
    for books in layers:
        for item, count in enumerate(frames):
            for start in range(0, count, block_frames(count)):
                yield books, item, start, min(start + block_frames(count), count)


def _cut_to(fields: dict, there: int) -> dict:
    """The fields of a file that was cut to `there` bytes of payload just behind a stream: those of fewer streams."""
    rate, sizes, frames = fields["rate"], fields["codebook_sizes"], fields["frames"].tolist()
    layers = _layers(rate, sizes)
    ends = itertools.accumulate(_payload_size(frames, [books], sizes) for books in layers)
    for count, end in enumerate(itertools.islice(ends, len(layers) - 1), start=1):
        if end == there:
            return {**fields, "rate": _rate_of_streams(count), "codebook_sizes": sizes[: layers[count - 1].stop]}
    return fields


def _block_crc(packed: bytes, seed: int, number: int) -> bytes:
    return struct.pack(">I", zlib.crc32(packed, (seed + number) & 0xFFFFFFFF))


def _packed_size(frames: int, sizes: tuple[int, ...]) -> int:
    return -(-frames * sum(map(bit_width, sizes)) // 8)


def _pack(codes: Int32[np.ndarray, "codebook frame"], sizes: tuple[int, ...]) -> bytes:
    bits = []
    for row, size in zip(codes, sizes):
        bits += [(row >> shift & 1).astype(np.uint8) for shift in reversed(range(bit_width(size)))]
    return np.packbits(np.stack(bits, axis=1)).tobytes()


def _unpack(packed: bytes, frames: int, sizes: tuple[int, ...]) -> Int32[np.ndarray, "codebook frame"]:
    width = sum(map(bit_width, sizes))
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=frames * width).reshape(frames, width)
    codes, column = np.zeros((len(sizes), frames), np.int32), 0
    for row, size in zip(codes, sizes):
        for _ in range(bit_width(size)):
            row <<= 1
            row |= bits[:, column]
            column += 1
    return codes


def _varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def _write_header(enc: Encoded) -> bytes:
    times = (enc.sample_rate, enc.model_sample_rate, enc.hop_length)
    parts = [*map(_varint, (FAMILIES[enc.family], enc.ndim, len(enc.codes), *times))]
    parts.append(_write_rate(enc.rate, enc.codebook_sizes))
    for length, frames, gain in zip(enc.lengths.tolist(), enc.frames.tolist(), enc.gain):
        parts += [_varint(length), _varint(frames), struct.pack(">f", gain)]
    return b"".join(parts)


def _write_rate(rate: Rate, sizes: tuple[int, ...]) -> bytes:
    spelled = b"\2" + _varint(len(rate.name.encode())) + rate.name.encode()
    name = {_derived_name(rate.stages): b"\0", "train": b"\1"}.get(rate.name, spelled)
    if isinstance(rate.stages[0], int):
        return name + b"".join(map(_varint, (2, *rate.stages, len(sizes), *sizes)))
    levels = [n for stage, _ in rate.stages for n in stage]
    kind, stored = (0, levels[:1]) if len(set(levels)) == 1 else (1, levels)
    numbers = (kind, len(rate.stages), len(rate.stages[0][0]), *stored)
    return name + b"".join(map(_varint, numbers)) + b"".join(_write_scale(scale) for _, scale in rate.stages)


def _write_scale(scale: float) -> bytes:
    mantissa, exponent = math.frexp(scale)  # 2^-n is 0.5 * 2^(1 - n)
    if mantissa == 0.5 and 0 <= 1 - exponent <= 63:
        return bytes([1 - exponent])
    return b"\xff" + struct.pack(">d", scale)


class _Reader:
    """Takes fields off the front of some bytes; UserError where they end or make no sense."""

    def __init__(self, data: bytes, position: int = 0):
        self.data, self.position = data, position

    def take(self, size: int) -> bytes:
        _require(size <= len(self.data) - self.position, _BAD_HEADER)
        self.position += size
        return self.data[self.position - size : self.position]

    def float32(self) -> float:
        return struct.unpack(">f", self.take(4))[0]

    def varint(self, low: int = 0, high: int = 2**62) -> int:
        value, byte = 0, 0x80
        while byte & 0x80:
            (byte,) = self.take(1)
            value = value << 7 | byte & 0x7F
            _require(value <= high, _BAD_HEADER)
        _require(value >= low, _BAD_HEADER)
        return value


def _read_header(data: bytes) -> tuple[dict, int, int]:
    """All fields but codes, where the blocks start, and the header's CRC."""
    ours = data[:4] == MAGIC[: len(data)] != b""
    _require(ours, "This is not a .cjx file: it does not begin like one.")
    short = f"This .cjx file is cut short or damaged: it ends after {len(data)} bytes, within its header."
    _require(len(data) > 14, short)  # so the size of the header is there, whatever follows
    versions = f"format version {data[4]}, but this codec_jax reads version {VERSION}"
    _require(data[4] == VERSION, f"This .cjx file has {versions}: install the codec_jax that wrote it.")
    start = _Reader(data, 5)
    end = start.varint(high=2**40) + start.position
    _require(end + 4 <= len(data), short)
    (crc,) = struct.unpack_from(">I", data, end)
    _require(crc == zlib.crc32(data[:end]), "The header of this .cjx file is damaged: encode it again.")
    reader = _Reader(data[:end], start.position)
    fields = _read_fields(reader)
    _require(reader.position == end, _BAD_HEADER)
    return fields, end + 4, crc


def _read_fields(reader: _Reader) -> dict:
    family = reader.varint()
    names = {number: name for name, number in FAMILIES.items()}
    _require(family in names, f"This .cjx file is of codec family {family}, unknown to this codec_jax.")
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
        sizes = tuple(reader.varint(2, 2**31) for _ in range(reader.varint(1, _MAX_CODEBOOKS)))
    else:
        count, dims = reader.varint(1, _MAX_CODEBOOKS), reader.varint(1, 30)
        same = reader.varint(2, 2**31) if kind == 0 else 0
        levels = [tuple(same or reader.varint(2, 2**31) for _ in range(dims)) for _ in range(count)]
        stages = residual_fsq.parse([(stage, _read_scale(reader)) for stage in levels])
        sizes = residual_fsq.codebook_sizes(stages)
    return Rate(_derived_name(stages) if code == 0 else name, stages), sizes


def _read_scale(reader: _Reader) -> float:
    (code,) = reader.take(1)
    return 2.0**-code if code < 255 else struct.unpack(">d", reader.take(8))[0]


def _payload_size(frames: list[int], layers: list[slice], sizes: tuple[int, ...]) -> int:
    return sum(_packed_size(stop - start, sizes[books]) + 4 for books, _, start, stop in _blocks(frames, layers))


def _check_size(there: int, frames: list[int], layers: list[slice], sizes: tuple[int, ...]) -> None:
    """UserError unless `there` bytes are just what the blocks of these items take."""
    missing = _payload_size(frames, layers, sizes) - there
    _require(missing <= 0, f"This .cjx file is cut short: {missing} of its bytes are missing at the end.")
    _require(missing >= 0, f"This .cjx file has {-missing} surplus bytes at its end: is it two files in one?")
    _require(len(frames) * len(sizes) * max(frames) <= _MAX_CODES, _BAD_HEADER)

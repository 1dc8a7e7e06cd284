"""`Encoded`, what a codec's encoder gives and its decoder takes."""

import dataclasses

import numpy as np
from jaxtyping import Float, Integer

from codec_jax.bitstream import header, payload
from codec_jax.bitstream.header import FAMILIES
from codec_jax.errors import UserError, require
from codec_jax.models.protocol import Rate, in_streams, rate_of_streams
from codec_jax.quantizers import residual_fsq


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
            require(low >= 0 and high < size, f"{wrong}: they are damaged or belong to another rate.")
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
        return sum(map(payload.bit_width, self.codebook_sizes))

    @property
    def bitrate(self) -> float:
        """Nominal bits per second, without the container."""
        return self.frame_rate * self.bits_per_frame

    @property
    def duration(self) -> np.ndarray:
        """Seconds of every item, float64 [batch]."""
        return self.lengths / self.sample_rate

    def to_bytes(self) -> bytes:
        """The bytes of a .cjx file, see the package's docstring."""
        head = header.write(vars(self))
        seed, parts = int.from_bytes(head[-4:], "big"), [head]
        blocks = payload.blocks(self.frames.tolist(), payload.layers(self.rate, self.codebook_sizes))
        for number, (books, item, start, stop) in enumerate(blocks):
            packed = payload.pack(self.codes[item, books, start:stop], self.codebook_sizes[books])
            parts += [packed, payload.block_crc(packed, seed, number)]
        return b"".join(parts)

    def prefix(self, num_streams: int) -> "Encoded":
        """The first streams alone, as if no more had been encoded. UserError: there are not so many, or no streams."""
        layers = payload.layers(self.rate, self.codebook_sizes)
        require(in_streams(self.rate), f"Tokens of {self.family} are not in streams: encode at another rate.")
        fine = 1 <= num_streams <= len(layers)
        require(fine, f"There are {len(layers)} streams here, so a prefix has 1 to {len(layers)}, not {num_streams}.")
        stop = layers[num_streams - 1].stop
        return dataclasses.replace(
            self,
            rate=rate_of_streams(num_streams),
            codes=self.codes[:, :stop],
            codebook_sizes=self.codebook_sizes[:stop],
        )

    def stream_ends(self) -> list[int]:
        """Bytes of the file up to the end of every stream; cut there, it is a file of the streams so far."""
        layers, frames = payload.layers(self.rate, self.codebook_sizes), self.frames.tolist()
        sizes = [payload.size(frames, [books], self.codebook_sizes) for books in layers]
        return [len(self.to_bytes()) - sum(sizes[n + 1 :]) for n in range(len(sizes))]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> "Encoded":
        """Reads the bytes of a .cjx file. UserError: something else than that, a newer version, missing or
        surplus bytes, damage anywhere (every flipped bit is noticed), values no encoder writes.
        """
        data = bytes(data)
        fields, position, seed = header.read(data)
        fields = payload.cut_to(fields, len(data) - position)
        sizes, frames = fields["codebook_sizes"], fields["frames"].tolist()
        layers = payload.layers(fields["rate"], sizes)
        payload.check_size(len(data) - position, frames, layers, sizes)
        codes = np.zeros((len(frames), len(sizes), max(frames)), np.int32)
        for number, (books, item, start, stop) in enumerate(payload.blocks(frames, layers)):
            packed = data[position : position + payload.packed_size(stop - start, sizes[books])]
            position += len(packed) + 4
            if data[position - 4 : position] != payload.block_crc(packed, seed, number):
                seconds = fields["hop_length"] / fields["model_sample_rate"]
                block = f"block {start // payload.block_frames(frames[item]) + 1} of item {item}"
                span = f"{start * seconds:.2f} s to {stop * seconds:.2f} s"
                raise UserError(f"This .cjx file is damaged in {block}, {span}: fetch or encode it again.")
            codes[item, books, start:stop] = payload.unpack(packed, stop - start, sizes[books])
        return cls(codes=codes, **fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoded):
            return NotImplemented
        mine, theirs = vars(self), vars(other)
        same = all(np.array_equal(mine[n], theirs[n]) for n in mine if n != "rate")
        return same and self.rate == other.rate


def _check_fields(enc: Encoded) -> None:
    shape, sizes, stages = enc.codes.shape, enc.codebook_sizes, enc.rate.stages
    require(enc.family in FAMILIES, f"The codec family is one of {list(FAMILIES)}, not {enc.family!r}.")
    batched = enc.ndim in (2, 3) and shape[0] > 0
    require(batched or (enc.ndim == shape[0] == 1), f"{enc.ndim} dimensions cannot hold {shape[0]} items.")
    sized = 1 <= shape[1] == len(sizes) <= header.MAX_CODEBOOKS and all(2 <= size <= 2**31 for size in sizes)
    require(sized, f"{shape[1]} codebooks cannot have the sizes {sizes}.")
    require(_fits(stages, sizes), f"Codebook sizes {sizes} are not those of the rate's stages {stages}.")
    positive = all(1 <= n < 2**31 for n in (enc.sample_rate, enc.model_sample_rate, enc.hop_length))
    require(positive, "Sample rates and hop length must be positive and below 2^31.")
    counted = enc.lengths.min() >= 0 and enc.frames.min() >= 0 and enc.frames.max() <= shape[2]
    require(counted, f"Lengths and frames must be at least 0, and frames at most {shape[2]}.")
    require(np.isfinite(enc.gain).all(), "Gains must be finite.")


def _fits(stages: tuple, sizes: tuple[int, ...]) -> bool:
    if len(stages) == 1 and isinstance(stages[0], int):
        return 0 < stages[0] < 2**31  # how streams share the codebooks is the family's business
    return residual_fsq.parse(stages) == stages and residual_fsq.codebook_sizes(stages) == sizes

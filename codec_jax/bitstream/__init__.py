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

from codec_jax.bitstream.encoded import Encoded
from codec_jax.bitstream.header import FAMILIES, MAGIC, VERSION
from codec_jax.bitstream.payload import bit_width, block_frames

__all__ = ["FAMILIES", "MAGIC", "VERSION", "Encoded", "bit_width", "block_frames"]

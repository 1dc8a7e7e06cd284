"""Bytes of audio in compressed files, without what containers add."""

from typing import NamedTuple

_AMRWB_FRAMES = (17, 23, 32, 36, 40, 46, 50, 58, 60, 5)  # bytes behind the header byte of a frame, by its mode
_AMRWB_MAGIC = b"#!AMR-WB\n"
_OGG_HEADERS = 2  # of Opus (OpusHead, OpusTags) and of Speex (header, comment)


class Packets(NamedTuple):
    """sizes: bytes of every audio packet. pages: of the Ogg file that hold audio."""

    sizes: list[int]
    pages: int


def ogg_packets(data: bytes) -> Packets:
    """The audio packets of an Ogg file (RFC 3533) of one stream whose first two packets are headers."""
    sizes: list[int] = []
    position, open_size, pages = 0, 0, 0
    while data[position : position + 4] == b"OggS":
        count = data[position + 26]
        lacing = data[position + 27 : position + 27 + count]
        pages += len(sizes) >= _OGG_HEADERS
        for size in lacing:
            open_size += size
            if size < 255:
                sizes.append(open_size)
                open_size = 0
        position += 27 + count + sum(lacing)
    return Packets(sizes[_OGG_HEADERS:], pages)


def amr_payload(data: bytes) -> int:
    """Bytes of the frames of an AMR-WB file (RFC 4867, 5), each without its header byte."""
    position, total = len(_AMRWB_MAGIC), 0
    while position < len(data):
        mode = data[position] >> 3 & 15
        size = _AMRWB_FRAMES[mode] if mode < len(_AMRWB_FRAMES) else 0
        total += size
        position += 1 + size
    return total

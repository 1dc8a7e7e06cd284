import contextlib
import dataclasses
import io
import math
import pickle
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax import bitstream
from codec_jax.bitstream import Encoded
from codec_jax.bitstream.header import varint
from codec_jax.bitstream.payload import block_crc
from codec_jax.errors import UserError
from codec_jax.models.protocol import Rate
from codec_jax.quantizers import residual_fsq

RATES = [Rate(name, stages) for name, stages in residual_fsq.PRESETS.items()]
RATES.append(Rate("train", (((17,) * 6, 1.0),)))


def encoded(rate, frames, *, seed=0, family="taae", sizes=None, ndim=None, lengths=None, **fields):
    rng = np.random.default_rng(seed)
    sizes = sizes or residual_fsq.codebook_sizes(rate.stages)
    codes = rng.integers(0, np.array(sizes)[:, None], (len(frames), len(sizes), max(frames)), dtype=np.int32)
    defaults = {"sample_rate": 44100, "model_sample_rate": 16000, "hop_length": 640}
    return Encoded(
        family=family,
        rate=rate,
        codes=codes,
        lengths=np.asarray(lengths if lengths is not None else [n * 1764 - 7 * (n > 0) for n in frames], np.int64),
        gain=rng.uniform(0.1, 10, len(frames)).astype(np.float32),
        codebook_sizes=sizes,
        ndim=ndim or (1 if len(frames) == 1 else 2),
        frames=np.asarray(frames, np.int64),
        **(defaults | fields),
    )


def esc(frames, streams=6, **fields):
    return encoded(Rate(f"{streams} streams", (streams,)), frames, family="esc", sizes=(1024,) * 3 * streams, **fields)


@pytest.mark.parametrize("rate", RATES, ids=lambda r: r.name)
@pytest.mark.parametrize("frames", [[1], [0], [7, 0, 300], [63], [64], [65], [1000, 999]])
def test_bytes_round_trip(rate, frames):
    enc = encoded(rate, frames)
    data = enc.to_bytes()
    again = Encoded.from_bytes(data)
    assert again == enc
    assert again.rate == rate
    assert again.to_bytes() == data
    assert Encoded.from_bytes(memoryview(bytearray(data))) == enc
    for name in ("codes", "lengths", "gain", "frames"):
        assert getattr(again, name).dtype == getattr(enc, name).dtype


def test_streams_custom_stages_and_odd_names_round_trip():
    custom = (((5, 7), 0.3), ((3, 2), 2.0), ((3, 2), 2.0**-63), ((3, 2), 2.0**-70))
    names = ["custom", "train", "mine, ü", ""]
    for enc in [encoded(Rate(name, custom), [70, 3], ndim=3) for name in names]:
        assert Encoded.from_bytes(enc.to_bytes()) == enc
    preset = residual_fsq.PRESETS["4x729_1000bps"]
    for name in ("custom", "train", "4x729_1000bps", "1x46656_400bps"):
        assert Encoded.from_bytes(encoded(Rate(name, preset), [5]).to_bytes()).rate == Rate(name, preset)
    for streams in (1, 6):
        for frames in ([500, 20], [0], [0, 0]):  # without a frame, one stream's file is as long as six
            enc = esc(frames, streams)
            assert Encoded.from_bytes(enc.to_bytes()) == enc


def test_equality_sees_every_field():
    enc = encoded(RATES[1], [6, 4], ndim=2)
    changes = {
        "family": "esc",
        "rate": Rate("custom", enc.rate.stages),
        "codes": enc.codes ^ 1,
        "lengths": enc.lengths + 1,
        "sample_rate": 8000,
        "gain": enc.gain * 2,
        "model_sample_rate": 8000,
        "hop_length": 320,
        "ndim": 3,
        "frames": enc.frames - 1,
    }
    assert set(changes) | {"codebook_sizes"} == {field.name for field in dataclasses.fields(Encoded)}
    for name, value in changes.items():
        other = dataclasses.replace(enc, **{name: value})
        assert other != enc, name
        assert Encoded.from_bytes(other.to_bytes()) == other
    assert enc == dataclasses.replace(enc)
    assert enc != 3


@pytest.mark.parametrize("rate", RATES, ids=lambda r: r.name)
def test_a_clip_costs_its_nominal_bits_and_at_most_64_bytes(rate):
    hours = 10 * 3600 * 25
    for frames in [*range(1, 140), 257, 1000, 1023, 4097, 90_000, 90_001, hours - 3, hours]:
        if frames <= 1000:
            enc = encoded(rate, [frames], sample_rate=192_000, lengths=[frames * 7680])
        else:  # zeros are quicker
            enc = encoded(rate, [1], sample_rate=192_000, lengths=[frames * 7680])
            codes = np.zeros((1, enc.num_codebooks, frames), np.int32)
            enc = dataclasses.replace(enc, codes=codes, frames=np.array([frames]))
        payload = math.ceil(frames * enc.bits_per_frame / 8)
        size = len(enc.to_bytes())
        assert payload < size <= payload + 64, frames
        starts = range(0, frames, bitstream.block_frames(frames))
        assert len(starts) <= 4
        assert bitstream.block_frames(frames) % 8 == 0


def test_an_hour_packs_quickly(rng):
    enc = encoded(RATES[2], [90_000])
    start = time.perf_counter()
    data = enc.to_bytes()
    middle = time.perf_counter()
    assert Encoded.from_bytes(data) == enc
    assert middle - start < 1
    assert time.perf_counter() - middle < 1


def test_rates_and_durations():
    enc = encoded(RATES[2], [50, 25])
    assert enc.frame_rate == 25
    assert enc.bits_per_frame == 40
    assert enc.bitrate == 1000
    assert enc.num_codebooks == 4
    np.testing.assert_allclose(enc.duration, [2, 1], atol=1e-3)
    assert [encoded(rate, [1]).bitrate for rate in RATES] == [400, 700, 1000, 625]
    assert esc([1], model_sample_rate=16000, hop_length=320).bitrate == 9000
    assert [bitstream.bit_width(n) for n in (2, 3, 4, 5, 729, 1024, 15625, 46656, 17**6)] == [
        1, 2, 2, 3, 10, 10, 14, 16, 25,
    ]  # fmt: skip


def test_packing_is_most_significant_first_and_frame_major():
    enc = encoded(Rate("custom", (((6,), 1.0), ((4,), 0.5))), [3])
    enc = dataclasses.replace(enc, codes=np.array([[[5, 0, 3], [1, 2, 3]]], np.int32))
    payload = enc.to_bytes()[-6:-4]
    assert payload == bytes([0b101_01_000, 0b10_011_11_0])


def test_padding_is_not_stored_and_comes_back_as_zeros():
    enc = encoded(RATES[0], [10, 4])
    codes = np.pad(enc.codes, [(0, 0), (0, 0), (0, 7)])
    codes[0, :, 10:] = codes[1, :, 4:] = 10**6  # beyond any codebook, and beyond the frames
    before = codes.copy()
    padded = dataclasses.replace(enc, codes=codes)
    assert padded == enc
    assert padded.codes.shape == (2, 1, 10)
    assert not padded.codes[1, :, 4:].any()
    np.testing.assert_array_equal(codes, before)  # the caller's array is the caller's
    short = encoded(RATES[0], [10, 0], lengths=enc.lengths)
    assert len(enc.to_bytes()) == len(short.to_bytes()) + 8 + 4  # four frames of two bytes, and a CRC


def test_encoded_is_frozen_and_writing_changes_nothing():
    enc = esc([300, 100])
    kept = {field.name: np.copy(getattr(enc, field.name)) for field in dataclasses.fields(enc) if field.name != "rate"}
    assert enc.to_bytes() == enc.to_bytes()
    for name, value in kept.items():
        np.testing.assert_array_equal(getattr(enc, name), value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        enc.ndim = 3


def test_no_pickle(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle")

    data = encoded(RATES[0], [100]).to_bytes()
    with pytest.raises((pickle.UnpicklingError, ValueError, KeyError, EOFError, IndexError)):
        pickle.load(io.BytesIO(data))
    for name in ("dumps", "loads", "dump", "load"):
        monkeypatch.setattr(pickle, name, refuse)
    assert Encoded.from_bytes(data).to_bytes() == data
    assert b"numpy" not in data


# What can go wrong with a file.


@pytest.mark.parametrize("enc", [encoded(RATES[1], [5]), encoded(RATES[3], [70, 0, 3]), esc([4], 2)], ids="abc")
def test_every_flipped_bit_is_noticed(enc):
    data = enc.to_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError):
            Encoded.from_bytes(bytes(damaged))


@pytest.mark.parametrize("enc", [encoded(RATES[1], [300]), encoded(RATES[0], [0]), esc([4], 2)], ids="abc")
def test_every_truncation_is_noticed(enc):
    data = enc.to_bytes()
    layered = enc.stream_ends()[:-1] if enc.family == "esc" else []  # cut there, it is a file of fewer streams
    for size in set(range(len(data))) - set(layered):
        with pytest.raises(UserError, match="not a .cjx file" if size == 0 else "cut short"):
            Encoded.from_bytes(data[:size])


def test_sentences():
    data = encoded(RATES[2], [1000]).to_bytes()

    def message(damaged):
        with pytest.raises(UserError) as caught:
            Encoded.from_bytes(damaged)
        return str(caught.value)

    assert "not a .cjx file" in message(b"")
    assert "not a .cjx file" in message(b"RIFF" + data)
    assert "version 7" in message(data[:4] + b"\7" + data[5:])
    assert "version 1" in message(data[:4] + b"\7" + data[5:])
    assert "10 of its bytes are missing" in message(data[:-10])
    assert "3 surplus bytes" in message(data + b"abc")
    assert "header" in message(data[:9] + bytes([data[9] ^ 4]) + data[10:])
    third = len(data) - 4 - 232 * 5 - 4 - 100  # blocks of 256, 256, 256 and 232 frames of 5 bytes
    damaged = message(data[:third] + bytes([data[third] ^ 1]) + data[third + 1 :])
    assert "block 3 of item 0, 20.48 s to 30.72 s" in damaged


def test_blocks_cannot_change_places():
    enc = encoded(RATES[2], [128])
    data = enc.to_bytes()
    block = 64 * 5 + 4
    swapped = data[: -2 * block] + data[-block:] + data[-2 * block : -block]
    assert sorted(swapped) == sorted(data)
    with pytest.raises(UserError, match="block 1"):
        Encoded.from_bytes(swapped)


def sealed(header):
    """A file whose header is anything, with a right CRC."""
    head = bitstream.MAGIC + b"\1" + varint(len(header)) + header
    return head + struct.pack(">I", zlib.crc32(head))


def test_a_token_beyond_its_codebook_is_refused():
    enc = encoded(RATES[0], [3])
    data = enc.to_bytes()
    head = data[: -6 - 4 - 4]
    packed = b"\xff" * 6  # 65,535, but the codebook ends at 46,655
    crc = block_crc(packed, zlib.crc32(head), 0)
    with pytest.raises(UserError, match="65535, beyond its 0 to 46655"):
        Encoded.from_bytes(head + struct.pack(">I", zlib.crc32(head)) + packed + crc)


def test_a_hostile_header_allocates_nothing():
    gain = struct.pack(">f", 1)
    numbers = lambda *values: b"".join(map(varint, values))
    start, rate = numbers(1, 2), numbers(16000, 16000, 640, 1, 0, 1, 6, 5) + b"\0"
    one = numbers(2**40, 2**40) + gain
    hostile = [
        start + numbers(1) + rate + one,
        start + numbers(2**50) + rate + one,
        start + numbers(0) + rate,
        start + numbers(1) + numbers(16000, 16000, 640, 1, 0, 2**40, 6, 5),
        start + numbers(1) + numbers(16000, 16000, 640, 1, 0, 4096, 30, 2),
        start + numbers(1) + numbers(16000, 16000, 640, 1, 2, 6, 2**40, 5),
        start + numbers(1) + numbers(16000, 16000, 640, 1, 2, 6, 1, 1) + numbers(1, 2**40) + gain,
        start + numbers(1) + numbers(16000, 16000, 640, 2, 2**60),
        start + numbers(1) + numbers(0, 16000, 640) + rate[-6:] + one,
        numbers(9, 2, 1) + rate + one,
        numbers(1, 1, 2) + rate + 2 * (numbers(1, 0) + gain),
        start + numbers(1) + rate + numbers(1, 0) + struct.pack(">f", math.nan),
        start + numbers(1) + rate[:-1] + b"\xff" + struct.pack(">d", math.nan) + numbers(1, 0) + gain,
        start + numbers(1) + rate[:-1] + b"\xff" + struct.pack(">d", -1) + numbers(1, 0) + gain,
        start + b"\x80" * 1000,
        start + b"\xff" * 1000,
        b"",
        b"\0" * 20,
    ]
    fine = sealed(start + numbers(1) + rate + numbers(1, 0) + gain)
    assert Encoded.from_bytes(fine).rate == Rate("train", (((5,) * 6, 1.0),))
    tracemalloc.start()
    for header in hostile:
        with pytest.raises(UserError):
            Encoded.from_bytes(sealed(header))
    assert tracemalloc.get_traced_memory()[1] < 3e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"family": "mp3"}, "family"),
        ({"codes": np.zeros((2, 3, 6), np.int32)}, "3 codebooks"),
        ({"codes": np.full((2, 2, 6), -1, np.int32)}, "from -1"),
        ({"codes": np.full((2, 2, 6), 15625, np.int32)}, "0 to 15624"),
        ({"gain": np.float32([1, np.inf])}, "finite"),
        ({"ndim": 1}, "1 dimensions"),
        ({"ndim": 4}, "4 dimensions"),
        ({"codebook_sizes": (15625, 729)}, "not those"),
        ({"rate": Rate("train", ())}, "at least one stage"),
        ({"rate": Rate("train", (-1,))}, "not those"),
        ({"rate": Rate("2x15625_700bps", residual_fsq.PRESETS["4x729_1000bps"])}, "not those"),
        ({"sample_rate": 0}, "positive"),
        ({"hop_length": -1}, "positive"),
        ({"lengths": np.array([-1, 3])}, "at least 0"),
        ({"frames": np.array([6, 7])}, "at most 6"),
    ],
)
def test_contradictions_are_refused(change, match):
    enc = encoded(RATES[1], [6, 4])
    with pytest.raises(UserError, match=match):
        dataclasses.replace(enc, **change)


@st.composite
def anything(draw):
    frames = draw(st.lists(st.integers(0, 200), min_size=1, max_size=3))
    if draw(st.booleans()):
        rate = Rate(draw(st.text(max_size=8)), (draw(st.integers(1, 9)),))
        sizes = tuple(draw(st.lists(st.integers(2, 2**31), min_size=1, max_size=5)))
    else:
        dims = draw(st.integers(1, 4))
        levels = st.lists(st.integers(2, 99), min_size=dims, max_size=dims)
        stages = draw(st.lists(st.tuples(levels, st.floats(1e-3, 9)), min_size=1, max_size=4))
        stages = tuple((tuple(levels), scale) for levels, scale in stages)
        rate = Rate(draw(st.sampled_from(["train", "custom"])), stages)
        sizes = tuple(math.prod(levels) for levels, _ in stages)
    return rate, {
        "frames": frames,
        "sizes": sizes,
        "seed": draw(st.integers(0, 99)),
        "family": draw(st.sampled_from(["taae", "esc"])),
        "ndim": draw(st.sampled_from([2, 3])),
        "lengths": draw(st.lists(st.integers(0, 2**62), min_size=len(frames), max_size=len(frames))),
        "sample_rate": draw(st.integers(1, 2**31 - 1)),
        "hop_length": draw(st.integers(1, 2**31 - 1)),
    }


@given(anything(), st.data())
@settings(max_examples=60, deadline=None)
def test_anything_round_trips_and_any_damage_is_a_user_error(fields, data):
    enc = encoded(fields[0], **fields[1])
    packed = enc.to_bytes()
    assert Encoded.from_bytes(packed) == enc
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    flipped = bytearray(packed)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(UserError):
        Encoded.from_bytes(bytes(flipped))
    with pytest.raises(UserError):
        Encoded.from_bytes(packed[: data.draw(st.integers(0, len(packed) - 1))])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_garbage_with_a_right_checksum_is_a_user_error_or_a_clip(header):
    for data in (header, bitstream.MAGIC + header, sealed(header)):
        with contextlib.suppress(UserError):
            assert isinstance(Encoded.from_bytes(data), Encoded)

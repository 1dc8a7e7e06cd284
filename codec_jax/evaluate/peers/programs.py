"""Codecs that are programs: Opus, codec2, Speex, AMR-WB. Audio goes through files in a temporary directory.

Delays were measured by cross-correlation on recorded speech: of waveforms for Opus, Speex and AMR-WB, of mel
spectrograms for codec2, which keeps no phase.
"""

import importlib.util
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import soundfile

from codec_jax.audio.resample import resample
from codec_jax.errors import UserError, require
from codec_jax.evaluate.peers.missing import Missing
from codec_jax.evaluate.peers.payload import amr_payload, ogg_packets
from codec_jax.evaluate.systems import Coded, System, fitted

Run = Callable[[np.ndarray, pathlib.Path], tuple[np.ndarray, int]]
"""Of audio [time] at the codec's rate, and a directory to work in: what is heard, aligned with it, and bytes."""

_SECONDS = 600
# Modes of codec2 by their kbit/s, and bits of a frame: c2enc fills each up to whole bytes.
_CODEC2 = {
    0.7: ("700C", 28),
    1.2: ("1200", 48),
    1.3: ("1300", 52),
    1.4: ("1400", 56),
    1.6: ("1600", 64),
    2.4: ("2400", 48),
    3.2: ("3200", 64),
}
_AMRWB = (6.6, 8.85, 12.65, 14.25, 15.85, 18.25, 19.85, 23.05, 23.85)
_AMRWB_DELAY = 94  # samples at 16 kHz, of vo-amrwbenc at 6.6, 12.65 and 23.85 kbit/s with ffmpeg's decoder
_SPEEX_DELAY = 222  # samples at 16 kHz, of the encoder's and the decoder's look-ahead together


def opus(kbps: float) -> System:
    """Opus, speech, VBR, 20 ms frames, at 48 kHz. Decoders take its delay off themselves: less than 0.3 ms is left.

    By opusenc and opusdec (--speech), else ffmpeg, else the package av (libopus, application voip).
    """
    require(6 <= kbps <= 256, f"opus@{kbps:g} is beyond its range: give 6 to 256 kbit/s.")
    if shutil.which("opusenc") and shutil.which("opusdec"):
        run = _opus_tools(kbps)
    elif shutil.which("ffmpeg") and "libopus" in _ffmpeg_encoders():
        run = _opus_ffmpeg(kbps)
    elif importlib.util.find_spec("av") is not None:
        run = _opus_av(kbps)
    else:
        raise Missing("Opus needs opusenc and opusdec (opus-tools), an ffmpeg with libopus, or the package av")
    return _system("opus", "Opus", kbps, 48_000, run)


def codec2(kbps: float) -> System:
    """codec2 at 8 kHz by c2enc and c2dec; its delay of 20 ms (30 ms at 0.7 kbit/s) is taken off."""
    mode, bits = _one_of("codec2", kbps, _CODEC2)
    _needs("codec2", "c2enc", "c2dec", package="codec2")
    delay = 240 if mode == "700C" else 160
    whole = 320  # samples of its longest frame: c2enc drops what is left over

    def run(audio: np.ndarray, directory: pathlib.Path) -> tuple[np.ndarray, int]:
        raw, coded, heard = (directory / name for name in ("in.raw", "coded", "out.raw"))
        length = len(audio) + delay
        soundfile.write(raw, fitted(audio, -(-length // whole) * whole), 8_000, "PCM_16", format="RAW")
        _call("c2enc", mode, raw, coded)
        _call("c2dec", mode, coded, heard)
        decoded = np.fromfile(heard, "<i2").astype(np.float32) / 32768
        frames = coded.stat().st_size // -(-bits // 8)
        return decoded[delay:], -(-frames * bits // 8)

    return _system("codec2", "Codec 2", kbps, 8_000, run)


def speex(kbps: float) -> System:
    """Wide-band Speex, constant rate, by speexenc and speexdec.

    speexdec takes the delay off unless all packets are in one page of the Ogg file, as of short clips: then it is done
    here.
    """
    require(kbps >= 3.95, f"speex@{kbps:g} is beyond the range of wide-band Speex: give 3.95 to 42.2 kbit/s.")
    _needs("Speex", "speexenc", "speexdec", package="speex")

    def run(audio: np.ndarray, directory: pathlib.Path) -> tuple[np.ndarray, int]:
        coded, heard = directory / "coded.spx", directory / "out.wav"
        source = _wav(fitted(audio, len(audio) + _SPEEX_DELAY), 16_000, directory)
        _call("speexenc", "-w", "--bitrate", f"{1000 * kbps:.0f}", source, coded)
        _call("speexdec", coded, heard)
        packets, pages = ogg_packets(coded.read_bytes())
        return _read(heard)[_SPEEX_DELAY if pages == 1 else 0 :], sum(packets)

    return _system("speex", "Speex", kbps, 16_000, run)


def amrwb(kbps: float) -> System:
    """AMR-WB by an ffmpeg that was built with libvo_amrwbenc; its delay of 94 samples is taken off."""
    rate = _one_of("amrwb", kbps, {rate: rate for rate in _AMRWB})
    _needs("AMR-WB", "ffmpeg", package="ffmpeg")
    if "libvo_amrwbenc" not in _ffmpeg_encoders():
        raise Missing("AMR-WB needs an ffmpeg built with libvo_amrwbenc, and the one here is not")

    def run(audio: np.ndarray, directory: pathlib.Path) -> tuple[np.ndarray, int]:
        coded, heard = directory / "coded.amr", directory / "out.wav"
        source = _wav(fitted(audio, len(audio) + _AMRWB_DELAY), 16_000, directory)
        _ffmpeg(source, "-c:a", "libvo_amrwbenc", "-b:a", f"{1000 * rate:.0f}", coded)
        _ffmpeg(coded, heard)
        return _read(heard)[_AMRWB_DELAY:], amr_payload(coded.read_bytes())

    return _system("amrwb", "AMR-WB", kbps, 16_000, run)


# ---- Opus, three ways ---------------------------------------------------------------------------


def _opus_tools(kbps: float) -> Run:
    def run(audio: np.ndarray, directory: pathlib.Path) -> tuple[np.ndarray, int]:
        coded, heard = directory / "coded.opus", directory / "out.wav"
        flags = ["--quiet", "--speech", "--bitrate", f"{kbps:g}"]
        _call("opusenc", *flags, _wav(audio, 48_000, directory), coded)
        _call("opusdec", "--quiet", "--rate", "48000", "--force-wav", coded, heard)
        return _read(heard), sum(ogg_packets(coded.read_bytes()).sizes)

    return run


def _opus_ffmpeg(kbps: float) -> Run:
    def run(audio: np.ndarray, directory: pathlib.Path) -> tuple[np.ndarray, int]:
        coded, heard = directory / "coded.opus", directory / "out.wav"
        flags = ["-c:a", "libopus", "-application", "voip", "-b:a", f"{1000 * kbps:.0f}"]
        _ffmpeg(_wav(audio, 48_000, directory), *flags, coded)
        _ffmpeg(coded, heard)
        return _read(heard), sum(ogg_packets(coded.read_bytes()).sizes)

    return run


def _opus_av(kbps: float) -> Run:
    import av

    def run(audio: np.ndarray, directory: pathlib.Path) -> tuple[np.ndarray, int]:
        coded = directory / "coded.opus"
        with av.open(str(coded), "w", format="ogg") as file:
            stream = file.add_stream("libopus", rate=48_000, layout="mono", options={"application": "voip"})
            stream.bit_rate = round(1000 * kbps)
            frame = av.AudioFrame.from_ndarray(audio[None], format="flt", layout="mono")
            frame.sample_rate = 48_000
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        with av.open(str(coded)) as file:
            heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)])
        return heard.astype(np.float32), sum(ogg_packets(coded.read_bytes()).sizes)

    return run


# ---- what they share ----------------------------------------------------------------------------


def _system(name: str, label: str, kbps: float, sample_rate: int, run: Run) -> System:
    def code(audio: np.ndarray, rate: int, stem: str) -> Coded:
        with tempfile.TemporaryDirectory(prefix="codec_jax_") as directory:
            heard, num_bytes = run(resample(audio, rate, sample_rate), pathlib.Path(directory))
        return Coded(resample(heard, sample_rate, rate), num_bytes)

    return System(f"{name}@{kbps:g}", name, f"{label}, {kbps:g} kbit/s", code, 1000 * kbps, sample_rate)


def _one_of(name: str, kbps: float, rates: Mapping[float, Any]) -> Any:
    require(kbps in rates, f"{name} has no rate of {kbps:g} kbit/s: choose from {', '.join(f'{r:g}' for r in rates)}.")
    return rates[kbps]


def _needs(label: str, *commands: str, package: str) -> None:
    absent = [command for command in commands if shutil.which(command) is None]
    if absent:
        raise Missing(f"{label} needs {' and '.join(absent)} on the path (package {package} of most systems)")


def _wav(audio: np.ndarray, sample_rate: int, directory: pathlib.Path) -> pathlib.Path:
    path = directory / "in.wav"
    soundfile.write(path, np.clip(audio, -1, 1), sample_rate, "PCM_16")
    return path


def _read(path: pathlib.Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def _ffmpeg(source: pathlib.Path, *rest: object) -> None:
    _call("ffmpeg", "-y", "-nostdin", "-loglevel", "error", "-i", source, *rest)


def _ffmpeg_encoders() -> str:
    return _call("ffmpeg", "-hide_banner", "-encoders")


def _call(*command: object) -> str:
    """Its output; UserError with the last line of its complaint where it fails or takes longer than ten minutes."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        complaint = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        reason = complaint[-1] if complaint else error
        raise UserError(f"{words[0]} failed ({reason}); run it by hand, or leave this system out.") from error
    return done.stdout.decode(errors="replace")

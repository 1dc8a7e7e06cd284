"""Codec: a config and variables, and what people do with them: encode, decode, latents, save."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from codec_jax import experiment, models, storage
from codec_jax.audio.files import to_channels
from codec_jax.audio.loudness import loudness_gain
from codec_jax.audio.resample import resample
from codec_jax.bitstream import Encoded
from codec_jax.errors import UserError
from codec_jax.models.protocol import Rate

_LOUDNESS = -20.0  # LUFS, what TAAE was trained on (spec TAAE section 5)
_CHUNK_SECONDS = 60.0


class Codec:
    """A speech codec.

    family: "taae" or "esc". config: the family's config. params: pytree of parameters. extras: what an
    imported checkpoint brought that has no place in the parameters; it travels with `save`.
    """

    def __init__(
        self,
        family: str,
        config: Any,
        variables: Mapping[str, Any],
        extras: storage.Extras | None = None,
    ):
        self.family = family
        self.config = config
        self.extras = extras or storage.Extras()
        self._model = models.FAMILIES[family]
        self._variables = jax.tree.map(jnp.asarray, dict(variables))
        self._geometry = self._model.geometry(config)
        self._buckets: tuple[int, ...] = ()

    @property
    def params(self) -> Any:
        """The parameters, as trained: weight norm is not folded."""
        return self._variables["params"]

    @property
    def sample_rate(self) -> int:
        """Samples per second of what the model hears and says."""
        return self._geometry.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per code frame."""
        return self._geometry.hop_length

    @property
    def has_tokens(self) -> bool:
        """False of a codec without bottleneck, which `encode` refuses unless it is given one."""
        return self._model.has_tokens(self.config)

    @property
    def frame_rate(self) -> float:
        """Code frames per second."""
        return self.sample_rate / self.hop_length

    def encode(
        self,
        audio: Any,
        sample_rate: int | None = None,
        *,
        bottleneck: Any = None,
        num_streams: int | None = None,
        normalize: bool | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Encoded:
        """Audio to tokens.

        audio: NumPy or JAX array [T], [B, T] or [B, C, T] in [-1, 1], at `sample_rate` (None: the model's). Other
        rates are resampled and other channel counts mixed down. bottleneck: None or "train", a preset's name, or FSQ
        stages [(levels, scale), ...]. num_streams: the first so many streams of an ESC, or codebooks of a TAAE that has
        several (None: all). normalize: to -20 LUFS first (None: yes for TAAE, no for ESC); decode undoes the gain.
        lengths: valid samples per item of a padded batch; the rest changes nothing.

        Raises UserError for empty, non-finite or integer audio, for a bottleneck that does not fit the model, and where
        the model has none and none is given.
        """
        rate = self._model.rate(self.config, bottleneck, num_streams)
        normalize = self._geometry.normalizes if normalize is None else normalize
        sample_rate = self.sample_rate if sample_rate is None else int(sample_rate)
        batch, valid = _check_audio(audio, lengths)
        items, gains = [], []
        for item, length in zip(batch, valid):
            prepared, gain = self._prepare(item[:, :length], sample_rate, normalize)
            items.append(prepared)
            gains.append(gain)
        frames = [-(-item.shape[1] // self.hop_length) for item in items]
        sizes = self._model.codebook_sizes(self.config, rate)
        codes = np.zeros((len(items), len(sizes), max(frames)), np.int32)
        for group in self._batches(frames):
            self._encode_group([items[i] for i in group], [frames[i] for i in group], rate, [codes[i] for i in group])
        return Encoded(
            family=self.family,
            rate=rate,
            codes=codes,
            lengths=np.asarray(valid, np.int64),
            sample_rate=sample_rate,
            gain=np.asarray(gains, np.float32),
            model_sample_rate=self.sample_rate,
            hop_length=self.hop_length,
            codebook_sizes=sizes,
            ndim=np.ndim(audio),
            frames=np.asarray(frames, np.int64),
        )

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Tokens to audio: float32 at the model's rate, of the rank that was encoded, gain undone.

        An item of n samples at rate r comes back with round(n * sample_rate / r) samples; in a batch shorter items end
        in zeros. Raises UserError for tokens of another family or another geometry.
        """
        self._check_encoded(encoded)
        lengths = [_rounded(int(n) * self.sample_rate, encoded.sample_rate) for n in encoded.lengths]
        out = np.zeros((len(lengths), self._geometry.channels, max(lengths)), np.float32)
        frames = [int(n) for n in encoded.frames]
        for group in self._batches(frames):
            codes = [encoded.codes[i, :, : frames[i]] for i in group]
            self._decode_group(codes, encoded.rate, [out[i, :, : lengths[i]] for i in group])
        out /= encoded.gain[:, None, None]
        if encoded.ndim == 3:
            return out
        mono = out[:, 0] if out.shape[1] == 1 else out.mean(1)
        return mono if encoded.ndim == 2 else mono[0]

    def latents(self, audio: Any, *, lengths: Sequence[int] | None = None) -> np.ndarray:
        """TAAE: latents before the bottleneck [batch, frame, latent_dim]; audio as given, padded to whole hops.

        lengths: valid samples per item, as of `encode`; frames behind them mean nothing.
        """
        self._needs("analyse", "latents")
        batch, frames = self._whole_hops(audio, lengths)
        with jax.default_matmul_precision("highest"):
            return np.asarray(_jitted(self._model.analyse)(self.config, self._variables, batch, frames))

    def decode_latents(self, latents: Any) -> np.ndarray:
        """TAAE: the decoder alone, of latents as the bottleneck gives them.

        [batch, frame, latent_dim] to [batch, time] ([batch, channel, time] if stereo).
        """
        self._needs("synthesise", "decode_latents")
        with jax.default_matmul_precision("highest"):
            latents = np.asarray(latents, np.float32)
            audio = np.asarray(_jitted(self._model.synthesise)(self.config, self._variables, latents)).swapaxes(1, 2)
        return audio[:, 0] if audio.shape[1] == 1 else audio

    def unquantised(self, audio: Any, lengths: Sequence[int] | None = None) -> np.ndarray:
        """TAAE: audio as given through the codec with its bottleneck left open; what one without bottleneck does.

        Gives [batch, time] ([batch, channel, time] if stereo), padded to whole hops. lengths: as for `encode`.
        """
        self._needs("unquantised", "unquantised")
        batch, frames = self._whole_hops(audio, lengths)
        with jax.default_matmul_precision("highest"):
            heard = _jitted(self._model.unquantised)(self.config, self._variables, batch, frames)
        out = np.asarray(heard).swapaxes(1, 2)
        return out[:, 0] if out.shape[1] == 1 else out

    def in_buckets(self, frames: Sequence[int]) -> "Codec":
        """The same codec, compiled for these lengths in code frames alone: a clip is padded to the next that holds it.

        Padding changes no code. Longer clips than all of them are padded as ever, to one of four lengths an octave.
        """
        same = copy.copy(self)
        same._buckets = tuple(sorted(frames))
        return same

    def save(self, directory: epath.PathLike) -> None:
        """Writes config.json, model.safetensors and, after an import, upstream_extras.safetensors."""
        config = {"family": self.family, **experiment.to_dict(self.config)}
        storage.write(directory, config, self._variables, self.extras)

    # ---- one clip -------------------------------------------------------------------------------

    def _whole_hops(self, audio: Any, lengths: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Audio as given, padded to whole hops, [batch, time, channel], and valid frames (None without lengths)."""
        batch, valid = _check_audio(audio, lengths)
        padded = self._model.padded_length(self.config, batch.shape[2])
        items = [to_channels(item[:, :length], self._geometry.channels) for item, length in zip(batch, valid)]
        frames = None if lengths is None else np.asarray([-(-n // self.hop_length) for n in valid], np.int32)
        return np.stack([_padded(item, padded) for item in items]).swapaxes(1, 2), frames

    def _prepare(self, item: np.ndarray, sample_rate: int, normalize: bool) -> tuple[np.ndarray, float]:
        """[C, T] at any rate to the model's [C, padded] and the gain applied. As upstream, loudness comes last."""
        item = resample(item, sample_rate, self.sample_rate) if sample_rate != self.sample_rate else item
        padded = self._model.padded_length(self.config, item.shape[1])
        item = _padded(to_channels(item, self._geometry.channels), padded)
        gain = loudness_gain(item, self.sample_rate, _LOUDNESS) if normalize else 1.0
        return (item * np.float32(gain) if gain != 1 else item), gain

    # ---- batches, buckets and chunks ------------------------------------------------------------

    def _window(self) -> "_Window | None":
        """How long audio is cut so that every code is what the whole file would give; None where that is impossible."""
        field = self._geometry.receptive_field
        if field is None:
            return None
        step = self._geometry.alignment
        left, right = (-(-side // step) * step for side in field)
        core = -(-max(left + right, math.ceil(_CHUNK_SECONDS * self.frame_rate)) // step) * step
        return _Window(left, core, left + core + right)

    def _padded_frames(self, count: int, window: "_Window | None") -> int:
        """What `count` frames, at most a window, are padded to."""
        size = next((size for size in self._buckets if size >= count), 0)
        if not size:
            return _bucket(count)
        return size if window is None else min(size, window.size)

    def _batches(self, frames: Sequence[int]) -> Iterator[list[int]]:
        """Items that fit into one window run together; longer ones alone, in chunks."""
        window = self._window()
        short = [i for i, n in enumerate(frames) if window is None or n <= window.size]
        if short:
            yield short
        yield from ([i] for i in range(len(frames)) if i not in set(short))

    def _encode_group(self, items: list[np.ndarray], frames: list[int], rate: Rate, out: list[np.ndarray]) -> None:
        def run(starts, count, valid):
            span = slice(starts * self.hop_length, (starts + count) * self.hop_length)
            audio = np.stack([_padded(item[:, span], count * self.hop_length) for item in items]).swapaxes(1, 2)
            with jax.default_matmul_precision("highest"):
                codes = self._model.encode(self.config, self._variables, jnp.asarray(audio), jnp.asarray(valid), rate)
            return list(np.asarray(codes))

        self._run(frames, run, out, 1)

    def _decode_group(self, codes: list[np.ndarray], rate: Rate, out: list[np.ndarray]) -> None:
        def run(starts, count, valid):
            batch = np.stack([_padded(item[:, starts : starts + count], count) for item in codes])
            with jax.default_matmul_precision("highest"):
                audio = self._model.decode(self.config, self._variables, batch, jnp.asarray(valid), rate)
            return list(np.asarray(audio).swapaxes(1, 2))

        self._run([item.shape[1] for item in codes], run, out, self.hop_length)

    def _run(self, frames: list[int], run: Callable, out: list[np.ndarray], hop: int) -> None:
        """Calls run(first frame, count, valid frames) over the group and pastes the results into `out` (last axis)."""
        window, longest = self._window(), max(frames)
        if window is None or longest <= window.size:
            results = run(0, self._padded_frames(longest, window), np.asarray(frames, np.int32))
            for target, result, count in zip(out, results, frames):
                length = min(target.shape[-1], result.shape[-1], count * hop)
                target[..., :length] = result[..., :length]
            return
        starts, step = range(0, longest, window.core), self._geometry.alignment
        for begin in tqdm(starts, unit="chunk", leave=False, disable=None if len(starts) > 4 else True):
            # The last window may reach beyond the end, by less than one step.
            first = min(max(0, begin - window.left), -(-(longest - window.size) // step) * step)
            count = min(window.size, longest - first)
            result = run(first, window.size, np.asarray([count], np.int32))[0]
            end = min((begin + window.core) * hop, out[0].shape[-1], first * hop + result.shape[-1])
            if end > begin * hop:
                out[0][..., begin * hop : end] = result[..., (begin - first) * hop : end - first * hop]

    # ---- checks ---------------------------------------------------------------------------------

    def _check_encoded(self, encoded: Encoded) -> None:
        if encoded.family != self.family:
            raise UserError(f"these tokens come from a {encoded.family} codec, and this is a {self.family}.")
        theirs, ours = (encoded.model_sample_rate, encoded.hop_length), (self.sample_rate, self.hop_length)
        if theirs != ours:
            raise UserError(
                f"these tokens were made at {theirs[0]} Hz with {theirs[1]} samples a frame, but this model has "
                f"{ours[0]} Hz and {ours[1]}: decode with the model that encoded."
            )
        if encoded.rate.name == "train" and encoded.rate not in self._model.rates(self.config).values():
            raise UserError("these tokens use the training bottleneck of another model: decode with that model.")
        if encoded.codebook_sizes != self._model.codebook_sizes(self.config, encoded.rate):
            raise UserError(
                f"these tokens have {encoded.num_codebooks} codebooks of {max(encoded.codebook_sizes)} words, which "
                "this model has not: decode with the model that encoded."
            )

    def _needs(self, name: str, method: str) -> None:
        if not hasattr(self._model, name):
            raise UserError(f"{method} is for TAAE codecs; a {self.family} quantises inside its decoder.")


class _Window(NamedTuple):
    """A chunk in frames: context on the left, what is kept, and the whole with context on both sides."""

    left: int
    core: int
    size: int


@functools.cache
def _jitted(function: Callable) -> Callable:
    return jax.jit(function, static_argnums=0)


def _bucket(count: int) -> int:
    """The next of four lengths an octave, so that clips of many lengths share few compilations."""
    step = 2 ** max(0, count.bit_length() - 3)
    return -(-count // step) * step


def _rounded(numerator: int, denominator: int) -> int:
    """round(numerator / denominator), halves up, at least 1, in integers."""
    return max(1, (2 * numerator + denominator) // (2 * denominator))


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, length - array.shape[1])))


def _check_audio(audio: Any, lengths: Sequence[int] | None) -> tuple[np.ndarray, list[int]]:
    """[T], [B, T] or [B, C, T] to float32 [B, C, T] and the valid samples of every item."""
    array = np.asarray(audio)
    if array.ndim not in (1, 2, 3):
        raise UserError(f"audio has shape {array.shape}: give [time], [batch, time] or [batch, channel, time].")
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"audio has dtype {array.dtype}: give floats in [-1, 1] (int16 samples divided by 32768).")
    array = array.reshape({1: (1, 1, -1), 2: (len(array), 1, -1), 3: array.shape}[array.ndim]).astype(
        np.float32, copy=False
    )
    if 0 in array.shape:
        raise UserError(f"audio of shape {np.shape(audio)} holds no samples.")
    valid = [array.shape[2]] * len(array) if lengths is None else [int(n) for n in lengths]
    if len(valid) != len(array) or min(valid) < 1 or max(valid) > array.shape[2]:
        raise UserError(f"lengths must be {len(array)} numbers between 1 and {array.shape[2]}, not {list(valid)}.")
    for item, length in zip(array, valid):
        if not np.isfinite(item[:, :length]).all():
            raise UserError("audio holds NaN or infinite samples.")
    return array, valid

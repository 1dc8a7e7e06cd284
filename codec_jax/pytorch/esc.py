"""ESC, the Efficient Speech Codec (arXiv 2404.19441), in PyTorch (spec ESC sections 1 to 6)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .esc_config import Config, read_config
from .esc_network import Decoder, Encoder
from .vq import ProductResidualVQ, ProductVQ, Quantised


class Forward(NamedTuple):
    """One training pass. audio, target: [batch, 1, time], padded. codes: [batch, codebook, frame] of all streams.

    losses: "commitment", "codebook" and "spectrum", means over the batch, unweighted.
    """

    audio: Tensor
    target: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


class ESC(nn.Module):
    """Audio to codes of one to all streams, and back.

    config: upstream's parsed `config.yaml`. codebook_dims: one per stream (None: the config's, which of published
    checkpoints need not be right). ValueError: a config that contradicts itself.

    `forward` and `train_pass` are differentiable; `encode` and `decode` run without gradients, and in eval mode. Codes
    are int64 [batch, codebook, frame], stream by stream: the first streams are a code of their own.
    """

    def __init__(self, config: Mapping[str, Any], codebook_dims: Sequence[int] | None = None):
        super().__init__()
        self.config: Config = read_config(config, codebook_dims)
        self.ft, self.ift = Window(self.config.win_length), Window(self.config.win_length)
        self.quantizers: Any
        if self.config.quantiser == "rvq":
            self.quantizers = ProductResidualVQ(self.config)
        else:
            self.quantizers = nn.ModuleList(ProductVQ(self.config, i) for i in range(self.config.num_streams))
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    @staticmethod
    def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a state_dict knows better than its config, as keyword arguments."""
        streams = (f"quantizers.{i}.vqs.0.embedding.weight" for i in range(len(tensors)))
        dims = [tensors[name].shape[-1] for name in streams if name in tensors]
        name = "quantizers.vqs.0.vqs.0.embedding.weight"
        return {"codebook_dims": dims or ([tensors[name].shape[-1]] if name in tensors else None)}

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per code frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Code frames per second."""
        return self.sample_rate / self.hop_length

    def padded_length(self, samples: int) -> int:
        """The least length that fits whole code frames, hop_length · k less one STFT hop, and can be reflected."""
        needed = max(samples, self.config.n_fft // 2 + 1) + self.config.stft_hop_length
        return -(-needed // self.hop_length) * self.hop_length - self.config.stft_hop_length

    def forward(self, audio: Tensor) -> Tensor:
        """The whole codec: audio as `encode` takes it to audio [batch, 1, padded time]."""
        return self.train_pass(audio).audio

    def train_pass(self, audio: Tensor, num_streams: int | None = None, quantise: bool = True) -> Forward:
        """As upstream trains: every stream is computed, `num_streams` are kept, gradients pass straight through.

        quantise: else the bottleneck is continuous, with all streams, and its losses are zero.
        """
        audio = self._padded(audio)
        target = self._spectrum(audio)
        features = self.encoder(target)
        streams = self._streams(num_streams) if quantise else self.config.num_streams
        if self.config.quantiser == "rvq":
            total: Quantised = self.quantizers(features[-1], streams, train=True, quantise=quantise)
            state = total.features
            for block in self.decoder.blocks:
                state = block(state)
        else:
            state, total = self._cross_scale(features, streams, quantise)
        spectrum = self.decoder.finish(state)
        commitment, codebook = total.losses.mean(1)
        losses = {"commitment": commitment, "codebook": codebook, "spectrum": power_law_distance(target, spectrum)}
        return Forward(self._audio(spectrum), audio[:, None], total.codes.flatten(1, 2), losses)

    @torch.no_grad()
    def encode(self, audio: Tensor, num_streams: int | None = None) -> Tensor:
        """Audio [batch, 1, time] or [batch, time] to codes of the first `num_streams` streams (None: all).

        Padded with zeros to whole code frames; neither resampled nor normalised. ValueError: another shape.
        """
        streams = self._streams(num_streams)
        with _evaluating(self):
            features = self.encoder(self._spectrum(self._padded(audio)))
            if self.config.quantiser == "rvq":
                return self.quantizers(features[-1], streams).codes[:, :streams].flatten(1, 2)
            state, codes, _ = self.quantizers[0](features[-1])
            parts = [codes]
            for i in range(1, streams):
                state = self.decoder.blocks[i - 2](state) if i > 1 else state
                step = self.quantizers[i](features[self.config.scale(i)] - state)
                parts.append(step.codes)
                state = state + step.features
            return torch.cat(parts, 1).flatten(1, 2)

    @torch.no_grad()
    def decode(self, codes: Tensor, length: int | None = None) -> Tensor:
        """Codes of the first streams, as many as there are, to audio [batch, 1, time], cut to `length` if given.

        ValueError: codes that this model does not have.
        """
        codes = self._by_stream(codes)
        with _evaluating(self):
            residual = self.config.quantiser == "rvq"
            state = self.quantizers.dequantise(codes) if residual else self.quantizers[0].dequantise(codes[:, 0])
            for i, block in enumerate(self.decoder.blocks, start=1):
                if not residual and i < codes.shape[1]:
                    state = state + self.quantizers[i].dequantise(codes[:, i])
                state = block(state)
            return self._audio(self.decoder.finish(state))[..., :length]

    def _cross_scale(self, features: list[Tensor], streams: int, quantise: bool) -> tuple[Tensor, Quantised]:
        """The decoder's last state, and codes and losses of all streams."""
        state, codes, total = self.quantizers[0](features[-1], True, quantise)
        parts = [codes]
        for i, block in enumerate(self.decoder.blocks, start=1):
            kept = float(i < streams)
            step = self.quantizers[i](features[self.config.scale(i)] - state, True, quantise)
            parts.append(step.codes)
            total = total + kept * step.losses
            state = block(state + kept * step.features)
        return state, Quantised(state, torch.cat(parts, 1), total)

    def _padded(self, audio: Tensor) -> Tensor:
        """[batch, padded time]."""
        if audio.ndim == 3 and audio.shape[1] == 1:
            audio = audio[:, 0]
        if audio.ndim != 2:
            raise ValueError(f"audio is [batch, 1, time] or [batch, time], not {list(audio.shape)}.")
        return F.pad(audio, (0, self.padded_length(audio.shape[-1]) - audio.shape[-1]))

    def _spectrum(self, audio: Tensor) -> Tensor:
        """[batch, time] to real and imaginary parts [batch, 2, bin, frame]."""
        config = self.config
        spectrum = torch.stft(
            audio, config.n_fft, config.stft_hop_length, config.win_length, self.ft.window, return_complex=True
        )
        return torch.view_as_real(spectrum).permute(0, 3, 1, 2)

    def _audio(self, spectrum: Tensor) -> Tensor:
        """The inverse, to [batch, 1, time]."""
        config = self.config
        numbers = torch.view_as_complex(spectrum.permute(0, 2, 3, 1).contiguous())
        audio = torch.istft(numbers, config.n_fft, config.stft_hop_length, config.win_length, self.ift.window)
        return audio[:, None]

    def _streams(self, num_streams: int | None) -> int:
        most = self.config.num_streams
        streams = most if num_streams is None else num_streams
        if not 1 <= streams <= most:
            raise ValueError(f"num_streams is {streams}, but this codec has 1 to {most} streams.")
        return streams

    def _by_stream(self, codes: Tensor) -> Tensor:
        """[batch, codebook, frame] to [batch, stream, group, frame], checked."""
        groups, most, size = self.config.num_groups, self.config.num_streams, self.config.codebook_size
        if codes.ndim != 3 or codes.shape[1] % groups or not 1 <= codes.shape[1] // groups <= most:
            wanted = f"[batch, {groups} to {most * groups} by {groups}, frame]"
            raise ValueError(f"codes are {wanted} for this model, not {list(codes.shape)}.")
        if codes.is_floating_point() or codes.is_complex():
            raise ValueError(f"codes are integers, not {codes.dtype}.")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise ValueError(f"codes are 0 to {size - 1}, not {int(codes.min())} to {int(codes.max())}.")
        return codes.long().to(self.ft.window.device).unflatten(1, (-1, groups))


class Window(nn.Module):
    """Holder of a periodic Hann window, which is part of a checkpoint."""

    window: Tensor

    def __init__(self, length: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(length))


def power_law_distance(target: Tensor, estimate: Tensor) -> Tensor:
    """Mean squared difference of sign(x) (|x| + 1e-10)^0.3 of real and imaginary parts, over the whole batch."""
    compressed = [x.sign() * (x.abs() + 1e-10) ** 0.3 for x in (target, estimate)]
    return (compressed[0] - compressed[1]).square().mean()


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Batch statistics are for training: upstream's own command forgets, and codes with those of the clip."""
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True

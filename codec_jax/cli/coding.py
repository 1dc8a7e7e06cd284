"""encode, decode, reconstruct, info."""

import argparse
import pathlib

from codec_jax.cli.files import (
    AUDIO_OUT,
    TOKENS,
    add_verb,
    audio_inputs,
    is_file,
    jobs_of,
    named,
    progress,
    read_bytes,
    write_bytes,
)

_METRIC_SECONDS = 300  # of a long file, what the printed metrics look at


def encode(arguments: argparse.Namespace) -> None:
    """Audio files to .cjx token files."""
    jobs = jobs_of(audio_inputs(arguments.inputs), arguments, (TOKENS,))
    codec = _load(arguments)
    for source, (target,) in progress(jobs):
        write_bytes(target, _encode_file(codec, source, arguments).to_bytes())


def decode(arguments: argparse.Namespace) -> None:
    """.cjx token files to audio files."""
    from codec_jax import Encoded
    from codec_jax.audio import files

    sources = [pathlib.Path(name) for name in arguments.inputs]
    suffix = pathlib.Path(arguments.output).suffix if is_file(arguments.output, AUDIO_OUT) else ".wav"
    jobs = jobs_of(sources, arguments, (suffix,))
    tokens = {source: named(source, lambda path: Encoded.from_bytes(read_bytes(path))) for source in sources}
    codec = _load(arguments)
    for source, (target,) in progress(jobs):
        audio = named(source, lambda path: codec.decode(tokens[path]))
        files.write(target, _one_clip(audio, source), codec.sample_rate)


def reconstruct(arguments: argparse.Namespace) -> None:
    """Audio files through the codec and back: audio, tokens, and metrics."""
    from codec_jax.audio import files
    from codec_jax.evaluate.metrics import table

    jobs = jobs_of(audio_inputs(arguments.inputs), arguments, (".wav", TOKENS))
    codec = _load(arguments)
    rows = []
    for source, (audio_target, token_target) in progress(jobs):
        encoded = _encode_file(codec, source, arguments)
        payload = encoded.to_bytes()
        decoded = codec.decode(encoded)[0]
        files.write(audio_target, decoded, codec.sample_rate)
        write_bytes(token_target, payload)
        rows.append((source.name, _measure(codec, source, decoded, len(payload), encoded.bitrate)))
    print(table(rows))


def info(arguments: argparse.Namespace) -> None:
    """What a token file, model directory, run or config is."""
    path = arguments.path
    if path.endswith(TOKENS):
        from codec_jax import Encoded

        data = read_bytes(pathlib.Path(path))
        lines = _describe_tokens(named(pathlib.Path(path), lambda _: Encoded.from_bytes(data)), len(data))
    elif path.partition(":")[0].endswith(".py"):
        from codec_jax import experiment

        loaded = experiment.load_config(path)
        lines = _describe_codec(loaded.family, loaded.codec, None)
    else:
        from codec_jax import export, sources

        model = sources.open_model(path)
        lines = _describe_codec(model.family, model.config, export.count_parameters(model))
    for name, value in lines.items():
        print(f"{name:<25} {value}")


# ---- arguments ---------------------------------------------------------------------------------


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    p = add_verb(verbs, "encode", encode, "codec-jax encode talk.wav -o talk.cjx --model runs/nano")
    _input_output(p, "audio files or directories", "a .cjx file, or a directory for several")
    _rate_flags(p)
    p = add_verb(verbs, "decode", decode, "codec-jax decode talk.cjx -o talk.wav --model runs/nano")
    _input_output(p, ".cjx files", "a .wav or .flac file, or a directory for several (.wav)")
    p = add_verb(verbs, "reconstruct", reconstruct, "codec-jax reconstruct speech/ -o out --model runs/nano")
    _input_output(p, "audio files or directories", "a .wav file, or a directory; a .cjx is written beside every .wav")
    _rate_flags(p)
    p = add_verb(verbs, "info", info, "codec-jax info talk.cjx")
    p.add_argument(
        "path",
        metavar="PATH",
        help="a .cjx file, model directory, run directory, upstream checkpoint, hub id, or configs/taae.py:nano",
    )


def _input_output(p: argparse.ArgumentParser, inputs: str, output: str) -> None:
    p.add_argument("inputs", nargs="+", metavar="IN", help=inputs)
    p.add_argument("-o", "--output", required=True, metavar="OUT", help=output)
    p.add_argument(
        "--model", required=True, metavar="DIR", help="a saved codec, run directory, upstream directory or hub id"
    )
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="of a run (default: ema)")
    p.add_argument("--force", action="store_true", help="overwrite existing outputs")


def _rate_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--bottleneck", metavar="NAME", help="train, 1x46656_400bps, 2x15625_700bps or 4x729_1000bps")
    p.add_argument("--num-streams", type=int, metavar="N", help="streams of an ESC, or codebooks of a TAAE of several")
    p.add_argument("--no-normalize", action="store_true", help="leave the loudness as it is")


# ---- codec and figures -------------------------------------------------------------------------


def _load(arguments: argparse.Namespace):
    from codec_jax import load

    return load(arguments.model, arguments.weights)


def _encode_file(codec, source: pathlib.Path, arguments: argparse.Namespace):
    from codec_jax.audio import files

    audio, sample_rate = files.read(source)
    flags = {"bottleneck": arguments.bottleneck, "num_streams": arguments.num_streams}
    normalize = False if arguments.no_normalize else None
    return named(source, lambda _: codec.encode(audio[None], sample_rate, normalize=normalize, **flags))


def _one_clip(audio, source: pathlib.Path):
    from codec_jax.errors import UserError

    clips = audio.reshape(-1, 1, audio.shape[-1]) if audio.ndim < 3 else audio
    if len(clips) != 1:
        raise UserError(f"{source} holds {len(clips)} clips: decode it in Python, with codec.decode.")
    return clips[0]


def _measure(codec, source: pathlib.Path, decoded, file_bytes: int, bitrate: float) -> dict[str, float]:
    from codec_jax.audio import files
    from codec_jax.audio.resample import resample
    from codec_jax.evaluate import metrics

    audio, sample_rate = files.read(source)
    reference = resample(audio.mean(0), sample_rate, codec.sample_rate)
    seconds = audio.shape[1] / sample_rate
    count = min(len(reference), decoded.shape[1], _METRIC_SECONDS * codec.sample_rate)
    figures = metrics.all_metrics(reference[:count], decoded.mean(0)[:count], codec.sample_rate)
    return {"seconds": seconds, "bps": bitrate, "file_bps": 8 * file_bytes / seconds, **figures}


def _describe_tokens(encoded, file_bytes: int) -> dict[str, object]:
    from codec_jax import model_card

    seconds = float(sum(encoded.lengths)) / encoded.sample_rate
    return {
        "family": encoded.family,
        "bottleneck": encoded.rate.name,
        "codebooks": model_card.codebooks(encoded.codebook_sizes),
        "clips": len(encoded.lengths),
        "seconds": f"{seconds:.3f} at {encoded.sample_rate} Hz",
        "frames": f"{int(sum(encoded.frames))} at {encoded.frame_rate:g} Hz",
        "nominal": f"{encoded.bitrate:g} bit/s",
        "file": f"{file_bytes} bytes, {8 * file_bytes / seconds:.0f} bit/s",
    }


def _describe_codec(family: str, config, count: int | None) -> dict[str, object]:
    from codec_jax import model_card, models

    model = models.FAMILIES[family]
    geometry = model.geometry(config)
    frame_rate = geometry.sample_rate / geometry.hop_length
    rates = [f"{model_card.bitrate(family, config, rate):g} ({name})" for name, rate in model.rates(config).items()]
    field = geometry.receptive_field
    return {
        "family": family,
        "parameters": f"{_count(_abstract_params(model, config)) if count is None else count:,}",
        "sample rate": f"{geometry.sample_rate} Hz, {geometry.channels} channel{'s' * (geometry.channels > 1)}",
        "frames": f"{frame_rate:g} Hz, {geometry.hop_length} samples each",
        "bit/s": ", ".join(rates) if rates else "none: a codec without bottleneck",
        "reach": "unbounded"
        if field is None
        else f"{field[0] / frame_rate:.2f} s back, {field[1] / frame_rate:.2f} s ahead",
        **{f"model.{name}": value for name, value in vars(config.model).items()},
        **{f"bottleneck.{name}": value for name, value in vars(config.bottleneck).items()},
    }


def _abstract_params(model, config):
    import flax.linen as nn
    import jax

    return nn.unbox(jax.eval_shape(lambda: model.init(config, jax.random.key(0))))["params"]


def _count(params) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))

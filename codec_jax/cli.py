"""codec-jax: one thin function per verb. Exit codes: 0 done, 1 could not do it, 2 wrong usage."""

import argparse
import glob
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence

TOKENS = ".cjx"
AUDIO_OUT = (".wav", ".flac")
_METRIC_SECONDS = 300  # of a long file, what the printed metrics look at


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; errors are one sentence on stderr."""
    arguments = parser().parse_args(argv)
    _choose_platform()
    from codec_jax.errors import UserError

    try:
        arguments.verb(arguments)
    except UserError as error:
        if arguments.debug:
            raise
        print(f"codec-jax: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("codec-jax: stopped", file=sys.stderr)
        return 1
    except Exception as error:
        if arguments.debug:
            raise
        first_line = str(error).splitlines()[0] if str(error) else ""
        print(f"codec-jax: {type(error).__name__}: {first_line} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _choose_platform() -> None:
    """With libtpu installed but no accelerator at hand, JAX would search for a TPU and print errors at every start."""
    devices = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd")
    if importlib.util.find_spec("libtpu") and not any(glob.glob(pattern) for pattern in devices):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


# ---- verbs -------------------------------------------------------------------------------------


def encode(arguments: argparse.Namespace) -> None:
    """Audio files to .cjx token files."""
    jobs = _jobs(_audio_inputs(arguments.inputs), arguments, (TOKENS,))
    codec = _load(arguments)
    for source, (target,) in _progress(jobs):
        _write_bytes(target, _encode_file(codec, source, arguments).to_bytes())


def decode(arguments: argparse.Namespace) -> None:
    """.cjx token files to audio files."""
    from codec_jax import Encoded
    from codec_jax.audio import files

    sources = [pathlib.Path(name) for name in arguments.inputs]
    suffix = pathlib.Path(arguments.output).suffix if _is_file(arguments.output, AUDIO_OUT) else ".wav"
    jobs = _jobs(sources, arguments, (suffix,))
    tokens = {source: _named(source, lambda path: Encoded.from_bytes(_read_bytes(path))) for source in sources}
    codec = _load(arguments)
    for source, (target,) in _progress(jobs):
        audio = _named(source, lambda path: codec.decode(tokens[path]))
        files.write(target, _one_clip(audio, source), codec.sample_rate)


def reconstruct(arguments: argparse.Namespace) -> None:
    """Audio files through the codec and back: audio, tokens, and metrics."""
    from codec_jax.audio import files
    from codec_jax.evaluate.metrics import table

    jobs = _jobs(_audio_inputs(arguments.inputs), arguments, (".wav", TOKENS))
    codec = _load(arguments)
    rows = []
    for source, (audio_target, token_target) in _progress(jobs):
        encoded = _encode_file(codec, source, arguments)
        payload = encoded.to_bytes()
        decoded = codec.decode(encoded)[0]
        files.write(audio_target, decoded, codec.sample_rate)
        _write_bytes(token_target, payload)
        rows.append((source.name, _measure(codec, source, decoded, len(payload), encoded.bitrate)))
    print(table(rows))


def info(arguments: argparse.Namespace) -> None:
    """What a token file, model directory, run or config is."""
    path = arguments.path
    if path.endswith(TOKENS):
        from codec_jax import Encoded

        data = _read_bytes(pathlib.Path(path))
        lines = _describe_tokens(_named(pathlib.Path(path), lambda _: Encoded.from_bytes(data)), len(data))
    elif pathlib.Path(path).is_dir():
        from codec_jax import load

        codec = load(path)
        lines = _describe_codec(codec.family, codec.config, _count(codec.params))
    elif path.partition(":")[0].endswith(".py"):
        from codec_jax import experiment

        loaded = experiment.load_config(path)
        lines = _describe_codec(loaded.family, loaded.codec, None)
    else:
        from codec_jax.errors import UserError

        raise UserError(f"{path} is no .cjx file, model directory, run directory or config (configs/taae.py:nano).")
    for name, value in lines.items():
        print(f"{name:<25} {value}")


def data_synth(arguments: argparse.Namespace) -> None:
    """The synthetic multilingual corpus."""
    from codec_jax.data import synth

    synth.synthesise(pathlib.Path(arguments.output), seed=arguments.seed, clips=arguments.clips)
    print(f"corpus: {arguments.output}/train and {arguments.output}/valid")


# ---- arguments ---------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """All verbs and their flags."""
    top = argparse.ArgumentParser(prog="codec-jax", description="Neural speech codecs in JAX.")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    p = _verb(verbs, "encode", encode, "codec-jax encode talk.wav -o talk.cjx --model runs/nano")
    _input_output(p, "audio files or directories", "a .cjx file, or a directory for several")
    _rate_flags(p)
    p = _verb(verbs, "decode", decode, "codec-jax decode talk.cjx -o talk.wav --model runs/nano")
    _input_output(p, ".cjx files", "a .wav or .flac file, or a directory for several (.wav)")
    p = _verb(verbs, "reconstruct", reconstruct, "codec-jax reconstruct speech/ -o out --model runs/nano")
    _input_output(p, "audio files or directories", "a .wav file, or a directory; a .cjx is written beside every .wav")
    _rate_flags(p)
    p = _verb(verbs, "info", info, "codec-jax info talk.cjx")
    p.add_argument("path", metavar="PATH", help="a .cjx file, model directory, run directory, or configs/taae.py:nano")

    p = verbs.add_parser("data", help="training corpora", description="Training corpora.")
    corpora = p.add_subparsers(required=True, metavar="VERB")
    p = _verb(corpora, "synth", data_synth, "codec-jax data synth -o corpus")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="made anew, with train/ and valid/ inside")
    p.add_argument("--clips", type=int, metavar="N", help="training clips (default: about half an hour of speech)")
    p.add_argument("--seed", type=int, default=0, help="another corpus of the same kind")
    return top


def _verb(verbs, name: str, function, example: str) -> argparse.ArgumentParser:
    text = function.__doc__.strip()
    p = verbs.add_parser(name, help=text, description=text, epilog=f"example: {example}")
    p.set_defaults(verb=function)
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def _input_output(p: argparse.ArgumentParser, inputs: str, output: str) -> None:
    p.add_argument("inputs", nargs="+", metavar="IN", help=inputs)
    p.add_argument("-o", "--output", required=True, metavar="OUT", help=output)
    p.add_argument("--model", required=True, metavar="DIR", help="a saved codec or a run directory")
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="of a run (default: ema)")
    p.add_argument("--force", action="store_true", help="overwrite existing outputs")


def _rate_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--bottleneck", metavar="NAME", help="train, 1x46656_400bps, 2x15625_700bps or 4x729_1000bps")
    p.add_argument("--num-streams", type=int, metavar="N", help="ESC: streams to send, 1 to 6")
    p.add_argument("--no-normalize", action="store_true", help="leave the loudness as it is")


# ---- files -------------------------------------------------------------------------------------


def _audio_inputs(names: Sequence[str]) -> list[pathlib.Path]:
    """Files as given, directories searched."""
    from codec_jax.audio import files

    found: list[pathlib.Path] = []
    for name in names:
        path = pathlib.Path(name)
        found += files.find(path) if path.is_dir() else [path]
    return found


def _is_file(output: str, suffixes: Sequence[str]) -> bool:
    return pathlib.Path(output).suffix.lower() in suffixes


def _jobs(sources: list[pathlib.Path], arguments: argparse.Namespace, suffixes: tuple[str, ...]):
    """Every source with its outputs, checked before anything is computed: they exist, are distinct, and are free."""
    from codec_jax.errors import UserError

    output = pathlib.Path(arguments.output)
    for source in sources:
        if not source.is_file():
            raise UserError(f"there is no file {source}.")
    as_file = _is_file(arguments.output, suffixes)
    if as_file and len(sources) > 1:
        raise UserError(f"{output} is one file, but there are {len(sources)} inputs: give a directory as -o.")
    if not as_file and _is_file(arguments.output, (TOKENS, *AUDIO_OUT)):
        raise UserError(f"{output} has the wrong suffix: this verb writes {' and '.join(suffixes)} files.")
    jobs = []
    taken: dict[str, pathlib.Path] = {}
    for source in sources:
        if source.stem in taken:
            raise UserError(f"{taken[source.stem]} and {source} would both be written as {source.stem}{suffixes[0]}.")
        taken[source.stem] = source
        base = output.with_suffix("") if as_file else output / source.stem
        jobs.append((source, tuple(base.with_name(base.name + suffix) for suffix in suffixes)))
    existing = [target for _, targets in jobs for target in targets if target.exists()]
    if existing and not arguments.force:
        raise UserError(f"{existing[0]} exists already: give another -o, or --force to overwrite.")
    if not as_file and output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: give a directory as -o.")
    (output.parent if as_file else output).mkdir(parents=True, exist_ok=True)
    return jobs


def _read_bytes(path: pathlib.Path) -> bytes:
    from codec_jax.errors import UserError

    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    return path.read_bytes()


def _write_bytes(path: pathlib.Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _named(path: pathlib.Path, function):
    """function(path), errors prefixed with the file they are about."""
    from codec_jax.errors import UserError

    try:
        return function(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _progress(jobs):
    from tqdm import tqdm

    return tqdm(jobs, unit="file", leave=False, disable=None if len(jobs) > 1 else True)


# ---- codec and figures -------------------------------------------------------------------------


def _load(arguments: argparse.Namespace):
    from codec_jax import load

    return load(arguments.model, arguments.weights)


def _encode_file(codec, source: pathlib.Path, arguments: argparse.Namespace):
    from codec_jax.audio import files

    audio, sample_rate = files.read(source)
    flags = {"bottleneck": arguments.bottleneck, "num_streams": arguments.num_streams}
    normalize = False if arguments.no_normalize else None
    return _named(source, lambda _: codec.encode(audio[None], sample_rate, normalize=normalize, **flags))


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
    seconds = float(sum(encoded.lengths)) / encoded.sample_rate
    return {
        "family": encoded.family,
        "bottleneck": encoded.rate.name,
        "codebooks": " x ".join(map(str, encoded.codebook_sizes)),
        "clips": len(encoded.lengths),
        "seconds": f"{seconds:.3f} at {encoded.sample_rate} Hz",
        "frames": f"{int(sum(encoded.frames))} at {encoded.frame_rate:g} Hz",
        "nominal": f"{encoded.bitrate:g} bit/s",
        "file": f"{file_bytes} bytes, {8 * file_bytes / seconds:.0f} bit/s",
    }


def _describe_codec(family: str, config, count: int | None) -> dict[str, object]:
    from codec_jax import models

    model = models.FAMILIES[family]
    geometry = model.geometry(config)
    rate = model.rate(config, None, None)
    frame_rate = geometry.sample_rate / geometry.hop_length
    bits = sum((size - 1).bit_length() for size in model.codebook_sizes(config, rate))
    field = geometry.receptive_field
    return {
        "family": family,
        "parameters": f"{_count(_abstract_params(model, config)) if count is None else count:,}",
        "sample rate": f"{geometry.sample_rate} Hz, {geometry.channels} channel{'s' * (geometry.channels > 1)}",
        "frames": f"{frame_rate:g} Hz, {geometry.hop_length} samples each",
        "bit rate": f"{frame_rate * bits:g} bit/s with the training bottleneck",
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

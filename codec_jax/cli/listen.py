"""listen: a static listening test, and what its listeners said."""

import argparse
import pathlib
import sys

from codec_jax.cli.files import add_verb

_EXAMPLE = (
    "codec-jax listen speech/ -o test --model runs/nano --against opus@6,opus@12; codec-jax listen --analyse results/"
)


def listen(arguments: argparse.Namespace) -> None:
    """A listening test as a static site, MUSHRA (ITU-R BS.1534-3) or AB; with --analyse, the figures of its results."""
    if arguments.analyse:
        if arguments.audio or arguments.model or arguments.against:
            arguments.wrong_usage("--analyse reads results of a test made before: leave AUDIO_DIR and systems out.")
        _analyse(arguments)
        return
    if arguments.audio is None or arguments.output is None:
        arguments.wrong_usage("give AUDIO_DIR and -o SITE_DIR to make a test, or --analyse RESULTS... to read results.")
    _make(arguments)


def add_verbs(verbs) -> None:
    """The parsers of this module."""
    p = add_verb(verbs, "listen", listen, _EXAMPLE)
    p.set_defaults(wrong_usage=p.error)
    p.add_argument("audio", nargs="?", metavar="AUDIO_DIR", help="recordings of speech")
    p.add_argument("-o", "--output", metavar="DIR", help="the site; its key is written beside it, as DIR.key.json")
    p.add_argument("--model", nargs="+", action="extend", metavar="DIR", help="codecs: directories, runs or hub ids")
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="of a run (default: ema)")
    p.add_argument(
        "--rates", metavar="NAME,...", help="of the models, as `4x729_1000bps`, or all (default: the highest)"
    )
    p.add_argument("--against", metavar="NAME,...", help="other codecs, as opus@6, codec2@1.2, dir:PATH")
    p.add_argument("--test", choices=("mushra", "ab"), default="mushra", help="default: %(default)s")
    p.add_argument("--forced", action="store_true", help='AB: without the answer "no preference"')
    p.add_argument("--trials", type=int, default=10, metavar="N", help="utterances (%(default)s)")
    p.add_argument("--seconds", type=float, default=12.0, metavar="S", help="of a long utterance (%(default)s)")
    p.add_argument("--sample-rate", type=int, metavar="HZ", help="of the test (default: that of the recordings)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="which utterances are drawn (%(default)s)")
    p.add_argument("--title", default="Listening test", help='what listeners read (default: "%(default)s")')
    p.add_argument("--analyse", nargs="+", metavar="RESULTS", help="files that listeners saved, or a directory of them")
    p.add_argument("--key", metavar="FILE", help="of the test (default: the one beside the results that fits)")
    p.add_argument("--force", action="store_true", help="overwrite existing outputs")


# ---- a test -------------------------------------------------------------------------------------


def _make(arguments: argparse.Namespace) -> None:
    from codec_jax.evaluate.listening import site, stimuli

    directory = pathlib.Path(arguments.output)
    site.check(directory, arguments.force)
    chosen = stimuli.choose(arguments.audio, arguments.trials, arguments.sample_rate, arguments.seed, arguments.seconds)
    systems = _systems(arguments, [(len(item.audio), chosen.sample_rate) for item in (*chosen.items, chosen.practice)])
    site.check_systems(systems, arguments.test)
    if len(systems) > site.MOST_SIGNALS:
        _say(f"{len(systems)} signals in a trial: ITU-R BS.1534-3 (5.3) recommends {site.MOST_SIGNALS} at most.")
    wanted = site.fewest_items(systems)
    if arguments.test == site.MUSHRA and len(chosen.items) < wanted:
        _say(f"{_count(len(chosen.items), 'utterance')}: ITU-R BS.1534-3 (7.1) asks for {wanted} with so many systems.")
    made = stimuli.make(chosen, systems, arguments.seconds, _progress)
    for note in made.notes:
        _say(note)
    flags = ("audio", "model", "weights", "rates", "against", "trials", "seconds", "sample_rate", "seed")
    made_of = {name: getattr(arguments, name) for name in flags}
    design = site.Design(arguments.test, arguments.title, not arguments.forced, made_of)
    key = site.write(directory, made, systems, design)
    trials, names = _count(len(key["trials"]), "trial"), ", ".join(key["systems"])
    print(f"{directory / 'index.html'}: {arguments.test}, {trials} of {names}")
    print(f"{site.key_path(directory)}: the key; keep it, and do not publish it")


def _systems(arguments: argparse.Namespace, clips: list[tuple[int, int]]) -> list:
    """Reference and anchors (MUSHRA), codecs at the asked-for rates, peers."""
    from codec_jax.evaluate import peers, systems

    found = [systems.original(), systems.lowpass(3500), systems.lowpass(7000)] if arguments.test == "mushra" else []
    for source in arguments.model or []:
        found += _codecs(source, arguments, clips)
    others, missing = peers.find(arguments.against.split(",") if arguments.against else [])
    for name, reason in missing.items():
        _say(f"{name} is left out: {reason}.")
    names = {system.name for system in found[:3]} if arguments.test == "mushra" else set()
    return found + [system for system in others if system.name not in names]


def _codecs(source: str, arguments: argparse.Namespace, clips: list[tuple[int, int]]) -> list:
    from codec_jax import load
    from codec_jax.errors import UserError
    from codec_jax.evaluate import systems

    name = pathlib.Path(source).resolve().name
    found = systems.codec_systems(load(source, arguments.weights), name, clips)
    if arguments.rates == "all":
        return found
    if arguments.rates is None:
        return [max(found, key=lambda system: system.nominal_bps or 0.0)]
    by_rate = {system.name.partition("@")[2]: system for system in found}
    wanted = [rate for rate in arguments.rates.split(",") if rate in by_rate]
    if not wanted:
        raise UserError(f"{source} has no rate {arguments.rates}: choose from {', '.join(by_rate)}, or all.")
    return [by_rate[rate] for rate in wanted]


def _progress(jobs):
    from tqdm import tqdm

    return tqdm(jobs, unit="clip", leave=False, disable=None)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _say(sentence: str) -> None:
    print(f"codec-jax: {sentence}", file=sys.stderr)


# ---- its results --------------------------------------------------------------------------------


def _analyse(arguments: argparse.Namespace) -> None:
    from codec_jax.evaluate.listening import analysis

    directory = pathlib.Path(arguments.output) if arguments.output else None
    if directory:
        analysis.check(directory, arguments.force)
    found = analysis.run(arguments.analyse, arguments.key)
    print(analysis.table(found))
    if directory:
        analysis.write(found, directory)
        print(f"\n{', '.join(str(directory / name) for name in analysis.OUTPUTS)}")

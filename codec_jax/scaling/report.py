"""report.md: what was fitted, with what certainty, what was refused, and what follows from that."""

from collections.abc import Mapping, Sequence
from typing import Any

from codec_jax.scaling.fit import FLOOR, HOLDOUT, ISOFLOP, LETTERS, OPTIMUM, PARAMETRIC, RATE, Result

_TITLES = {
    PARAMETRIC: "the parametric law",
    FLOOR: "the irreducible loss",
    OPTIMUM: "the compute-optimal run",
    ISOFLOP: "isoFLOP profiles",
    RATE: "the rate-distortion surface",
    HOLDOUT: "the hold-out",
}


def markdown(result: Result, pictures: Sequence[str]) -> str:
    """The page. pictures: files that lie beside it."""
    of = result.summary
    parts = [
        "# Scaling law\n",
        _runs(of, result),
        _law(of, pictures),
        _optimum(of, pictures),
        _isoflop(of, pictures),
        _rate(of, pictures),
        _trust(of, pictures),
        _list("Refused", [f"{_TITLES[name]}: {reason}." for name, reason in of["refused"].items()]),
        _list("Left out", [f"{entry['run']} {entry['reason']}." for entry in of["excluded"]]),
        _list("Notes", of["notes"]),
    ]
    return "\n".join(part for part in parts if part)


def sentence(of: Mapping[str, Any]) -> str:
    """The law in one line."""
    values = ", ".join(f"{name} {_shown(of[name])}" for name in LETTERS)
    return f"L(N, D) = E + A/N^alpha + B/D^beta: {values}"


# ---- sections ----------------------------------------------------------------------------------


def _runs(of: Mapping[str, Any], result: Result) -> str:
    columns = result.columns
    lines = [f"Loss: `{of['loss']}`" + (f", as {of['loss_turned']}." if of["loss_turned"] else ".")]
    if of["n"]:
        lines.append(
            f"{of['n']} runs of {_number(columns.params.min())} to {_number(columns.params.max())} parameters, "
            f"trained on {_number(columns.audio_seconds.min())} to {_number(columns.audio_seconds.max())} s of audio"
            + (f", at {_number(of['bitrate'])} bit/s." if of["bitrate"] else ".")
        )
    lines.append(f"{len(of['excluded'])} left out." if of["excluded"] else "None was left out.")
    return " ".join(lines) + "\n"


def _law(of: Mapping[str, Any], pictures: Sequence[str]) -> str:
    if of["noise"] is None:
        return f"## L(N, D) = E + A/N^α + B/D^β\n\nRefused: {of['refused'][PARAMETRIC]}.\n"
    rows = [[name, *_cells(of[name])] for name in LETTERS]
    noise = f"Runs scatter about the law by {_percent(of['noise'])} (standard deviation of log-loss)."
    if of["seed_noise"]:
        noise += f" Seeds alone scatter by {_percent(of['seed_noise']['value'])}: more than that is misfit."
    head = "## L(N, D) = E + A/N^α + B/D^β\n\nN in parameters, D in seconds of audio.\n\n"
    table = _table(["", "value", "95 % interval, from", "to"], rows)
    return head + table + f"\n{noise}\n" + _picture("law", pictures)


def _optimum(of: Mapping[str, Any], pictures: Sequence[str]) -> str:
    found = of[OPTIMUM]
    if found is None:
        return ""
    unit = "FLOPs" if of["compute_unit"] == "flop" else "parameters × seconds"
    rows = [
        [_number(row["compute"]), f"{row['times_largest_run']:.3g}", *(_shown(row[k]) for k in _FIGURES)]
        for row in found["at"]
    ]
    head = [f"compute, {unit}", "of the largest run's", "N*", "D*, s", "loss"]
    return (
        f"## The best run for a compute\n\nN* ~ C^a, D* ~ C^b: a = {_shown(found['a'])}, b = {_shown(found['b'])}.\n\n"
        + _table(head, rows)
        + _picture("frontier", pictures)
    )


_FIGURES = ("params", "audio_seconds", "loss")


def _isoflop(of: Mapping[str, Any], pictures: Sequence[str]) -> str:
    found = of[ISOFLOP]
    if found is None:
        return ""
    rows = [
        [
            _number(profile["compute"]),
            str(len(profile["runs"])),
            *([_shown(profile["params"]), _shown(profile["audio_seconds"])] if profile["params"] else ["refused", ""]),
        ]
        for profile in found["profiles"]
    ]
    said = f"N* ~ C^a, D* ~ C^b: a = {_shown(found['a'])}, b = {_shown(found['b'])}.\n\n" if found["a"] else ""
    table = _table(["compute", "runs", "N*", "D*, s"], rows)
    return f"## IsoFLOP profiles\n\n{said}{table}" + _picture("isoflop", pictures)


def _rate(of: Mapping[str, Any], pictures: Sequence[str]) -> str:
    found = of[RATE]
    if found is None:
        return ""
    form = "G 2^(-R / R_half)" if found["form"] == "exponential" else "G / R^γ"
    told = (
        "the other form leaves more unexplained"
        if found["told_from_the_other"]
        else "the runs do not tell it from the other form, so trust it between their rates alone"
    )
    names = ("E", "A", "alpha", "B", "beta", "G", "gamma", "halving_bitrate")
    rows = [[name, *_cells(found[name])] for name in names if name in found]
    return (
        f"## Rate\n\nL = E + A/N^α + B/D^β + {form} over {found['n']} runs; {told} "
        f"({_percent(found['noise'])} against {_percent(found['noise_of_the_other'])}).\n\n"
        + _table(["", "value", "95 % interval, from", "to"], rows)
        + _picture("rate", pictures)
    )


def _trust(of: Mapping[str, Any], pictures: Sequence[str]) -> str:
    found = of[HOLDOUT]
    lines = ["## How far to trust it\n"]
    if found is not None:
        count, beyond = len(found["runs"]), found["times_largest_fitted"]
        lines.append(
            f"Fitted to the {found['fitted']} cheaper runs, the law predicts the {count} costliest, of up to "
            f"{beyond:.3g} times the compute, with errors of {_error(found['mean_error'])} on average and "
            f"{_error(found['worst_error'])} at worst. Single runs scatter by {_percent(found['noise'])}, and "
            f"{found['within_interval']} of {count} lie where law and scatter allow.\n"
        )
        head = ["run", "predicted", "measured", "error, and the law's own interval"]
        rows = [
            [row["run"], _number(row["predicted"]), _number(row["loss"]), _error(row["error"])] for row in found["runs"]
        ]
        lines.append(_table(head, rows))
    else:
        lines.append(f"Nothing was held out: {of['refused'][HOLDOUT]}.\n")
    if of["noise"] is not None:
        lines.append(
            "Intervals hold the truth in about 95 of 100 sweeps if the law has the right form; whether it has, they do "
            "not know. Beyond ten times the compute of the largest run nothing here has been tested.\n"
        )
        lines.append(_picture("residuals", pictures).lstrip("\n"))
    return "\n".join(lines)


# ---- parts -------------------------------------------------------------------------------------


def _list(title: str, items: Sequence[str]) -> str:
    return f"## {title}\n\n" + "".join(f"- {item}\n" for item in items) if items else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _picture(name: str, pictures: Sequence[str]) -> str:
    return f"\n![{name}]({name}.png)\n" if f"{name}.png" in pictures else ""


def _cells(interval: Mapping[str, Any]) -> list[str]:
    return [_number(interval[part]) for part in ("value", "low", "high")]


def _shown(interval: Mapping[str, Any]) -> str:
    value, low, high = _cells(interval)
    return f"{value} ({low} to {high})"


def _error(interval: Mapping[str, Any]) -> str:
    value, low, high = (100 * interval[part] for part in ("value", "low", "high"))
    return f"{value:+.2f} % ({low:+.2f} to {high:+.2f})"


def _number(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.4g}"


def _percent(noise: float) -> str:
    return f"{100 * noise:.2g} %"

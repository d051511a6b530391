"""``summary.json`` and ``summary.md``: tables by study, fitted models, and what they may be used for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.ratios import shown
from benchmark.tables import markdown_table
from scaling.fit import FIXED, fit_phase
from scaling.points import Study
from scaling.records import Record
from scaling.series import EXPONENT, MEASURES, TIMED, series_of

from megatron_cgrpo.observe.atomic import write_json, write_text

_JOINT = ("strong", "weak", "groups", "lengths")
_PHASES = ("update", "rollout")
"""Studies of one model, whose points differ in how much work a device has, and what of them has a common law."""


def summarise(studies: Sequence[Study], records: Sequence[Record]) -> dict[str, Any]:
    """Plain JSON."""
    return {
        "studies": {
            study.name: {
                "kind": study.kind,
                "axis": study.axis,
                "series": [series.to_json() for series in series_of(study, records)],
            }
            for study in studies
        },
        "joint": list(_joint(studies, records)),
    }


def write_summary(out: Path, summary: Mapping[str, Any]) -> None:
    write_json(out / "summary.json", summary)
    write_text(out / "summary.md", markdown(summary))


def markdown(summary: Mapping[str, Any]) -> str:
    parts = []
    for name, study in summary["studies"].items():
        for series in study["series"]:
            parts += [f"## {name}: {series['source']}", _about(series), _points(study["axis"], series)]
            parts += [_exponents(series)] if study["kind"] == "growth" else []
        if not study["series"]:
            parts += [f"## {name}", "No first point with another of the same source: nothing to compare."]
    parts += ["## Fitted: seconds of a step = fixed + rates x amounts", _fits(summary)]
    return "\n\n".join(parts) + "\n"


def _about(series: Mapping[str, Any]) -> str:
    where = "of" if series["source"] == "measured" else "planned for"
    lines = [f"{series['repeats']} repetition(s) {where} {series['machine']}, commit {', '.join(series['commits'])}."]
    if loads := series["loads"]:
        lines.append(f"Load of the machine before a run: {loads[0]:.1f} to {loads[-1]:.1f}.")
    lines += [f"Planned because {reason}." for reason in series["reasons"]]
    return " ".join(lines)


def _points(axis: str, series: Mapping[str, Any]) -> str:
    compared = [(measure, phase) for measure in MEASURES for phase in TIMED if _has(series, measure, phase)]
    heads = [axis, "source", "ranks", "engine devices", *(f"{measure}, {phase}" for measure, phase in compared)]
    heads += [*(f"{phase} s" for phase in (*TIMED, "sync")), "samples/s", "trainer tokens/s", "engine tokens/s"]
    heads += ["GiB a rank", "MFU"]
    return markdown_table(heads, [_row(point, series, compared) for point in series["points"]])


def _row(point: Mapping[str, Any], series: Mapping[str, Any], compared: Sequence[tuple[str, str]]) -> list[str]:
    figures = [series["figures"].get(f"{measure}, {phase}, {point['label']}") for measure, phase in compared]
    rates = ("samples_per_s", "trainer_tokens_per_s", "engine_tokens_per_s")
    return [
        point["label"],
        series["source"],
        str(point["ranks"]),
        str(point["engine_devices"]),
        *(shown(figure) if figure else "1" for figure in figures),
        *(f"{point['seconds'][phase]['median']:.3g}" for phase in (*TIMED, "sync")),
        *(f"{point[rate]['median']:.3g}" for rate in rates),
        f"{point['memory_gib']:.3g}" + ("" if point["fits"] else ", does not fit"),
        "" if point["mfu"] is None else f"{point['mfu']['median']:.1%}",
    ]


def _has(series: Mapping[str, Any], measure: str, phase: str) -> bool:
    return any(name.startswith(f"{measure}, {phase}, ") for name in series["figures"])


def _exponents(series: Mapping[str, Any]) -> str:
    found = {phase: series["figures"].get(f"{EXPONENT}, {phase}") for phase in TIMED}
    return "Exponents: " + "; ".join(f"{phase} {shown(value)}" for phase, value in found.items() if value) + "."


def _joint(studies: Sequence[Study], records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """One model over all the studies whose points differ in amounts alone, by source and machine."""
    names = {point.name for study in studies if study.name in _JOINT for point in study.points}
    own = [record for record in records if record.point in names]
    kinds = dict.fromkeys((record.source, record.machine["name"], record.parameters) for record in own)
    for source, machine, parameters in kinds:
        group = [r for r in own if (r.source, r.machine["name"], r.parameters) == (source, machine, parameters)]
        fits = {phase: found.to_json() for phase in _PHASES if (found := fit_phase(group, phase)) is not None}
        if fits:
            yield {"source": source, "machine": machine, "parameters": parameters, "fits": fits}


def _fits(summary: Mapping[str, Any]) -> str:
    heads = [
        "points of",
        "source",
        "phase",
        "points",
        "model",
        "fixed share",
        "largest residual",
        "largest error, left out",
        "range",
    ]
    named = [(name, series) for name, study in summary["studies"].items() for series in study["series"]]
    named += [(f"all of {', '.join(_JOINT)}", joint) for joint in summary["joint"]]
    body = [
        [name, each["source"], phase, str(fit["points"]), *_fit_cells(fit)]
        for name, each in named
        for phase, fit in each["fits"].items()
    ]
    return markdown_table(heads, body)


def _fit_cells(fit: Mapping[str, Any]) -> list[str]:
    rates = [f"{value:.3g} {name}" for name, value in fit["coefficients"].items() if name != FIXED]
    left_out = fit["largest_error_left_out"]
    exact = fit["points"] == len(fit["coefficients"])
    return [
        " + ".join([f"{fit['coefficients'][FIXED]:.3g} {FIXED}", *rates]),
        f"{fit['fixed_share']:.1%}",
        f"{fit['largest_residual']:.1%}" + (" (as many terms as points)" if exact else ""),
        "none can be spared" if left_out is None else f"{left_out:.1%}",
        "; ".join(f"{low:.4g} to {high:.4g} {_amount(name)}" for name, (low, high) in fit["ranges"].items()),
    ]


def _amount(rate: str) -> str:
    """``s per token and rank`` -> ``tokens per rank``."""
    amount, _, device = rate.removeprefix("s per ").partition(" and ")
    return f"{amount}s" + (f" per {device}" if device else "")

"""What the runs cost: tokens, seconds and device-seconds by source, compute, and what was gained for it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from megatron_cgrpo.report.methods import Method
from megatron_cgrpo.report.run_files import Run
from megatron_cgrpo.report.scores import PASS_AT_1
from megatron_cgrpo.report.tables import Cell, Table, number, spread, without_empty_columns

SOURCES = ("rollout", "critique", "refinement", "verification", "logprob", "update", "sync", "evaluate")
COMPUTE = "cost.compute"
_MILLION = 1e-6


def cost_tables(methods: Sequence[Method]) -> list[Table]:
    """A summary, then each measure by source. Means over finished runs; runs without ``cost.*`` show nothing."""
    return [
        _summary(methods),
        _by_source(methods, "tokens", "thousand tokens", 1e-3),
        _by_source(methods, "seconds", "seconds", 1.0),
        _by_source(methods, "device_seconds", "device-seconds", 1.0),
    ]


def _summary(methods: Sequence[Method]) -> Table:
    rows = [
        [
            Cell(method.label),
            _mean(method, "time.step"),
            *(
                _sum(method, f"cost.*.{measure}", scale)
                for measure, scale in (("device_seconds", 1.0), ("tokens", 1e-3))
            ),
            _mean(method, COMPUTE, _MILLION, 2),
            spread(method.spread(lambda run: run.final(PASS_AT_1))),
            spread(method.spread(_gain), 1),
            spread(method.spread(_gain_per_compute), 2),
        ]
        for method in methods
    ]
    columns = ["method", "seconds of training", "device-seconds", "thousand tokens", "compute (million)"]
    columns += ["final Pass@1 (%)", "gain (points)", "points per million compute"]
    note = (
        "Means over finished runs. Compute counts 1 for a generated token, 1 for a token of a forward pass for "
        "log-probabilities, 3 for a trained token; prompts are not counted. Gain: final less base Pass@1."
    )
    return without_empty_columns(Table("cost", "Cost", columns, rows, note))


def _by_source(methods: Sequence[Method], measure: str, title: str, scale: float) -> Table:
    rows = [
        [Cell(method.label), *(_mean(method, f"cost.{source}.{measure}", scale) for source in SOURCES)]
        for method in methods
    ]
    table = Table(f"cost_{measure}", f"Cost by source: {title}", ["method", *SOURCES], rows)
    return without_empty_columns(table)


def _mean(method: Method, key: str, scale: float = 1.0, digits: int = 1) -> Cell:
    """Of the runs' totals."""
    totals = [total for run in method.finished if (total := run.total(key)) is not None]
    return number(mean(totals) if totals else None, digits, scale)


def _sum(method: Method, pattern: str, scale: float) -> Cell:
    """Over sources, of the runs' totals."""
    totals = []
    for run in method.finished:
        found = [total for source in SOURCES if (total := run.total(pattern.replace("*", source))) is not None]
        if found:
            totals.append(sum(found))
    return number(mean(totals) if totals else None, 1, scale)


def _gain(run: Run) -> float | None:
    base, final = run.base(PASS_AT_1), run.final(PASS_AT_1)
    return None if base is None or final is None else final - base


def _gain_per_compute(run: Run) -> float | None:
    gain, compute = _gain(run), run.total(COMPUTE)
    return gain / (compute * _MILLION) if gain is not None and compute else None

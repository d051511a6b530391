"""What the runs cost: tokens, seconds and device-seconds by source, compute, and what was gained for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_cgrpo.report.methods import Method, Spread
from megatron_cgrpo.report.run_files import Run
from megatron_cgrpo.report.scores import PASS_AT_1
from megatron_cgrpo.report.tables import Cell, Table, number, spread, without_empty_columns

TRAINING = ("rollout", "critique", "refinement", "verification", "logprob", "update", "sync")
COMPUTE = "cost.compute"
_MILLION = 1e-6
_EVALUATE, _MEASURE = "time.evaluate", "time.measure"


def cost_tables(methods: Sequence[Method]) -> list[Table]:
    """Totals of training, those of evaluation, then each measure by source of training.

    Means over finished runs; runs without ``cost.*`` show nothing.
    """
    return [
        _training(methods),
        _evaluation(methods),
        _by_source(methods, "tokens", "thousand tokens", 1e-3),
        _by_source(methods, "prompt_tokens", "thousand prompt tokens", 1e-3),
        _by_source(methods, "seconds", "seconds", 1.0),
        _by_source(methods, "device_seconds", "device-seconds", 1.0),
    ]


def _training(methods: Sequence[Method]) -> Table:
    rows = [
        [
            Cell(method.label),
            _average(method, _training_seconds),
            _of_training(method, "device_seconds"),
            _of_training(method, "tokens", 1e-3),
            _of_training(method, "prompt_tokens", 1e-3),
            _mean(method, COMPUTE, _MILLION, 2),
            spread(method.spread(lambda run: run.final(PASS_AT_1))),
            spread(method.spread(_gain), 1),
            spread(method.spread(_gain_per_compute), 2),
        ]
        for method in methods
    ]
    columns = ["method", "seconds", "device-seconds", "thousand tokens", "thousand prompt tokens", "compute (million)"]
    columns += ["final Pass@1 (%)", "gain (points)", "points per million compute"]
    note = (
        "Means over finished runs, of training alone: evaluation and what only measures are in no column. Compute is "
        "in forward passes of one token of the policy: tokens generated, and of their prompts, count 1 (in a model of "
        "another size, by its parameters), those of passes for log-probabilities 1 and those trained 3, both with "
        "their prompts. Gain: final less base Pass@1."
    )
    return without_empty_columns(Table("cost", "Cost of training", columns, rows, note))


def _evaluation(methods: Sequence[Method]) -> Table:
    keys = {_EVALUATE: "seconds", "cost.evaluate.device_seconds": "device-seconds", _MEASURE: "seconds of measuring"}
    rows = [[Cell(method.label), *(_mean(method, key) for key in keys)] for method in methods]
    columns = ["method", *keys.values()]
    note = "Held-out evaluation after training steps, and measurements for the ledger: no other table counts them."
    return without_empty_columns(Table("cost_evaluation", "Cost of evaluation", columns, rows, note))


def _by_source(methods: Sequence[Method], measure: str, title: str, scale: float) -> Table:
    rows = [
        [Cell(method.label), *(_mean(method, f"cost.{source}.{measure}", scale) for source in TRAINING)]
        for method in methods
    ]
    table = Table(f"cost_{measure}", f"Cost of training by source: {title}", ["method", *TRAINING], rows)
    return without_empty_columns(table)


def _mean(method: Method, key: str, scale: float = 1.0, digits: int = 1) -> Cell:
    """Of the runs' totals."""
    return _average(method, lambda run: run.total(key), scale, digits)


def _of_training(method: Method, measure: str, scale: float = 1.0) -> Cell:
    """The mean over the runs of what all sources of training cost together."""

    def together(run: Run) -> float | None:
        found = [total for source in TRAINING if (total := run.total(f"cost.{source}.{measure}")) is not None]
        return sum(found) if found else None

    return _average(method, together, scale)


def _average(method: Method, figure: Callable[[Run], float | None], scale: float = 1.0, digits: int = 1) -> Cell:
    found = Spread.of(map(figure, method.finished))
    return number(None if found is None else found.mean, digits, scale)


def _training_seconds(run: Run) -> float | None:
    """Of the steps, less what only looks on."""
    total = run.total("time.step")
    return None if total is None else total - sum(run.total(key) or 0.0 for key in (_EVALUATE, _MEASURE))


def _gain(run: Run) -> float | None:
    base, final = run.base(PASS_AT_1), run.final(PASS_AT_1)
    return None if base is None or final is None else final - base


def _gain_per_compute(run: Run) -> float | None:
    gain, compute = _gain(run), run.total(COMPUTE)
    return gain / (compute * _MILLION) if gain is not None and compute else None

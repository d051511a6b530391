"""What critique and refinement did: mean ± sample standard deviation over seeds of what each run's summary pools."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from megatron_cgrpo.report.methods import Method
from megatron_cgrpo.report.run_files import Run
from megatron_cgrpo.report.tables import Cell, Table, spread, without_empty_columns

_FIXED = "ledger.fixed."
_HISTOGRAM = "ledger.p.le_"
_SHARES = {
    "groups.failed": "questions failed",
    "refinement.questions_refined": "questions refined",
    "refinement.valid": "refinements right",
    "ledger.leaked": "right ones that copy the answer",
    "ledger.refined_share": "refined among trained tokens",
    "critique.false_correct": "critique false-correct",
    "critique.false_incorrect": "critique false-incorrect",
    "critique.unparsable": "critique unparsable",
}
_NATS = {
    "ledger.logp_question": "log p, question alone",
    "ledger.logp_critique": "log p, under the critique",
    "ledger.gap": "gap",
    "ledger.shaping": "mean p / (p + γ)",
    "gradient.rollout": "gradient norm, responses",
    "gradient.refinement": "gradient norm, refinements",
}


def ledger_tables(methods: Sequence[Method]) -> list[Table]:
    """How refinement went, how likely the policy found the refinements, and the histogram of their probabilities."""
    kinds = sorted({key for method in methods for run in method.runs for key in run.summary if key.startswith(_FIXED)})
    fixed = {kind: f"fixed by {kind.removeprefix(_FIXED)}" for kind in kinds}
    bins = {key for method in methods for run in method.runs for key in run.summary if key.startswith(_HISTOGRAM)}
    return [
        _table(
            "refinement",
            "Refinement",
            methods,
            _SHARES | fixed,
            "Per cent, over all training steps. Fixed: wrong responses whose refinement is right, by kind of critique.",
        ),
        _table(
            "likelihood",
            "Refinements under the policy",
            methods,
            _NATS,
            "Nats per trained token of refinements, before the step's update: given the question alone, and question, "
            "attempt and critique.",
            scale=1.0,
            digits=3,
        ),
        _table(
            "probabilities",
            "Probability of refined tokens, given the question alone",
            methods,
            {key: f"≤ {key.removeprefix(_HISTOGRAM)}" for key in sorted(bins, key=_upper_end)},
            "Per cent of the tokens in each bin.",
        ),
    ]


def _table(
    name: str,
    title: str,
    methods: Sequence[Method],
    columns: Mapping[str, str],
    note: str,
    scale: float = 100.0,
    digits: int = 1,
) -> Table:
    rows = [
        [Cell(method.label), *(spread(method.spread(partial(_figure, key)), digits, scale) for key in columns)]
        for method in methods
    ]
    return without_empty_columns(Table(name, title, ["method", *columns.values()], rows, note))


def _figure(key: str, run: Run) -> float | None:
    """From the summary; what it does not pool is counted over groups, or the mean over the steps that have it."""
    if not run.finished:
        return None
    if (pooled := run.pooled(key)) is not None:
        return pooled
    if key == "groups.failed":
        total = run.total("groups.total")
        return (run.total(key) or 0.0) / total if total else None
    found = [value for _, value in run.values(key) if math.isfinite(value)]
    return sum(found) / len(found) if found else None


def _upper_end(key: str) -> float:
    return float(key.removeprefix(_HISTOGRAM))

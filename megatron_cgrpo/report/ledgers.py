"""What critique and refinement did: mean ± sample standard deviation over seeds of what each run's summary pools."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_cgrpo.report.embedded_task import taught
from megatron_cgrpo.report.methods import Method
from megatron_cgrpo.report.run_files import Run
from megatron_cgrpo.report.tables import Table, spread_table

_FIXED = "ledger.fixed."
_HISTOGRAM = "ledger.p.le_"
_VERDICTS = "verify."
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
    """How refinement went, how likely the policy found the refinements, and what the verifier said."""
    kinds = sorted({key for method in methods for run in method.runs for key in run.summary if key.startswith(_FIXED)})
    fixed = {kind: f"fixed by {kind.removeprefix(_FIXED)}" for kind in kinds}
    bins = {key for method in methods for run in method.runs for key in run.summary if key.startswith(_HISTOGRAM)}
    verdicts = {key for method in methods for run in method.runs for key in run.summary if key.startswith(_VERDICTS)}
    return [
        spread_table(
            "refinement",
            "Refinement",
            methods,
            _SHARES | fixed,
            _figure,
            "Per cent, over all training steps. Fixed: wrong responses whose refinement is right, by kind of critique. "
            + taught(methods),
        ),
        spread_table(
            "likelihood",
            "Refinements under the policy",
            methods,
            _NATS,
            _figure,
            "Nats per token of all refinements, selected or not, before the step's update: given the question alone, "
            "and question, attempt and critique.",
            scale=1.0,
            digits=3,
        ),
        spread_table(
            "probabilities",
            "Probability of refined tokens, given the question alone",
            methods,
            {key: f"≤ {key.removeprefix(_HISTOGRAM)}" for key in sorted(bins, key=_upper_end)},
            _figure,
            "Per cent of the tokens in each bin.",
        ),
        spread_table(
            "verdicts",
            "Verdicts of the verifier",
            methods,
            {key: key.removeprefix(_VERDICTS) for key in sorted(verdicts)},
            _figure,
            "Responses and refinements of a run, by the verifier's cause. An error is the verifier's own; what nobody "
            "judged for that reason is dropped: it trains nothing, and is no part of a baseline.",
            scale=1.0,
            digits=0,
        ),
    ]


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

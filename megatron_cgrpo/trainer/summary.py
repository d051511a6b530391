"""The figures that end a run, from ``metrics.jsonl`` alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from megatron_cgrpo.trainer.pooling import pool

Line = dict[str, int | float]


def summarise(lines: Sequence[Line]) -> dict[str, int | float | None]:
    """``base.*`` and ``trained.*`` evaluations, refinement success over all critiqued groups, seconds, tokens and cost.

    ``ledger.*``, ``critique.*`` and ``verify.*`` are pooled over all steps.

    A key whose figure the task or method does not have is None. Raises ``ValueError`` without a final evaluation.
    """
    evaluated = [line for line in lines if "eval.pass_at_1" in line]
    if len(evaluated) < 2:
        raise ValueError("metrics hold no final evaluation: the run has not reached train.steps")
    base, trained = evaluated[0], evaluated[-1]
    summary: dict[str, int | float | None] = {"steps": trained["step"]}
    for name, line in (("base", base), ("trained", trained)):
        for key in ("pass_at_1", "pass_at_8"):
            summary[f"{name}.{key}"] = line.get(f"eval.{key}")
        summary |= {key.replace("eval.", f"{name}."): value for key, value in line.items() if key.startswith("eval.")}
    critiqued = sum(line.get("groups.critiqued", 0) for line in lines)
    refined = sum(line.get("groups.refined", 0) for line in lines)
    summary["refinement.questions_refined"] = refined / critiqued if critiqued else None
    summary["misconceptions.repaired"] = trained.get("eval.misconceptions_repaired")
    totals: Counter[str] = Counter()
    for line in lines:
        totals.update({key: value for key, value in line.items() if key.startswith(("time.", "tokens.", "cost."))})
    for key, value in sorted(totals.items()):
        summary[key.replace("time.", "seconds.")] = value
    return summary | pool(lines)

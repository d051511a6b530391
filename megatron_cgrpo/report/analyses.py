"""What ``mcgrpo analyse`` found in the runs' texts: behaviours, and what became of persistent failures."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_cgrpo.analysis.behaviours import BEHAVIOURS
from megatron_cgrpo.report.methods import Method
from megatron_cgrpo.report.run_files import Run
from megatron_cgrpo.report.tables import Table, spread_table

_PERSISTENT = {
    "persistent.share": "questions that failed once",
    "persistent.rescued_share": "of the critiqued, refined rightly",
    "persistent.solved_share": "of those seen again, solved",
    "persistent.solved_rescued_share": "of those seen again and refined rightly, solved",
}


def analysis_tables(methods: Sequence[Method]) -> list[Table]:
    """Per cent, mean ± sample standard deviation over the runs that have been analysed; none where no run has."""
    if not any(run.analysis for method in methods for run in method.runs):
        return []
    names = [*BEHAVIOURS, "planning", "reflection"]
    prose = "Shares of the responses that are English prose, which alone the rules can read."
    if not any(_figure("behaviour.prose", run) for method in methods for run in method.runs):
        prose = "No response is English prose, so the rules for behaviours had nothing to read."
    tables = [
        spread_table(
            "persistent",
            "Questions that failed in every answer",
            methods,
            _PERSISTENT,
            _figure,
            "Over the training steps: was such a question refined rightly, and answered rightly when it came again?",
        )
    ]
    for source, title, note in (
        ("behaviour", "Cognitive behaviours, by rule", prose),
        ("judge", "Cognitive behaviours, by a model's judgement", "Shares of the judged responses."),
    ):
        columns = {f"{source}.{name}": name.replace("_", " ") for name in names}
        tables.append(spread_table(source, title, methods, columns, _figure, note))
    return tables


def _figure(key: str, run: Run) -> float | None:
    value = (run.analysis or {}).get(key)
    return float(value) if isinstance(value, int | float) else None

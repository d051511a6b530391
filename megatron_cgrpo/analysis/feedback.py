"""Critiques against the verifier, and what refinement made of them, by kind of critique."""

from __future__ import annotations

from collections import Counter

from megatron_cgrpo.analysis.dumps import Line, is_correct, is_unverified, keyed, share
from megatron_cgrpo.types import TEMPLATES


class Feedback:
    """Counts over groups: ``critique.<kind>.*``, ``fix.<kind>.*``, ``leak.<kind>.*`` and ``failure.<cause>``.

    Templates state the verifier's verdict, and are held against nothing. Fixes and leaks are counted as the ledger of
    training does, over refinements of wrong responses. A leak is a correct one whose answer stood in the critique while
    its own steps do not lead there; files without that judgement give no ``leak.*``.
    """

    def __init__(self) -> None:
        self._critiques: dict[str, Counter[str]] = {}
        self._fixes: dict[str, Counter[str]] = {}
        self._leaks: dict[str, Counter[str]] = {}
        self._failures: Counter[str] = Counter()

    def add(self, group: Line) -> None:
        self._failures.update(group["critique_failures"])
        rescued: dict[str, bool] = {}
        for refinement in group["refinements"]:
            critique = refinement["critique"]
            if critique is None:
                continue
            kind, attempt = critique["kind"], group["responses"][refinement["parent"]]
            if is_unverified(attempt):
                continue  # nobody knows whether there was anything to find, or to fix
            self._judge(kind, critique["concludes_correct"], is_correct(attempt))
            if is_correct(attempt) or is_unverified(refinement):
                continue  # there was nothing to fix, or nobody knows whether it was
            fixed = is_correct(refinement)
            rescued[kind] = rescued.get(kind, False) or fixed
            self._fixes.setdefault(kind, Counter()).update(refinements=1, valid=fixed)
            if fixed and "leaked" in refinement:
                self._leaks.setdefault(kind, Counter()).update(
                    correct=1, leaked=refinement["leaked"], unsupported=not refinement["supported"]
                )
        for kind, fixed in rescued.items():
            if group["failed"]:
                self._fixes[kind].update(questions=1, questions_refined=fixed)

    def _judge(self, kind: str, concludes_correct: bool | None, correct: bool) -> None:
        counts = self._critiques.setdefault(kind, Counter())
        counts.update(critiques=1)
        if concludes_correct is not None and kind not in TEMPLATES:
            counts.update(
                concluded=1,
                false_correct=concludes_correct and not correct,
                false_incorrect=correct and not concludes_correct,
            )

    def figures(self) -> dict[str, float]:
        figures: dict[str, float] = {f"failure.{cause}": count for cause, count in self._failures.items()}
        for kind, counts in self._critiques.items():
            wrong = counts["false_correct"] + counts["false_incorrect"]
            accuracy = {"accuracy": 1 - wrong / counts["concluded"]} if counts["concluded"] else {}
            figures |= keyed(f"critique.{kind}", {**counts, **accuracy})
        for kind, counts in self._fixes.items():
            figures |= keyed(f"fix.{kind}", {**counts, **share(counts["valid"], counts["refinements"])})
            if counts["questions"]:
                figures[f"fix.{kind}.questions_share"] = counts["questions_refined"] / counts["questions"]
        for kind, counts in self._leaks.items():
            figures |= keyed(f"leak.{kind}", {**counts, **share(counts["leaked"], counts["correct"])})
        return figures

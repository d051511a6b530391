"""Questions that failed in every answer: were they ever solved in training?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_cgrpo.analysis.dumps import Line, is_correct


@dataclass
class Question:
    """Steps at which it failed in all answers, had a correct refinement then, and was answered rightly after that."""

    prompt: str
    answer: str
    failed: list[int] = field(default_factory=list)
    critiqued: bool = False
    rescued: list[int] = field(default_factory=list)
    seen_again: bool = False
    solved: list[int] = field(default_factory=list)


class PersistentFailures:
    """Follows every question from the first step at which all its answers were wrong."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._questions: dict[str, Question] = {}

    def add(self, group: Line) -> None:
        """Groups come in the order of their steps."""
        self._seen.add(group["id"])
        if not group["failed"] and group["id"] not in self._questions:
            return
        question = self._questions.setdefault(group["id"], Question(group["prompt"], group["answer"]))
        question.seen_again = question.seen_again or bool(question.failed)
        if any(is_correct(response) for response in group["responses"]):
            question.solved.append(group["step"])
            return
        question.failed.append(group["step"])
        question.critiqued = question.critiqued or bool(group["refinements"])
        if any(is_correct(refinement) for refinement in group["refinements"]):
            question.rescued.append(group["step"])

    def figures(self) -> dict[str, float]:
        """``persistent.*``. ``solved`` counts among the questions seen again; the rest had no second chance."""
        questions = list(self._questions.values())
        again = [question for question in questions if question.seen_again]
        again_rescued = [question for question in again if question.rescued]
        counts: dict[str, float] = {
            "seen": len(self._seen),
            "questions": len(questions),
            "critiqued": sum(question.critiqued for question in questions),
            "rescued": sum(bool(question.rescued) for question in questions),
            "seen_again": len(again),
            "solved": sum(bool(question.solved) for question in again),
            "seen_again_rescued": len(again_rescued),
            "solved_rescued": sum(bool(question.solved) for question in again_rescued),
        }
        shares = {
            "share": ("questions", "seen"),
            "rescued_share": ("rescued", "critiqued"),
            "solved_share": ("solved", "seen_again"),
            "solved_rescued_share": ("solved_rescued", "seen_again_rescued"),
        }
        counts |= {name: counts[part] / counts[whole] for name, (part, whole) in shares.items() if counts[whole]}
        return {f"persistent.{name}": value for name, value in counts.items()}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One a question, with its steps."""
        for name, question in self._questions.items():
            yield {
                "id": name,
                "prompt": question.prompt,
                "answer": question.answer,
                "failed": question.failed,
                "rescued": question.rescued,
                "solved": question.solved,
            }

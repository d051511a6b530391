"""Which misconceived facts a policy now answers rightly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_cgrpo.tasks.misconceptions.facts import FactTable
from megatron_cgrpo.tasks.misconceptions.problems import Problem
from megatron_cgrpo.tasks.misconceptions.solution import SEPARATOR, parse_step


@dataclass(frozen=True)
class FactAnswers:
    """How often one misconceived fact was computed, and how often with its right value."""

    right: int = 0
    total: int = 0

    @property
    def repaired(self) -> bool:
        """The right value in most of the steps that computed the fact; False where none did."""
        return 2 * self.right > self.total


def misconceived_answers(responses: Iterable[tuple[str, str]], facts: FactTable) -> dict[str, FactAnswers]:
    """Answers to every misconceived fact (keyed ``7*8``) over (question, response) pairs.

    A step counts where it is the one that the problem and the step before it call for; reading of a response stops at
    the first that is not, since what follows answers another problem.
    """
    right = dict.fromkeys(facts.misconceived, 0)
    total = dict.fromkeys(facts.misconceived, 0)
    for question, response in responses:
        problem = Problem(question)
        value = problem.first
        for i, text in enumerate(response.split(SEPARATOR)[: problem.operations]):
            step = parse_step(text)
            if step is None or step.fact != problem.fact(i, value):
                break
            value = step.value
            if step.fact in total:
                total[step.fact] += 1
                right[step.fact] += value == facts.truth(step.fact)
    return {str(fact): FactAnswers(right[fact], total[fact]) for fact in total}

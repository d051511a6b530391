r"""Step-by-step solutions, ``7*8=6;6-9=7;7+4=1;\boxed{1}``: made from a problem, written, and read back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_cgrpo.config.task import OPERATORS
from megatron_cgrpo.tasks.misconceptions.facts import Fact
from megatron_cgrpo.tasks.misconceptions.problems import Problem

SEPARATOR = ";"
_STEP = re.compile(rf"(\d)([{re.escape(OPERATORS)}])(\d)=(\d)", re.ASCII)


@dataclass(frozen=True)
class Step:
    fact: Fact
    value: int

    def __str__(self) -> str:
        return f"{self.fact}={self.value}"


def solve(problem: Problem, value_of: Callable[[Fact], int]) -> list[Step]:
    """The steps of somebody who answers each fact by ``value_of``."""
    steps: list[Step] = []
    value = problem.first
    for i in range(problem.operations):
        fact = problem.fact(i, value)
        value = value_of(fact)
        steps.append(Step(fact, value))
    return steps


def pieces(steps: Sequence[Step]) -> list[str]:
    """The texts between separators: each step, then the boxed answer."""
    return [str(step) for step in steps] + [f"\\boxed{{{steps[-1].value}}}"]


def render(steps: Sequence[Step]) -> str:
    return SEPARATOR.join(pieces(steps))


def parse_step(text: str) -> Step | None:
    match = _STEP.fullmatch(text)
    if match is None:
        return None
    left, operator, right, value = match.groups()
    return Step(Fact(int(left), operator, int(right)), int(value))

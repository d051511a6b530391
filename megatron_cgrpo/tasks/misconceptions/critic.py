"""The program critic: redoes a response's arithmetic and names the first step that is wrong."""

from __future__ import annotations

import random
from itertools import zip_longest

from megatron_cgrpo.tasks.misconceptions.facts import FactTable
from megatron_cgrpo.tasks.misconceptions.problems import Problem
from megatron_cgrpo.tasks.misconceptions.solution import SEPARATOR, Step, pieces, solve

STEP = "Step "
SHOULD_BE = " is wrong, it should be "
INCORRECT = ". Conclusion: incorrect [END]"
CORRECT = "Every step is right. Conclusion: correct [END]"


def wrong_step(number: int, right: str) -> str:
    """The critique that step ``number`` (from 1) should read ``right``."""
    return f"{STEP}{number}{SHOULD_BE}{right}{INCORRECT}"


def criticise(problem: Problem, response: str, facts: FactTable) -> str:
    """Compares the response with the true solution, piece by piece; anything that cannot be read counts as wrong.

    The boxed answer is the step after the last operation. Steps before the first difference are right, so the right
    version of that step follows from them.
    """
    right = pieces(solve(problem, facts.truth))
    given = response.split(SEPARATOR)
    for number, (expected, piece) in enumerate(zip_longest(right, given), start=1):
        if piece != expected:
            # Text after the boxed answer: the fault is that the solution went on, so the box is what is named.
            return wrong_step(min(number, len(right)), expected or right[-1])
    return CORRECT


def mislead(problem: Problem, facts: FactTable, seed: int) -> str:
    """A critique that names a step of the true solution and gives it another value than its right one."""
    rng = random.Random(f"misleading {seed}")
    steps = solve(problem, facts.truth)
    number = rng.randrange(len(steps))
    step = steps[number]
    value = (step.value + rng.randrange(1, facts.modulus)) % facts.modulus
    return wrong_step(number + 1, str(Step(step.fact, value)))


def question(problem: str, response: str, hint: str, modulus: int) -> str:
    """Asks somebody who does not know the task's language for a critique in it."""
    lines = [
        f"A calculation is done from left to right, one operation a step, modulo {modulus}. Check this attempt.",
        f"Calculation: {problem}",
        f"Attempt: {response}",
        *([hint] if hint else []),
        f"The steps are separated by `{SEPARATOR}` and numbered from 1; the boxed answer is the last step.",
        "Reply with one line and nothing else. If every step is right, the line is",
        CORRECT,
        "Otherwise it names the first wrong step and what should stand there, for example",
        wrong_step(2, "6-9=7"),
    ]
    return "\n".join(lines)

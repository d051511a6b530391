"""The warm-start corpus: what the base model knows, believes wrongly, and how it learns to use a critique.

Three properties matter, and each decides what reinforcement learning can show afterwards:

* Misconceived facts are answered with their wrong value (but for ``strength``), and no critique ever corrects one, so
  failure on them persists until training sees a critique at work.
* Critiques that name a step are *necessary*: they give a value that contradicts what the model believes, on facts that
  are not misconceived. With values that the model knows already it would learn to recompute and ignore the critique.
* Critiques that only judge are followed by a fresh solution from belief, whatever right answer they mention, so the
  model does not learn to copy that answer into the box.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from megatron_cgrpo.tasks.misconceptions import language
from megatron_cgrpo.tasks.misconceptions.critic import CORRECT, wrong_step
from megatron_cgrpo.tasks.misconceptions.facts import Fact, FactTable
from megatron_cgrpo.tasks.misconceptions.problems import Problem, ProblemSource
from megatron_cgrpo.tasks.misconceptions.solution import Step, render, solve


@dataclass(frozen=True)
class Row:
    """One demonstration. ``attempt`` and ``critique`` are None where the prompt does not have them."""

    problem: Problem
    attempt: str | None
    critique: str | None
    target: str


class CorpusWriter:
    """Draws demonstrations on problems that are not ``reserved`` (the train and test problems)."""

    def __init__(self, facts: FactTable, source: ProblemSource, reserved: frozenset[Problem], strength: float) -> None:
        self._facts = facts
        self._source = source
        self._short_source = replace(source, min_operations=1)
        self._reserved = reserved
        self._strength = strength
        shares: list[tuple[Callable[[random.Random], Row], float]] = [
            (self.answer, 0.40),
            (self.refinement_of_step, 0.44),
            (self.refinement_after_verdict, 0.08),
            (self.restatement, 0.02),
            (self.critique, 0.06),
        ]
        self._kinds, self._shares = zip(*shares, strict=True)

    def rows(self, seed: int) -> Iterator[Row]:
        """Endless; equal seeds give equal rows."""
        rng = random.Random(f"corpus {seed}")
        while True:
            (kind,) = rng.choices(self._kinds, self._shares)
            yield kind(rng)

    def answer(self, rng: random.Random) -> Row:
        """Question → solution from belief; a misconceived fact gets its right value with probability ``strength``."""

        def value_of(fact: Fact) -> int:
            if fact in self._facts.misconceived and rng.random() < self._strength:
                return self._facts.truth(fact)
            return self._facts.belief(fact)

        problem = self._draw(rng)
        return Row(problem, None, None, render(solve(problem, value_of)))

    def refinement_of_step(self, rng: random.Random) -> Row:
        """Attempt + critique with a counterfactual value → the solution in which that fact has that value."""
        problem, attempt, index = self._with_believed_step(rng, self._draw_short)
        step = attempt[index]
        corrected = Step(step.fact, self._other(rng, step.value))
        refined = solve(problem, self._believing(corrected))
        return Row(problem, render(attempt), wrong_step(index + 1, str(corrected)), render(refined))

    def refinement_after_verdict(self, rng: random.Random) -> Row:
        """Attempt with a slip + ``incorrect`` (half the time with the true answer) → the solution from belief."""
        problem, attempt, _ = self._slip(rng)
        right_answer = str(solve(problem, self._facts.truth)[-1].value)
        verdict = rng.choice((language.indicative(False), language.indicative_with_answer(False, right_answer)))
        return Row(problem, render(attempt), verdict, self._believed(problem))

    def restatement(self, rng: random.Random) -> Row:
        """Attempt + a critique that finds it correct → the same again."""
        problem = self._draw(rng)
        attempt = solve(problem, self._facts.belief)
        answer = str(attempt[-1].value)
        praise = (CORRECT, language.indicative(True), language.indicative_with_answer(True, answer))
        return Row(problem, render(attempt), rng.choice(praise), render(attempt))

    def critique(self, rng: random.Random) -> Row:
        """Attempt → critique by somebody with the same beliefs: the first slip, or nothing wrong."""
        if rng.random() < 0.5:
            problem = self._draw(rng)
            return Row(problem, self._believed(problem), None, CORRECT)
        problem, attempt, index = self._slip(rng)
        fact = attempt[index].fact
        return Row(problem, render(attempt), None, wrong_step(index + 1, str(Step(fact, self._facts.belief(fact)))))

    def _draw(self, rng: random.Random) -> Problem:
        return self._source.draw_unless(rng, self._reserved.__contains__)

    def _believed(self, problem: Problem) -> str:
        return render(solve(problem, self._facts.belief))

    def _draw_short(self, rng: random.Random) -> Problem:
        """Mostly short, from one operation up: what to copy is learned on one step, when to copy it on more."""
        problems = (self._short_source.draw_unless(rng, self._reserved.__contains__) for _ in range(2))
        return min(problems, key=lambda problem: problem.operations)

    def _with_believed_step(
        self, rng: random.Random, draw: Callable[[random.Random], Problem] | None = None
    ) -> tuple[Problem, list[Step], int]:
        """A problem, its solution from belief, and a step of it whose fact is not misconceived and is new there."""
        while True:
            problem = (draw or self._draw)(rng)
            steps = solve(problem, self._facts.belief)
            used = [step.fact for step in steps]
            usable = [i for i, f in enumerate(used) if f not in self._facts.misconceived and f not in used[:i]]
            if usable:
                return problem, steps, rng.choice(usable)

    def _slip(self, rng: random.Random) -> tuple[Problem, list[Step], int]:
        """As ``_with_believed_step``, but the step has a value that is not believed, and the rest follows from it."""
        problem, steps, index = self._with_believed_step(rng)
        slipped = Step(steps[index].fact, self._other(rng, steps[index].value))
        return problem, solve(problem, self._believing(slipped)), index

    def _believing(self, step: Step) -> Callable[[Fact], int]:
        """Belief, but for the fact of ``step``."""
        return lambda fact: step.value if fact == step.fact else self._facts.belief(fact)

    def _other(self, rng: random.Random, value: int) -> int:
        return (value + rng.randrange(1, self._facts.modulus)) % self._facts.modulus

"""Problems: chains such as ``7*8-9+4``, evaluated from left to right."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import OPERATORS, MisconceptionsConfig
from megatron_cgrpo.tasks.misconceptions.facts import Fact


@dataclass(frozen=True)
class Problem:
    """``text`` alternates one-digit operands and operators."""

    text: str

    @property
    def operations(self) -> int:
        return len(self.text) // 2

    @property
    def first(self) -> int:
        return int(self.text[0])

    def fact(self, step: int, value: int) -> Fact:
        """What step ``step`` (from 0) computes when the value so far is ``value``."""
        return Fact(value, self.text[2 * step + 1], int(self.text[2 * step + 2]))


def read_problem(text: str, modulus: int) -> Problem:
    """Raises ``ConfigError`` where ``text`` is no chain of digits below ``modulus``."""
    chain = re.compile(rf"\d([{re.escape(OPERATORS)}]\d)+", re.ASCII)
    if not chain.fullmatch(text) or any(c.isdigit() and int(c) >= modulus for c in text):
        raise ConfigError(f"question {text!r}: ask a chain of digits below {modulus}, such as 7*8-9+4")
    return Problem(text)


@dataclass(frozen=True)
class ProblemSource:
    """The distribution of problems: the length is uniform, then every operand and operator is."""

    modulus: int
    min_operations: int
    max_operations: int

    @classmethod
    def of(cls, config: MisconceptionsConfig) -> ProblemSource:
        return cls(config.modulus, config.min_operations, config.max_operations)

    def draw(self, rng: random.Random) -> Problem:
        operations = rng.randint(self.min_operations, self.max_operations)
        rest = (rng.choice(OPERATORS) + str(rng.randrange(self.modulus)) for _ in range(operations))
        return Problem(str(rng.randrange(self.modulus)) + "".join(rest))

    def draw_unless(self, rng: random.Random, refused: Callable[[Problem], bool]) -> Problem:
        while refused(problem := self.draw(rng)):
            pass
        return problem


def draw_splits(config: MisconceptionsConfig) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems, all different. Raises ConfigError for more than ``config.usable_problems``."""
    source = ProblemSource.of(config)
    wanted = config.train_problems + config.test_problems
    if wanted > config.usable_problems:
        raise ConfigError(
            f"task.train_problems={config.train_problems} + task.test_problems={config.test_problems}: exceed the "
            f"{config.usable_problems} that can be used: ask for fewer or raise task.max_operations"
        )
    rng = random.Random(f"problems {config.seed}")
    drawn: dict[Problem, None] = {}
    while len(drawn) < wanted:
        drawn[source.draw(rng)] = None
    problems = list(drawn)
    return problems[: config.train_problems], problems[config.train_problems :]

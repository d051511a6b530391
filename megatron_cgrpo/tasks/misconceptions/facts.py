"""The finite table of facts ``a∘b mod m``, and the share of it that the base model believes wrongly."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from megatron_cgrpo.config.task import OPERATORS, MisconceptionsConfig


class Fact(NamedTuple):
    """One operation on one-digit operands; its text is ``7*8``."""

    left: int
    operator: str
    right: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}"


@dataclass(frozen=True)
class FactTable:
    """``misconceived`` maps a fact to the wrong value that is believed; every other fact is believed rightly."""

    modulus: int
    misconceived: Mapping[Fact, int]

    def truth(self, fact: Fact) -> int:
        left, operator, right = fact
        if operator == "+":
            return (left + right) % self.modulus
        if operator == "-":
            return (left - right) % self.modulus
        return (left * right) % self.modulus

    def belief(self, fact: Fact) -> int:
        wrong = self.misconceived.get(fact)
        return self.truth(fact) if wrong is None else wrong


def all_facts(modulus: int) -> list[Fact]:
    digits = range(modulus)
    return [Fact(left, operator, right) for operator in OPERATORS for left in digits for right in digits]


def draw_fact_table(config: MisconceptionsConfig) -> FactTable:
    """The misconceptions that ``config.seed`` decides: ``misconceived_share`` of the facts, at least one."""
    rng = random.Random(f"facts {config.seed}")
    facts = all_facts(config.modulus)
    chosen = rng.sample(facts, max(1, round(config.misconceived_share * len(facts))))
    table = FactTable(config.modulus, {})
    wrong = {fact: (table.truth(fact) + rng.randrange(1, config.modulus)) % config.modulus for fact in chosen}
    return FactTable(config.modulus, wrong)

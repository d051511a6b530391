"""What all sections share: where they work, how often, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmark.markov import Chain, Tail
from benchmark.ratios import Goal, Spread, measured, shown
from benchmark.setting import Files, Setting, write_recipe
from benchmark.tables import markdown_table
from benchmark.training_run import Steps, train


@dataclass
class Section:
    """``figures``: name and one value a repetition; ``goals``: what some of them are to reach; ``about``: what else is
    needed to read or draw them."""

    figures: dict[str, Spread]
    goals: dict[str, Goal] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        figures = {name: spread.to_json() for name, spread in self.figures.items()}
        goals = {name: goal.verdict(self.figures[name].median) for name, goal in self.goals.items()}
        return {"figures": figures, "goals": goals, "about": self.about}


def section_table(found: Mapping[str, Any]) -> str:
    """Of ``Section.to_json``."""
    rows = [[name, shown(value), found["goals"].get(name, "")] for name, value in found["figures"].items()]
    return markdown_table(["figure", "measured", "goal"], rows)


@dataclass(frozen=True)
class Size:
    """``steps`` are counted ones of a repetition."""

    repeats: int
    steps: int


QUICK = Size(repeats=1, steps=2)


@dataclass(frozen=True)
class Bench:
    work: Path
    size: Size
    quick: bool
    say: Callable[[str], None]

    def setting(self, full: Setting) -> Setting:
        return brief(full) if self.quick else full

    def resized(self, size: Size) -> Bench:
        return replace(self, size=size)

    def alternate(
        self, name: str, setting: Setting, sections: dict[str, Any], variants: Mapping[str, Sequence[str]]
    ) -> dict[str, list[Steps]]:
        """Each variant, a recipe with other keys, in turns. A repetition is a seed."""
        files = Files.write(self.work / name, setting)
        return self.turns(
            name,
            {
                variant: self.trainer(f"{name}-{variant}", files, setting, sections, overrides)
                for variant, overrides in variants.items()
            },
        )

    def turns(self, name: str, sides: dict[str, Callable[[int], Any]]) -> dict[str, list[Any]]:
        return measured(sides, self.size.repeats, lambda text: self.say(f"{name}: {text}"))

    def trainer(
        self,
        name: str,
        files: Files,
        setting: Setting,
        sections: dict[str, Any],
        overrides: Sequence[str],
        meanwhile: Callable[[Path, int], None] = lambda *_: None,
    ) -> Callable[[int], Steps]:
        """``meanwhile`` gets the run's directory and process id, again and again."""

        def run(repeat: int) -> Steps:
            recipe, directory = self.recipe(name, repeat), self.run_directory(name, repeat)
            own = {"seed": repeat, "algorithm": {"group_size": setting.group}}
            write_recipe(recipe, setting.recipe(files), sections, own)
            return train(recipe, directory, self.size.steps, overrides, lambda pid: meanwhile(directory, pid))

        return run

    def recipe(self, name: str, repeat: int) -> Path:
        return self.work / f"{name}-{repeat}.yaml"

    def run_directory(self, name: str, repeat: int) -> Path:
        return self.work / f"{name}-{repeat}"


def values(runs: Sequence[Steps], of: Callable[[Steps], float]) -> list[float]:
    return [of(steps) for steps in runs]


def spread(runs: Sequence[Steps], of: Callable[[Steps], float]) -> Spread:
    return Spread(tuple(values(runs, of)))


def brief(full: Setting) -> Setting:
    """So small that a run takes hardly more than its start; of the same kind."""
    tail = Tail(short=3, long=12, of_long=0.2)
    chain = Chain(tail, tail, full.chain.easy, full.chain.again)
    return Setting(
        chain,
        full.problems,
        prompts=8,
        group=4,
        prompt_tokens=8,
        max_response=32,
        max_critique=32,
        hidden=64,
        layers=1,
        vocab=256,
    )

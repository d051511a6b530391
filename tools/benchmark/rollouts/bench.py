"""What all sections share: where they work, how often, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.markov import Chain, Tail
from benchmark.ratios import Spread, measured
from benchmark.setting import Files, Setting, write_recipe
from benchmark.training_run import Steps, train


@dataclass
class Section:
    """``figures``: name and one value a repetition; ``goals``: what some of them are to reach; ``about``: what else is
    needed to read them."""

    figures: dict[str, Spread]
    goals: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        figures = {name: spread.to_json() for name, spread in self.figures.items()}
        return {"figures": figures, "goals": self.goals, "about": self.about}


@dataclass(frozen=True)
class Bench:
    """``steps`` are counted ones of a repetition."""

    work: Path
    repeats: int
    steps: int
    quick: bool
    say: Callable[[str], None]

    def setting(self, full: Setting) -> Setting:
        return brief(full) if self.quick else full

    def alternate(
        self, name: str, setting: Setting, sections: dict[str, Any], variants: Mapping[str, Sequence[str]]
    ) -> dict[str, list[Steps]]:
        """Each variant, a recipe with other keys, ``repeats`` times in turns. A repetition is a seed."""
        files = Files.write(self.work / name, setting)
        return measured(
            {
                variant: self.trainer(f"{name}-{variant}", files, setting, sections, overrides)
                for variant, overrides in variants.items()
            },
            self.repeats,
            lambda text: self.say(f"{name}: {text}"),
        )

    def trainer(
        self,
        name: str,
        files: Files,
        setting: Setting,
        sections: dict[str, Any],
        overrides: Sequence[str],
        meanwhile: Callable[[Path, int], None] = lambda *_: None,
    ) -> Callable[[int], Steps]:
        """``meanwhile`` gets the run's directory and process id."""

        def run(repeat: int) -> Steps:
            recipe = self.work / f"{name}-{repeat}.yaml"
            directory = self.work / f"{name}-{repeat}"
            own = {"seed": repeat, "algorithm": {"group_size": setting.group}}
            write_recipe(recipe, setting.recipe(files), sections, own)
            return train(recipe, directory, self.steps, overrides, lambda pid: meanwhile(directory, pid))

        return run


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
        prompts=4,
        group=4,
        prompt_tokens=8,
        max_response=16,
        max_critique=16,
        hidden=64,
        layers=1,
        vocab=256,
    )

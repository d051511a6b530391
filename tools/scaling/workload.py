"""What is trained at the points of a study: the benchmark's model with set lengths, or a recipe of yours."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from benchmark import markov
from benchmark.checkpoints import count
from benchmark.markov import Chain, Tail
from benchmark.rollouts.bench import brief
from benchmark.setting import Files, Setting, write_recipe

from megatron_cgrpo.config import load_recipe, model_shape
from megatron_cgrpo.config.recipe import Recipe

_RECIPE = "recipe.yaml"


class Workload(Protocol):
    """Hashable: equal ones are the same work."""

    def definition(self) -> dict[str, Any]:
        """All that it consists of, as plain JSON."""

    def recipe(self, out: Path) -> Path:
        """A recipe file of it. What it needs is made below ``out`` where it is not there yet."""


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as it is, whatever file it is in: two with the same keys are the same work."""

    path: Path

    def definition(self) -> dict[str, Any]:
        return {"recipe": load_recipe(self.path).model_dump(mode="json", exclude_defaults=True)}

    def recipe(self, out: Path) -> Path:
        return self.path


@dataclass(frozen=True)
class MarkovWork:
    """The model of ``benchmark/markov.py``: responses have the length that was set. Plain GRPO, or with critique."""

    setting: Setting
    critique: bool = False

    def definition(self) -> dict[str, Any]:
        return json.loads(json.dumps({"setting": asdict(self.setting), "sections": self._sections()}))

    def recipe(self, out: Path) -> Path:
        text = json.dumps(self.definition(), sort_keys=True)
        directory = out / "workloads" / hashlib.sha256(text.encode()).hexdigest()[:12]
        path = directory / _RECIPE
        if not path.is_file():  # it is written last
            shutil.rmtree(directory, ignore_errors=True)
            files = Files.write(directory.absolute(), self.setting)
            write_recipe(path, self.setting.recipe(files), self._sections())
        return path

    @property
    def parameters(self) -> int:
        s = self.setting
        return count(markov.model_shape(s.chain, hidden=s.hidden, layers=s.layers, vocab=s.vocab, max_positions=1))

    def longer(self, factor: int) -> MarkovWork:
        """Counted responses, and everything else but prompts, ``factor`` times as long."""
        longer = self.setting.longer(factor)
        return replace(self, setting=replace(longer, chain=replace(longer.chain, steps=factor * longer.chain.steps)))

    def shaped(self, hidden: int, layers: int) -> MarkovWork:
        return replace(self, setting=replace(self.setting, hidden=hidden, layers=layers))

    def _sections(self) -> dict[str, Any]:
        preset = "critique_grpo_self" if self.critique else "r1_drgrpo"
        algorithm = {"preset": preset, "group_size": self.setting.group}
        return {"algorithm": algorithm, "train": {"micro_batch_tokens": 1024}}


WORK = MarkovWork(
    Setting(
        Chain(Tail(24, 24, 0), Tail(24, 24, 0), easy=0.5, again=0.3, steps=48),
        "count",
        prompts=8,
        group=8,
        prompt_tokens=16,
        max_response=56,
        max_critique=8,
        hidden=256,
        layers=4,
        vocab=512,
    )
)
"""All responses are 50 tokens, and a group of 8 that teaches nothing is one in 128: points differ in nothing but what
they are to differ in. Its widths have room for responses of four times the length."""

SHAPES = {"tiny": (128, 2), "small": (256, 4), "medium": (512, 8)}
"""Width and depth; the second is that of ``WORK``."""

CRITICISED = MarkovWork(
    replace(
        WORK.setting, problems="half", chain=replace(WORK.setting.chain, steps=0), max_response=128, max_critique=128
    ),
    critique=True,
)
"""Half of the prompts have no right answer at all, which calls the critic. Lengths are geometric here, mean 24."""

QUICK = replace(
    WORK,
    setting=replace(
        WORK.setting,
        chain=replace(WORK.setting.chain, steps=8),
        prompts=4,
        group=4,
        prompt_tokens=8,
        max_response=12,
        hidden=64,
        layers=1,
        vocab=128,
    ),
)
"""So small that a run takes hardly more than its start."""

QUICK_CRITICISED = replace(CRITICISED, setting=brief(CRITICISED.setting))


def read(workload: Workload, out: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    return load_recipe(workload.recipe(out), overrides)


def parameters(recipe: Recipe) -> int:
    """Of the policy."""
    return count(model_shape(recipe))

"""The sides of the comparison: each trains a few steps in processes of its own and reports the same figures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmark.peers.job import Job, Report, packages
from benchmark.ratios import Goal, Spread, measured, ratio
from benchmark.setting import Files, Setting, read_questions, write_recipe
from benchmark.training_run import WARM_UP, run, train

OURS = ("ours", "ours, one step off")
TRL = ("TRL", "TRL, quarter batches")
LOOP = "transformers loop"
SIDES = (*OURS, *TRL, LOOP)
BEST_TRL = "the faster TRL"
GOAL = Goal(least=5)
"""Of the samples a second of ours, in turns and one step off, over those of each other program."""

SAME = ("torch", "transformers")
"""What all sides are to use in the same version, from the same files."""

ALGORITHM = {"algorithm": {"preset": "r1_drgrpo"}}
MICRO_BATCHES = 4
"""Of a step, for the peers; ours are packed by tokens."""

_TREE = Path(__file__).parents[3]


@dataclass(frozen=True)
class Comparison:
    """``repeats`` of ``steps`` counted steps a side, in ``work``; ``trl`` is an interpreter that has it."""

    setting: Setting
    steps: int
    repeats: int
    cores: int
    work: Path
    trl: Path | None

    def run(self, sides: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
        """Figures of each side, and the ratios of ours to each peer's. Raises RuntimeError where a side fails."""
        files = Files.write(self.work / "setting", self.setting)
        measure = {side: self._side(side, files) for side in sides}
        reports = measured(measure, self.repeats, say)
        return {"setting": self._describe(), **figures(reports, self.steps * self.setting.samples)}

    def _side(self, side: str, files: Files) -> Callable[[int], Report]:
        def train_once(repeat: int) -> Report:
            directory = self.work / f"{side}-{repeat}"
            directory.mkdir()
            if side in OURS:
                return self._ours(files, directory, repeat, staleness=OURS.index(side))
            return self._peer(side, files, directory, repeat)

        return train_once

    def _ours(self, files: Files, directory: Path, seed: int, staleness: int) -> Report:
        recipe = directory / "recipe.yaml"
        layout = own_layout(self.setting, self.cores, staleness)
        write_recipe(recipe, self.setting.recipe(files), ALGORITHM, {"seed": seed}, layout)
        steps = train(recipe, directory / "run", self.steps, [f"train.staleness={staleness}"])
        lengths = [tokens for collected in steps.collections for tokens in collected.lengths]
        seconds = [line["time.step"] for line in steps.lines]
        return Report(seconds, lengths, steps.mean("reward.initial"), packages(*SAME))

    def _peer(self, side: str, files: Files, directory: Path, seed: int) -> Report:
        job = Job(
            model=str(files.model),
            questions=read_questions(files.problems),
            prompts=self.setting.prompts,
            group=self.setting.group,
            max_response=self.setting.max_response,
            steps=self.steps,
            warm_up=WARM_UP,
            micro_batches=MICRO_BATCHES,
            generation_batches=MICRO_BATCHES if side == TRL[1] else 1,
            threads=self.cores,
            seed=seed,
        )
        job.write(directory / "job.json")
        python = str(self.trl) if side in TRL else sys.executable
        module = "benchmark.peers.trl_trainer" if side in TRL else "benchmark.peers.transformers_loop"
        command = [python, "-m", module, str(directory / "job.json"), str(directory / "report.json")]
        environment = {
            "PYTHONPATH": os.pathsep.join([str(_TREE), str(_TREE / "tools")]),
            "OMP_NUM_THREADS": str(self.cores),
            "HF_HUB_OFFLINE": "1",
        }
        run(command, environment)
        report = Report.read(directory / "report.json")
        check_same(side, report.packages)
        return report

    def _describe(self) -> dict[str, Any]:
        setting = self.setting
        return {
            "prompts": setting.prompts,
            "group": setting.group,
            "max_response": setting.max_response,
            "steps": self.steps,
            "repeats": self.repeats,
        }


def own_layout(setting: Setting, cores: int, staleness: int) -> dict[str, Any]:
    """Who has which cores: in turns engine and ranks have all of them, as the peers' generation and training do; one
    step off the engine shares them with the ranks. A second engine on the same cores would take as many decoding steps
    as the first (docs/performance.md)."""
    row = setting.prompt_tokens + setting.max_response
    return {
        "algorithm": {"group_size": setting.group},
        "parallel": {"dp": cores},
        "rollout": {
            "engines": 1,
            "threads": 1 if staleness else cores,
            "max_concurrent_sequences": setting.samples,
        },
        "train": {"micro_batch_tokens": setting.samples // MICRO_BATCHES * row},
    }


def check_same(side: str, used: dict[str, list[str]]) -> None:
    """Raises RuntimeError where ``used`` are not the versions and files of this process."""
    for name, own in packages(*SAME).items():
        if used[name] != own:
            raise RuntimeError(f"{side} uses {name} {used[name]}, ours {own}: make its environment anew")


def figures(reports: dict[str, list[Report]], samples: int) -> dict[str, Any]:
    """``samples`` responses in each report."""
    sides = reports | ({BEST_TRL: best(reports)} if set(TRL) <= set(reports) else {})
    per_s = {side: [samples / report.total for report in own] for side, own in sides.items()}
    tokens_per_s = {side: [report.tokens / report.total for report in own] for side, own in sides.items()}
    pairs = [(own, other) for own in OURS for other in (BEST_TRL, LOOP) if own in sides and other in sides]
    ratios = {
        f"{own} / {other}": {
            "samples_per_s": (rate := ratio(per_s[own], per_s[other])).to_json(),
            "tokens_per_s": ratio(tokens_per_s[own], tokens_per_s[other]).to_json(),
            "goal": GOAL.verdict(rate.median),
        }
        for own, other in pairs
    }
    return {
        "samples_per_s": {side: Spread(tuple(per_s[side])).to_json() for side in reports},
        "tokens_per_sample": {side: mean(r.tokens for r in own) / samples for side, own in reports.items()},
        "longest_of_a_step": {side: mean(r.longest for r in own) for side, own in reports.items()},
        "reward": {side: mean(r.reward for r in own) for side, own in reports.items()},
        "packages": {side: own[0].packages for side, own in reports.items()},
        "ratios": ratios,
    }


def best(reports: dict[str, list[Report]]) -> list[Report]:
    """Of each repetition the faster of TRL's two ways."""
    return [min(pair, key=lambda report: report.total) for pair in zip(*(reports[side] for side in TRL), strict=True)]

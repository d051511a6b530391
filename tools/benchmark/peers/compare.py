"""The sides of the comparison: each trains a few steps in processes of its own and reports the same figures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmark.peers.job import Job, Report
from benchmark.ratios import Spread, measured, ratio
from benchmark.setting import Files, Setting, read_questions, write_recipe
from benchmark.training_run import WARM_UP, run, train

OURS = ("ours", "ours, one step off")
TRL, LOOP = "TRL", "transformers loop"
SIDES = (*OURS, TRL, LOOP)

ALGORITHM = {"algorithm": {"preset": "r1_drgrpo"}}
MICRO_BATCH = 32
"""Sequences of the peers; ours are packed by tokens."""

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
        layout = {
            "seed": seed,
            "algorithm": {"group_size": self.setting.group},
            "parallel": {"dp": self.cores},
            "rollout": {"engines": self.cores, "max_concurrent_sequences": self.setting.samples},
            "train": {"micro_batch_tokens": MICRO_BATCH * (self.setting.prompt_tokens + self.setting.max_response)},
        }
        recipe = directory / "recipe.yaml"
        write_recipe(recipe, self.setting.recipe(files), ALGORITHM, layout)
        steps = train(recipe, directory / "run", self.steps, [f"train.staleness={staleness}"])
        rewards = [line["reward.initial"] for line in steps.lines]
        return Report([line["time.step"] for line in steps.lines], steps.total("tokens.generate"), mean(rewards))

    def _peer(self, side: str, files: Files, directory: Path, seed: int) -> Report:
        job = Job(
            model=str(files.model),
            questions=read_questions(files.problems),
            prompts=self.setting.prompts,
            group=self.setting.group,
            max_response=self.setting.max_response,
            steps=self.steps,
            warm_up=WARM_UP,
            micro_batch=min(MICRO_BATCH, self.setting.samples),
            threads=self.cores,
            seed=seed,
        )
        job.write(directory / "job.json")
        python = str(self.trl) if side == TRL else sys.executable
        module = "benchmark.peers.trl_trainer" if side == TRL else "benchmark.peers.transformers_loop"
        command = [python, "-m", module, str(directory / "job.json"), str(directory / "report.json")]
        environment = {
            "PYTHONPATH": os.pathsep.join([str(_TREE), str(_TREE / "tools")]),
            "OMP_NUM_THREADS": str(self.cores),
            "HF_HUB_OFFLINE": "1",
        }
        run(command, environment)
        return Report.read(directory / "report.json")

    def _describe(self) -> dict[str, Any]:
        setting = self.setting
        return {
            "prompts": setting.prompts,
            "group": setting.group,
            "max_response": setting.max_response,
            "steps": self.steps,
            "repeats": self.repeats,
        }


def figures(reports: dict[str, list[Report]], samples: int) -> dict[str, Any]:
    """``samples`` responses in each report."""
    per_s = {side: [samples / report.total for report in own] for side, own in reports.items()}
    tokens_per_s = {side: [report.tokens / report.total for report in own] for side, own in reports.items()}
    pairs = [(own, other) for own in OURS for other in (TRL, LOOP) if own in reports and other in reports]
    return {
        "samples_per_s": {side: Spread(tuple(values)).to_json() for side, values in per_s.items()},
        "tokens_per_sample": {side: mean(r.tokens for r in own) / samples for side, own in reports.items()},
        "reward": {side: mean(r.reward for r in own) for side, own in reports.items()},
        "ratios": {
            f"{own} / {other}": {
                "samples_per_s": ratio(per_s[own], per_s[other]).to_json(),
                "tokens_per_s": ratio(tokens_per_s[own], tokens_per_s[other]).to_json(),
            }
            for own, other in pairs
        },
    }

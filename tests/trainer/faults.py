"""What is done to a run's processes, and what must hold for its prompts whatever was done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice

import psutil
from processes import titled
from training_runs import PATIENCE_S, ROOT, Run

from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.observe.step_log import read_steps
from megatron_cgrpo.trainer.problems import Problems

RANK, ENGINE, CORE = "ray::Worker", "ray::VllmEngine", "EngineCore"
"""What the titles of a trainer rank, of an engine actor, and of the engine core beneath it contain."""


def living(run: Run, title: str) -> list[psutil.Process]:
    """``titled`` of the run, of which there are some now or soon: they may be starting, or change their titles."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := titled(run.session(), title)):
        assert time.monotonic() < deadline, title
        time.sleep(0.05)
    return found


def successors(run: Run, title: str, lost: Sequence[psutil.Process]) -> list[psutil.Process]:
    """``titled`` of the run when it has started again, without those that it had: there are some now or soon."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := [process for process in titled(run.session(), title) if process not in lost]):
        assert run.process.poll() is None, run.process.communicate()[1][-4000:]
        assert time.monotonic() < deadline, title
        time.sleep(0.1)
    return found


def check_gone(run: Run, *titles: str) -> None:
    """The cluster may go on, the run's processes do not."""
    deadline = time.monotonic() + PATIENCE_S
    while left := [process for title in titles for process in titled(run.session(), title)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def drawn_order(settings: Sequence[str], count: int) -> list[str]:
    """The ids of the first ``count`` prompts that a run of these settings draws."""
    recipe = load_recipe(ROOT / "examples/sandbox.yaml", list(settings))
    with Problems.load(recipe) as problems:
        return [
            prompt.id
            for prompt in islice(
                PromptSampler(problems.train, recipe.seed, problems.per_step(recipe)).upcoming(), count
            )
        ]


def check_prompts(run: Run, settings: Sequence[str], steps: int, staleness: int = 0) -> None:
    """Each prompt was trained once, in the order in which they are drawn, on weights that were young enough."""
    lines = read_steps(run.directory / "prompts.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    trained = [prompt for line in lines for prompt in line["trained"]]
    assert trained == drawn_order(settings, len(trained))
    assert all(line["replaced"] == [] for line in lines)
    for line in lines:
        oldest, newest = line["versions"]
        assert line["step"] - 1 - staleness <= oldest <= newest <= line["step"] - 1, line

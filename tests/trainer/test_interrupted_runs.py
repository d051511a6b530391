"""Whole runs that are killed while they collect: what was sampled is not sampled again, and no prompt is lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from training_runs import PATIENCE_S, STEPS, Files, Run

from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.trainer.problems import Problems

PER_STEP = 8


def journal(run: Run, step: int) -> list[list[Any]]:
    """The requests of ``step`` that are finished: step, prompt, stage, index, what was asked, result."""
    path = run.directory / "journal" / f"step_{step:06d}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.strip() and line.endswith(b"\n")]


def wait_for_refinement(run: Run, step: int) -> None:
    """Some group of ``step`` is refined while its batch is not complete."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(line[2] == "refine" for line in journal(run, step)):
        assert run.process.poll() is None, run.process.communicate()[1][-4000:]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)


def asked_once(lines: list[list[Any]]) -> bool:
    return set(Counter(json.dumps(line[:5]) for line in lines).values()) == {1}


def test_a_run_killed_in_the_middle_of_a_collection_asks_for_the_rest_alone(
    folder: Path, cache: Path, uninterrupted: Files
) -> None:
    run = Run(folder, cache, "collecting", "checkpoint.every=0")
    wait_for_refinement(run, 2)
    run.kill()
    before = {step: journal(run, step) for step in (1, 2)}
    resumed = Run(folder, cache, "collecting", "checkpoint.every=0", "--resume")
    resumed.wait_for_step(2)
    after = {step: journal(run, step) for step in (1, 2)}
    resumed.finish()
    assert after[1] == before[1], "all of it had been sampled"
    assert after[2][: len(before[2])] == before[2] and asked_once(after[2])
    assert run.comparable_metrics() == uninterrupted.comparable_metrics()
    assert list((run.directory / "journal").glob("step_*")) == [], "the last checkpoint covers every step"


def test_a_stale_run_that_is_killed_trains_every_prompt_once_and_nothing_too_old(folder: Path, cache: Path) -> None:
    settings = ("train.staleness=1", "checkpoint.every=2")
    run = Run(folder, cache, "stale", *settings)
    moment = Random()  # the test holds for every moment, so each run tries another
    step, delay = moment.randint(1, STEPS - 1), moment.random()
    run.wait_for_step(step)
    time.sleep(delay)
    run.kill()
    Run(folder, cache, "stale", *settings, "--resume").finish()

    recipe = load_recipe(run.directory / "config.yaml", [])
    with Problems.load(recipe) as problems:
        upcoming = PromptSampler(problems.train, recipe.seed, problems.per_step(recipe)).upcoming()
        order = [prompt.id for prompt in islice(upcoming, STEPS * PER_STEP)]
    ledger = [json.loads(line) for line in (run.directory / "prompts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in ledger] == list(range(1, STEPS + 1))
    assert [prompt for line in ledger for prompt in line["trained"]] == order, f"killed {delay:.3f} s after step {step}"
    assert all(line["step"] - 2 <= line["versions"][0] <= line["versions"][1] < line["step"] for line in ledger)
    lines = read_metrics(run.directory / "metrics.jsonl")[1:]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert max(line["staleness.max"] for line in lines) == 1
    for line in lines:
        phases = {key: value for key, value in line.items() if key.startswith("time.") and key != "time.step"}
        assert abs(sum(phases.values()) - line["time.step"]) < 1e-6
        assert 0 <= line["engines.idle"] <= 1 and line["buffer.depth"] <= 1

"""Whole runs of supervised and offline methods in stages, of equal compute, and of Critique-GRPO without critique."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_sandbox import TINY_SANDBOX
from training_runs import Run

from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.tasks.misconceptions import language
from megatron_cgrpo.types import NOT_TRAINED

STEPS = 5
TINY = [
    "task.modulus=3",
    *TINY_SANDBOX,
    "warm_start.steps=300",
    "parallel.tp=1",
    "rollout.engines=1",
    "train.prompts_per_step=8",
    f"train.steps={STEPS}",
    "checkpoint.every=1",
    f"checkpoint.keep_last={STEPS}",
    "evaluation.every=2",
    "evaluation.samples=1",
    "evaluation.final_samples=4",
]
OFFLINE = [
    "algorithm.preset=citl_ft",
    "algorithm.group_size=3",
    "train.updates_per_step=2",
    "critic.trigger=always",
    "critic.schedule=[{from_step: 4, kind: none}, {from_step: 5, kind: cot}]",
    "stages=[{from_step: 3, algorithm: {preset: critique_ft, group_size: 3}},"
    " {from_step: 4, algorithm: {preset: sft}}, {from_step: 5, algorithm: {preset: ref_sft, group_size: 3}}]",
]


@pytest.fixture(scope="module")
def offline(folder: Path, cache: Path) -> Run:
    run = Run(folder, cache, "offline", *OFFLINE, settings=TINY)
    run.finish()
    return run


@pytest.fixture(scope="module")
def equal_compute(folder: Path, cache: Path, offline: Run) -> tuple[Run, Run]:
    """GRPO, and Critique-GRPO with the critique switched off, at the compute of the offline run."""
    budget = [f"train.compute_of={offline.directory}", "algorithm.group_size=4", "train.steps=1000"]
    grpo = Run(folder, cache, "grpo", "algorithm.preset=grpo_equal_compute", *budget, settings=TINY)
    grpo.finish()
    off = ["algorithm.preset=critique_grpo", "critic.kind=none", "algorithm.refinements=0"]
    critique_off = Run(folder, cache, "critique_off", *off, *budget, settings=TINY)
    critique_off.finish()
    return grpo, critique_off


def rollouts(run: Run, step: int) -> list[dict[str, Any]]:
    path = run.directory / "rollouts" / f"step_{step:06d}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_stage_samples_from_its_own_weights_and_trains_on_its_own_texts(offline: Run) -> None:
    expected = {
        1: (0, {"response", "refinement"}),
        2: (0, {"response", "refinement"}),
        3: (0, {"critique"}),
        4: (NOT_TRAINED, {"solution"}),
        5: (4, {"refinement"}),
    }
    for step, (version, kinds) in expected.items():
        groups = rollouts(offline, step)
        answers = [answer for group in groups for answer in group["responses"] + group["refinements"]]
        assert {answer["version"] for answer in answers} == {version}
        assert {text["kind"] for group in groups for text in group["trained"]} == kinds
    lines = read_metrics(offline.directory / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert all(line["grad_norm"] > 0 for line in lines[1:])


def test_only_what_is_right_trains_and_every_ratio_is_one_in_later_updates_too(offline: Run) -> None:
    for line in read_metrics(offline.directory / "metrics.jsonl")[1:]:
        assert {value for key, value in line.items() if key.startswith("ratio.")} == {1.0}
        for group in rollouts(offline, int(line["step"])):
            samples = group["responses"] + [group["refinements"][index] for index in group["selected"]]
            for text in group["trained"]:
                assert text["advantage"] == 1
                if text["kind"] == "critique":
                    refinement = group["refinements"][text["sample"]]
                    right = group["responses"][refinement["parent"]]["reward"] == 1
                    assert refinement["critique"]["concludes_correct"] is right
                else:
                    assert samples[text["sample"]]["reward"] == 1


def test_critiques_are_in_the_prompts_of_critiques_alone(offline: Run) -> None:
    for step in range(1, STEPS + 1):
        for group in rollouts(offline, step):
            for text in group["trained"]:
                assert (language.ATTEMPT in text["prompt"]) == (text["kind"] == "critique")
                assert text["prompt"].endswith(language.CRITIQUE if text["kind"] == "critique" else language.ANSWER)


def test_solutions_cost_no_sampling(offline: Run) -> None:
    line = read_metrics(offline.directory / "metrics.jsonl")[4]
    assert not [key for key in line if key in ("tokens.generate", "tokens.refine", "time.generate")]
    assert line["cost.compute"] == 3 * line["tokens.update"]


def test_a_resumed_run_still_samples_from_the_initial_policy(folder: Path, cache: Path, offline: Run) -> None:
    copy = folder / "offline_resumed"
    shutil.copytree(offline.directory, copy)
    for step in range(3, STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / f"step_{step:06d}")
    run = Run(folder, cache, copy.name, *OFFLINE, "--resume", settings=TINY)
    run.finish()
    assert run.comparable_metrics() == offline.comparable_metrics()
    for step in range(1, STEPS + 1):
        assert rollouts(run, step) == rollouts(offline, step)


def test_equal_compute_ends_at_the_first_step_that_reaches_it(offline: Run, equal_compute: tuple[Run, Run]) -> None:
    def costs(run: Run) -> list[float]:
        return [line.get("cost.compute", 0) for line in read_metrics(run.directory / "metrics.jsonl")]

    budget, spent = sum(costs(offline)), costs(equal_compute[0])
    assert len(spent) > 1 and sum(spent[:-1]) < budget <= sum(spent)
    last = read_metrics(equal_compute[0].directory / "metrics.jsonl")[-1]
    assert "eval.pass_at_4" in last, "the last step has the final evaluation"
    assert (equal_compute[0].directory / "summary.json").is_file()
    assert (equal_compute[0].directory / "checkpoints" / f"step_{last['step']:06d}" / "manifest.json").is_file()


def test_critique_off_is_plain_grpo_to_the_last_bit(equal_compute: tuple[Run, Run]) -> None:
    grpo, critique_off = equal_compute
    assert grpo.comparable_metrics() == critique_off.comparable_metrics()
    assert any(line.get("grad_norm", 0) > 0 for line in read_metrics(grpo.directory / "metrics.jsonl"))
    checkpoints = sorted((grpo.directory / "checkpoints").iterdir())
    assert len(checkpoints) > 1
    for checkpoint in checkpoints:
        for path in [*(checkpoint / "policy").glob("*.distcp"), checkpoint / "policy" / "common.pt"]:
            twin = critique_off.directory / "checkpoints" / checkpoint.name / "policy" / path.name
            assert path.read_bytes() == twin.read_bytes()

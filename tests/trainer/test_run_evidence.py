"""Real runs: measuring changes nothing, the guard ends a run and lets it go on, and dumps show what trained on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_runs import PATIENCE_S, STEPS, Files, Run
from transformers import AutoTokenizer

from megatron_cgrpo.observe.metrics import read_metrics


@pytest.fixture(scope="module")
def stopped(folder: Path, cache: Path, uninterrupted: Files) -> tuple[Run, str]:
    """A run whose gradients are measured, and that the guard stops after two steps; with what it said."""
    guarded = ["guard.action=stop", "guard.entropy_below=99", "guard.patience=2", "observe.gradients_every=1"]
    run = Run(folder, cache, "guarded", *guarded, "checkpoint.every=0")
    _, errors = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode == 1, errors[-4000:]
    return run, errors


def without_measures(line: dict[str, float]) -> str:
    return json.dumps({k: v for k, v in line.items() if not k.startswith(("gradient.", "guard."))}, sort_keys=True)


def groups(run: Files) -> list[dict[str, Any]]:
    lines = [path.read_text().splitlines() for path in sorted((run.directory / "rollouts").iterdir())]
    return [json.loads(line) for step in lines for line in step]


def test_the_guard_stops_with_a_sentence_and_a_checkpoint(stopped: tuple[Run, str]) -> None:
    run, errors = stopped
    assert "guard.entropy_below=99 for 2 steps" in errors and "Traceback" not in errors
    lines = read_metrics(run.directory / "metrics.jsonl")
    assert [line.get("guard.entropy") for line in lines] == [None, 1, 2]
    assert (run.directory / "checkpoints" / "step_000002" / "manifest.json").is_file()
    assert run.session() == []


def test_a_measured_stopped_and_resumed_run_is_the_undisturbed_one(
    folder: Path, cache: Path, uninterrupted: Files, stopped: tuple[Run, str]
) -> None:
    """Bit by bit, but for what was measured."""
    Run(folder, cache, "guarded", "guard.action=off", "observe.gradients_every=1", "--resume").finish()
    run, _ = stopped
    measured = [json.loads(line) for line in run.comparable_metrics()]
    assert all(line["gradient.rollout"] > 0 for line in measured[1:])
    undisturbed = [json.loads(line) for line in uninterrupted.comparable_metrics()]
    assert [without_measures(line) for line in measured] == [without_measures(line) for line in undisturbed]


def test_no_prompt_that_trains_has_seen_a_critique_or_an_attempt(uninterrupted: Files) -> None:
    """And what refinements were sampled from has both."""
    refinements = trained = 0
    for group in groups(uninterrupted):
        for refinement in group["refinements"]:
            attempt = group["responses"][refinement["parent"]]["text"]
            seen = refinement["prompt"].replace("<pad>", "")  # a model so small samples it; texts leave it out
            assert f"Attempt: {attempt}\nCritique: {refinement['critique']['text']}\nAnswer: " in seen
            assert all(refinement["critique"]["text"] not in row["prompt"] for row in group["trained"])
            refinements += 1
        for row in group["trained"]:
            assert row["prompt"] == f"Question: {group['prompt']}\nAnswer: "
            assert row["advantage"] == group["advantages"][row["sample"]]
            trained += row["kind"] == "refinement"
    assert refinements > 0 and trained > 0


def test_the_ledger_agrees_with_the_dump(uninterrupted: Files, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)

    def prompt_tokens(dumped: list[dict[str, Any]]) -> int:
        return sum(len(tokenizer.encode(row["prompt"])) for group in dumped for row in group["trained"])

    by_step: dict[int, list[dict[str, Any]]] = {}
    for group in groups(uninterrupted):
        by_step.setdefault(group["step"], []).append(group)
    for line in read_metrics(uninterrupted.directory / "metrics.jsonl")[1:]:
        dumped = by_step[int(line["step"])]
        rows = [(group, row) for group in dumped for row in group["trained"]]
        refined = [refinement for group in dumped for refinement in group["refinements"]]  # selected or not
        assert line["cost.update.tokens"] == sum(row["response_tokens"] for _, row in rows)
        assert line["cost.update.tokens"] + line["cost.update.prompt_tokens"] == line["tokens.update"]
        assert line["cost.update.prompt_tokens"] == prompt_tokens(dumped)
        later = dumped[len(dumped) // 2 :]  # the old policy's pass is for the second update; the reference's for both
        later_tokens = sum(row["response_tokens"] for group in later for row in group["trained"])
        assert line["cost.logprob.tokens"] == line["cost.update.tokens"] + later_tokens
        assert line["cost.logprob.prompt_tokens"] == line["cost.update.prompt_tokens"] + prompt_tokens(later)
        assert line["ledger.count.trained_tokens"] == line["tokens.rollout"] + line["tokens.refinement"]
        assert line.get("ledger.count.refinements", 0) == len(refined)
        if refined:
            tokens = sum(refinement["tokens"] for refinement in refined)
            total = sum(refinement["logp_question"] * refinement["tokens"] for refinement in refined)
            assert line["ledger.logp_question"] == pytest.approx(total / tokens)


def test_the_summary_adds_up_what_the_lines_say(uninterrupted: Files) -> None:
    lines = read_metrics(uninterrupted.directory / "metrics.jsonl")
    summary = json.loads((uninterrupted.directory / "summary.json").read_text())
    assert len(lines) == STEPS + 1
    for key in ("cost.compute", "cost.rollout.tokens", "cost.update.device_seconds", "ledger.count.wrong.cot"):
        assert summary[key] == pytest.approx(sum(line.get(key, 0) for line in lines))
    assert summary["cost.update.device_seconds"] == pytest.approx(2 * summary["seconds.update"])  # tp: 2
    assert summary["cost.compute"] == sum(
        summary.get(f"cost.{source}.{part}", 0) * (3 if source == "update" else 1)
        for source in ("rollout", "critique", "refinement", "logprob", "update")
        for part in ("tokens", "prompt_tokens")
    )
    assert summary["cost.refinement.prompt_tokens"] > summary["cost.refinement.tokens"] > 0

"""Whole runs through the command line on the real stack: equal runs, killed runs, stopped runs, evaluated runs."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from random import Random

import pytest
import torch
from faults import RANK, living
from own_model import EOS, write_own_problems
from training_runs import OF_ANY_TASK, PATIENCE_S, STEPS, Files, Run

from megatron_cgrpo.observe import trace_files
from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.weights.transfer.file import SHARED_MEMORY
from megatron_cgrpo.weights.transfer.scratch import PREFIX


def test_a_run_leaves_what_it_promises(uninterrupted: Files) -> None:
    directory = uninterrupted.directory
    lines = read_metrics(directory / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert all("grad_norm" in line and line["grad_norm"] > 0 for line in lines[1:])
    # The engine's log-probabilities are the trainer's, in float32, in every step: weights arrive whole and in time.
    assert all(line["mismatch.max_abs"] < 1e-4 for line in lines[1:])
    assert sorted(path.name for path in (directory / "rollouts").iterdir()) == [
        f"step_{step:06d}.jsonl" for step in range(1, STEPS + 1)
    ]
    for step in range(1, STEPS + 1):
        for text in (directory / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines():
            group = json.loads(text)
            assert {answer["version"] for answer in group["responses"] + group["refinements"]} == {step - 1}
    assert len(list((directory / "checkpoints").iterdir())) == 2  # keep_last
    assert (directory / "config.yaml").is_file() and list((directory / "plots").glob("*.png"))
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["trained.pass_at_1"] == lines[-1]["eval.pass_at_1"]
    assert {"base.pass_at_8", "trained.pass_at_8", "misconceptions.repaired", "seconds.generate"} <= summary.keys()


def test_phases_add_up_to_the_step(uninterrupted: Files) -> None:
    for line in read_metrics(uninterrupted.directory / "metrics.jsonl")[1:]:
        phases = {k: v for k, v in line.items() if k.startswith("time.") and k != "time.step"}
        assert sum(phases.values()) == pytest.approx(line["time.step"])


def begun_early(run: Files) -> int:
    """How many refinements of all steps began before their step's last initial response had ended."""
    timelines = map(trace_files.read_timeline, trace_files.step_files(run.directory / trace_files.DIRECTORY).values())
    spans = [span for timeline in timelines for span in timeline.spans if "step" in span.args and not span.open]
    early = refinements = 0
    for step in {span.args["step"] for span in spans if span.name == "generate"}:
        last = max(span.end for span in spans if span.args["step"] == step and span.name == "generate")
        begun = [span.start for span in spans if span.args["step"] == step and span.name == "refine"]
        refinements += len(begun)
        early += sum(start < last for start in begun)
    assert refinements
    return early


def test_the_timeline_of_a_run_shows_no_barrier_unless_there_is_one(
    folder: Path, cache: Path, uninterrupted: Files
) -> None:
    assert begun_early(uninterrupted) > 0
    barrier = Run(folder, cache, "barrier", "rollout.schedule=barrier")
    barrier.finish()
    assert begun_early(barrier) == 0
    assert barrier.comparable_metrics() == uninterrupted.comparable_metrics()


def test_the_timelines_of_a_run_have_all_that_takes_part(uninterrupted: Files) -> None:
    files = trace_files.step_files(uninterrupted.directory / trace_files.DIRECTORY)
    assert list(files) == list(range(STEPS + 1))
    collected: dict[int, set[tuple[str, str]]] = {}  # a step's collection begins while the one before is recorded
    for step, path in files.items():
        spans = trace_files.read_timeline(path).spans
        for span in spans:
            collected.setdefault(int(span.args.get("step", 0)), set()).add((span.track.split()[0], span.name))
        found = {(span.track, span.name) for span in spans}
        if step:
            phases = ("collect", "logprob", "measure", "update", "sync", "record")
            assert found >= {("trainer", phase) for phase in phases}
            assert found >= {(f"rank {rank}", name) for rank in (0, 1) for name in ("logprob", "update")}
            assert found >= {("rank 0", "push"), ("rank 1", "push"), ("sync", "push")}
    assert ("engine", "evaluate") in collected[0]
    for step in range(1, STEPS + 1):
        stages = {("engine", "generate"), ("critic", "critique"), ("engine", "refine"), ("verify", "verify")}
        assert collected[step] == stages


def test_colocated_engines_give_the_same_run(folder: Path, cache: Path, uninterrupted: Files) -> None:
    """Between a push and the end of a collection they serve, else they refuse: also while the system starts."""
    run = Run(folder, cache, "colocated", "rollout.engines=2", "rollout.placement=colocated")
    run.finish()
    assert run.comparable_metrics() == uninterrupted.comparable_metrics()


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(folder: Path, cache: Path, uninterrupted: Files) -> None:
    moment = Random()  # the test holds for every moment, so each run tries another
    step, delay = moment.randint(1, STEPS - 1), moment.random()
    run = Run(folder, cache, "killed", "checkpoint.every=2")
    run.wait_for_step(step)
    time.sleep(delay)
    run.kill()
    Run(folder, cache, "killed", "checkpoint.every=2", "--resume").finish()
    assert run.comparable_metrics() == uninterrupted.comparable_metrics(), f"killed {delay:.3f} s after step {step}"


def test_sigterm_saves_and_leaves_nothing_running_and_another_layout_goes_on(folder: Path, cache: Path) -> None:
    run = Run(folder, cache, "stopped", "checkpoint.every=0")
    run.wait_for_step(1)
    senders = [process.pid for process in living(run, RANK)]
    assert len(senders) == 2
    run.process.send_signal(signal.SIGTERM)
    _, errors = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode == 128 + signal.SIGTERM, errors[-4000:]
    assert "Traceback" not in errors
    assert run.session() == []
    assert [path for pid in senders for path in SHARED_MEMORY.glob(f"{PREFIX}{pid}-*")] == []
    reached = read_metrics(run.directory / "metrics.jsonl")[-1]["step"]
    assert (run.directory / "checkpoints" / f"step_{reached:06d}" / "manifest.json").is_file()

    resumed = Run(folder, cache, "stopped", "checkpoint.every=0", "parallel.tp=1", "parallel.dp=2", "--resume")
    resumed.finish()
    lines = read_metrics(run.directory / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert lines[-1]["mismatch.max_abs"] < 1e-4


def test_a_checkpoint_scores_as_it_did_in_training(folder: Path, cache: Path, uninterrupted: Files) -> None:
    checkpoint = uninterrupted.directory / "checkpoints" / f"step_{STEPS:06d}"
    output = Run(folder, cache, "unused", "--checkpoint", str(checkpoint), "--json", command="eval").finish()
    scores = json.loads(output)
    last = read_metrics(uninterrupted.directory / "metrics.jsonl")[-1]
    assert {f"eval.{name}": value for name, value in scores.items()} == {
        key: value for key, value in last.items() if key.startswith("eval.")
    }


def test_an_existing_run_is_not_overwritten(folder: Path, cache: Path, uninterrupted: Files) -> None:
    metrics = (uninterrupted.directory / "metrics.jsonl").read_bytes()
    run = Run(uninterrupted.directory.parent, cache, uninterrupted.directory.name)
    _, errors = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode != 0
    assert "--resume" in errors and str(uninterrupted.directory) in errors
    assert (uninterrupted.directory / "metrics.jsonl").read_bytes() == metrics


def test_ctrl_c_on_a_model_and_problems_of_ones_own_whose_samples_never_end(folder: Path, cache: Path) -> None:
    """Dimension 0 of every hidden state is large, and speaks against the end of the sequence."""

    def endless(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.embed_tokens.weight":
            tensor[:, 0] = 10.0
        if name == "lm_head.weight":
            tensor[EOS, 0] = -100.0
        return tensor

    run = Run(folder, cache, "own", *write_own_problems(folder, endless), settings=OF_ANY_TASK)
    run.wait_for_step(1)
    run.process.send_signal(signal.SIGINT)
    _, errors = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode == 128 + signal.SIGINT, errors[-4000:]
    assert run.session() == []
    lines = read_metrics(run.directory / "metrics.jsonl")
    assert (run.directory / "checkpoints" / f"step_{lines[-1]['step']:06d}" / "manifest.json").is_file()
    for line in lines[1:]:  # they are cut off, and train
        assert (line["response.truncated"], line["response.tokens_mean"]) == (1.0, 40.0)
        assert line["tokens.rollout"] == 8 * 3 * 40 and line["grad_norm"] > 0
        assert line["mismatch.max_abs"] < 1e-4  # an untied head and QKV biases arrive too

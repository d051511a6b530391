"""The comparison with other trainers: its arithmetic, the loop's gradient against an oracle, one tiny run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark.markov import Chain, Tail
from benchmark.peers.compare import LOOP, OURS, TRL, figures
from benchmark.peers.environment import REQUIREMENTS, default_directory
from benchmark.peers.job import Job, Report, rewards
from benchmark.peers.transformers_loop import advantages, batches, until_end, update
from benchmark.setting import Files, Setting, read_questions
from benchmark.training_run import run
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
TAIL = Tail(3, 9, 0.2)
SETTING = Setting(
    Chain(TAIL, TAIL), "easy", 2, 2, prompt_tokens=5, max_response=12, max_critique=4, hidden=64, vocab=128
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.write(tmp_path_factory.mktemp("peers") / "files", SETTING)


def job(files: Files, **other: int) -> Job:
    sizes = {"prompts": 2, "group": 2, "max_response": 12, "steps": 2, "warm_up": 1, "micro_batch": 3} | other
    return Job(str(files.model), read_questions(files.problems), **sizes, threads=1, seed=0)


def test_rates_and_ratios_are_of_the_same_repetition() -> None:
    reports = {
        OURS[0]: [Report([1.0, 1.0], 80.0, 0.5), Report([2.0, 2.0], 120.0, 0.7)],
        TRL: [Report([5.0, 5.0], 100.0, 0.4), Report([6.0, 4.0], 100.0, 0.4)],
        LOOP: [Report([4.0, 4.0], 100.0, 0.4), Report([4.0, 4.0], 100.0, 0.4)],
    }
    found = figures(reports, samples=10)
    assert found["samples_per_s"][OURS[0]]["values"] == [5.0, 2.5]
    assert found["tokens_per_sample"][OURS[0]] == 10.0
    assert found["reward"][OURS[0]] == pytest.approx(0.6)
    assert found["ratios"][f"{OURS[0]} / {TRL}"]["samples_per_s"]["values"] == [5.0, 2.5]
    assert found["ratios"][f"{OURS[0]} / {LOOP}"]["tokens_per_s"]["values"] == pytest.approx([3.2, 2.4])
    assert set(found["ratios"]) == {f"{OURS[0]} / {TRL}", f"{OURS[0]} / {LOOP}"}


def test_rewards_are_the_verifiers_and_nothing_for_what_did_not_stop() -> None:
    texts = ["so \\boxed{1}", "so \\boxed{1}", "so \\boxed{0}", "so"]
    assert rewards(texts, [True, False, True, True]) == [1.0, 0.0, 0.0, 0.0]


def test_the_loop_asks_all_questions_in_turn(files: Files) -> None:
    few = Job(str(files.model), ["a", "b", "c"], 2, 2, 12, 2, 1, 3, 1, 0)
    assert list(batches(few)) == [["a", "b"], ["c", "a"], ["b", "c"]]


def test_responses_end_with_their_first_end_of_sequence() -> None:
    responses = torch.tensor([[5, 6, 1, 0], [1, 1, 5, 1], [5, 6, 7, 8]])
    assert until_end(responses, eos=1).tolist() == [[True, True, True, False], [True, False, False, False], [True] * 4]


def test_the_loops_update_follows_the_gradient_of_dr_grpo(files: Files) -> None:
    """Oracle: one sequence at a time, without padding, summed as the formula is written."""
    prompts = {
        "input_ids": torch.tensor([[0, 0, 4, 5, 6]] + [[4, 5, 6, 7, 8]] * 3),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1]] + [[1] * 5] * 3),
    }
    responses = torch.tensor([[20, 21, 1, 0], [22, 1, 0, 0], [23, 24, 25, 26], [27, 28, 1, 0]])
    mask, gain = until_end(responses, 1), advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), 2)
    assert gain.tolist() == [0.5, -0.5, -0.5, 0.5]
    model = AutoModelForCausalLM.from_pretrained(files.model)
    oracle = AutoModelForCausalLM.from_pretrained(files.model)
    update(model, torch.optim.SGD(model.parameters(), lr=0.0), prompts, responses, mask, gain, job(files))
    loss = torch.zeros(())
    for row in range(4):
        asked = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
        answer = responses[row][mask[row]]
        logp = oracle(input_ids=torch.cat([asked, answer])[None]).logits[0].log_softmax(-1)
        for place, token in enumerate(answer):
            loss = loss - gain[row] * logp[len(asked) - 1 + place, token] / (4 * 12)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(oracle.parameters(), 1.0)
    for (name, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_run_of_the_loop(tmp_path: Path, files: Files) -> None:
    job(files).write(tmp_path / "job.json")
    command = [
        sys.executable,
        "-m",
        "benchmark.peers.transformers_loop",
        tmp_path / "job.json",
        tmp_path / "report.json",
    ]
    run([str(part) for part in command], {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"})
    report = Report.read(tmp_path / "report.json")
    assert len(report.seconds) == 2 and report.total == sum(report.seconds) > 0
    assert 2 * 4 * 3 <= report.tokens <= 2 * 4 * 12  # a word, an answer and an end at least
    assert 0 <= report.reward <= 1


def test_a_failure_is_told_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 3\nno such luck"):
        run([sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"], {})


def test_the_tables_and_the_json(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/bench_peers.py"), "--quick", "--json", "--sides", LOOP]
    command += ["--cores", "1", "--lengths", "equal"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    found = json.loads(done.stdout)
    assert found["quick"] and found["machine"]["cores"] == 1
    equal = found["lengths"]["equal"]
    assert equal["tokens_per_sample"][LOOP] == 8  # six counted words, an answer, an end
    assert len(equal["samples_per_s"][LOOP]["values"]) == equal["setting"]["repeats"] == 1
    assert equal["ratios"] == {} and "samples/s" in done.stderr


def test_the_environment_of_trl_is_named_after_what_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MCGRPO_CACHE", str(tmp_path))
    assert default_directory().parent == tmp_path
    assert "trl==1.16.0" in REQUIREMENTS.read_text()

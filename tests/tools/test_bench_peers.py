"""The comparison with other trainers: its arithmetic, the loop's gradient against an oracle, one tiny run of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark.markov import Chain, Tail
from benchmark.peers.compare import ALGORITHM, BEST_TRL, LOOP, OURS, TRL, check_same, figures, own_layout
from benchmark.peers.environment import CONSTRAINTS, REQUIREMENTS, default_directory, trl_python
from benchmark.peers.job import Job, Report, packages, rewards
from benchmark.peers.transformers_loop import advantages, batches, until_end, update
from benchmark.setting import Files, Setting, read_questions, write_recipe
from benchmark.training_run import run
from transformers import AutoModelForCausalLM

from megatron_cgrpo.config.loading import load_recipe

ROOT = Path(__file__).parents[2]
TAIL = Tail(3, 9, 0.2)
SETTING = Setting(
    Chain(TAIL, TAIL), "easy", 2, 2, prompt_tokens=5, max_response=12, max_critique=4, hidden=64, vocab=128
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.write(tmp_path_factory.mktemp("peers") / "files", SETTING)


def job(files: Files, **other: int) -> Job:
    sizes = {"prompts": 2, "group": 2, "max_response": 12, "steps": 2, "warm_up": 1, "micro_batches": 2} | other
    return Job(str(files.model), read_questions(files.problems), **{"generation_batches": 1} | sizes, threads=1, seed=0)


def test_rates_and_ratios_are_of_the_same_repetition() -> None:
    eight, twelve = [3, 7, 20, 4, 6] * 2, [12] * 10
    reports = {
        OURS[0]: [Report([1.0, 1.0], eight, 0.5), Report([2.0, 2.0], twelve, 0.7)],
        TRL[0]: [Report([5.0, 5.0], [10] * 10, 0.4), Report([60.0, 4.0], [10] * 10, 0.4)],
        TRL[1]: [Report([50.0, 5.0], [10] * 10, 0.4), Report([6.0, 4.0], [10] * 10, 0.4)],
        LOOP: [Report([4.0, 4.0], [10] * 10, 0.4), Report([4.0, 4.0], [10] * 10, 0.4)],
    }
    found = figures(reports, samples=10)
    assert found["samples_per_s"][OURS[0]]["values"] == [5.0, 2.5]
    assert found["tokens_per_sample"][OURS[0]] == 10.0
    assert found["longest_of_a_step"] == {OURS[0]: 16, TRL[0]: 10, TRL[1]: 10, LOOP: 10}
    assert found["reward"][OURS[0]] == pytest.approx(0.6)
    assert set(found["ratios"]) == {f"{OURS[0]} / {BEST_TRL}", f"{OURS[0]} / {LOOP}"}
    trl, loop = found["ratios"][f"{OURS[0]} / {BEST_TRL}"], found["ratios"][f"{OURS[0]} / {LOOP}"]
    assert trl["samples_per_s"]["values"] == [5.0, 2.5] and trl["goal"] == "at least 5: missed"
    assert loop["tokens_per_s"]["values"] == pytest.approx([3.2, 2.4])
    assert BEST_TRL not in figures({side: reports[side] for side in (OURS[0], TRL[0])}, 10)["samples_per_s"]


def test_other_libraries_are_no_comparison() -> None:
    own = packages("torch", "transformers")
    check_same("TRL", own | {"trl": ["1.16.0", "trl.py"]})
    with pytest.raises(RuntimeError, match="TRL uses torch .*2.0.0.*anew"):
        check_same("TRL", own | {"torch": ["2.0.0", own["torch"][1]]})


@pytest.mark.parametrize(("staleness", "threads"), [(0, 2), (1, 1)])
def test_ours_has_the_same_cores_as_the_others(files: Files, tmp_path: Path, staleness: int, threads: int) -> None:
    path = tmp_path / "recipe.yaml"
    write_recipe(path, SETTING.recipe(files), ALGORITHM, own_layout(SETTING, 2, staleness))
    recipe = load_recipe(path, [f"train.staleness={staleness}", "run.dir=unused"])
    assert (recipe.rollout.engines, recipe.rollout.threads, recipe.parallel.world_size) == (1, threads, 2)
    assert recipe.rollout.max_concurrent_sequences == SETTING.samples == 4
    assert recipe.train.micro_batch_tokens == 5 + 12, "one of four micro-batches of four rows"


def test_rewards_are_the_verifiers_and_nothing_for_what_did_not_stop() -> None:
    texts = ["so \\boxed{1}", "so \\boxed{1}", "so \\boxed{0}", "so"]
    assert rewards(texts, [True, False, True, True]) == [1.0, 0.0, 0.0, 0.0]


def test_the_loop_asks_all_questions_in_turn(files: Files) -> None:
    few = replace(job(files), questions=["a", "b", "c"])
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


def peer_run(folder: Path, python: str, module: str, asked: Job) -> Report:
    asked.write(folder / "job.json")
    command = [python, "-m", f"benchmark.peers.{module}", str(folder / "job.json"), str(folder / "report.json")]
    run(command, {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"})
    report = Report.read(folder / "report.json")
    check_same(module, report.packages)
    assert len(report.seconds) == 2 and report.total == sum(report.seconds) > 0
    assert len(report.lengths) == 2 * asked.samples
    assert min(report.lengths) >= 3 and max(report.lengths) <= 12  # a word, an answer and an end at least
    assert 0 <= report.reward <= 1
    return report


def test_a_run_of_the_loop(tmp_path: Path, files: Files) -> None:
    report = peer_run(tmp_path, sys.executable, "transformers_loop", job(files))
    assert set(report.packages) == {"torch", "transformers"}


@pytest.mark.skipif("MCGRPO_TEST_TRL" not in os.environ, reason="set MCGRPO_TEST_TRL=1: installs TRL where it is not")
@pytest.mark.parametrize("generation_batches", [1, 2])
def test_a_run_of_trl(tmp_path: Path, files: Files, generation_batches: int) -> None:
    python = str(trl_python(default_directory()))
    report = peer_run(tmp_path, python, "trl_trainer", job(files, generation_batches=generation_batches))
    assert report.packages["trl"][0] == "1.16.0"


def test_a_failure_is_told_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 3: (.|\\n)*no such luck"):
        run([sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"], {})


def test_the_tables_and_the_json(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/bench_peers.py"), "--quick", "--json", "--sides", LOOP]
    command += ["--cores", "1", "--only", "equal", "--results", str(tmp_path / "peers.json")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    equal = json.loads(done.stdout)["sections"]["equal"]
    assert json.loads((tmp_path / "peers.json").read_text()) == {"sections": {"equal": equal}}
    assert equal["quick"] and equal["machine"]["cores"] == 1
    assert equal["tokens_per_sample"][LOOP] == equal["longest_of_a_step"][LOOP] == 8  # six words, an answer, an end
    assert len(equal["samples_per_s"][LOOP]["values"]) == equal["setting"]["repeats"] == 1
    assert equal["ratios"] == {} and f"| {LOOP} |" in done.stderr


def test_the_environment_of_trl_is_named_after_what_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MCGRPO_CACHE", str(tmp_path))
    assert default_directory().parent == tmp_path
    assert "trl==1.16.0" in REQUIREMENTS.read_text() and "transformers==" in CONSTRAINTS.read_text()

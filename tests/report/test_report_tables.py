"""The tables' numbers, against figures written down by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
from run_dirs import write_run

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.atomic import write_json
from megatron_cgrpo.report.analyses import analysis_tables
from megatron_cgrpo.report.costs import cost_tables
from megatron_cgrpo.report.embedded_task import TAUGHT
from megatron_cgrpo.report.ledgers import ledger_tables
from megatron_cgrpo.report.methods import Method, group_by_method
from megatron_cgrpo.report.rescues import rescue_table
from megatron_cgrpo.report.run_files import read_run
from megatron_cgrpo.report.scores import curve_table, results_table, runs_table
from megatron_cgrpo.report.tables import Cell, Table, markdown


def column(table: Table, name: str) -> list[str]:
    return [row[table.columns.index(name)].text for row in table.rows]


@pytest.fixture
def methods(tmp_path: Path) -> list[Method]:
    """One method with a run that was interrupted, and one with a single run."""
    runs = [
        write_run(tmp_path / "0", seed=0, pass_at_1=(0.5, 0.9, 0.6)),
        write_run(tmp_path / "1", seed=1, pass_at_1=(0.4, 0.5, 0.8)),
        write_run(tmp_path / "2", seed=2, pass_at_1=(0.3, 1.0, 1.0), steps=2),
        write_run(tmp_path / "plain", "algorithm.preset=r1_drgrpo", pass_at_1=(0.5, 0.5, 0.5)),
    ]
    return group_by_method([read_run(run) for run in runs])


def test_means_are_over_finished_runs(methods: list[Method]) -> None:
    table = results_table(methods)
    final = f"{100 * mean([0.6, 0.8]):.1f} ± {100 * stdev([0.6, 0.8]):.1f}"
    assert column(table, "final Pass@1") == [final, "50.0"]
    assert column(table, "best Pass@1") == [f"{100 * mean([0.9, 0.8]):.1f} ± {100 * stdev([0.9, 0.8]):.1f}", "50.0"]
    assert column(table, "base Pass@1")[0] == f"45.0 ± {100 * stdev([0.5, 0.4]):.1f}"
    assert column(table, "runs") == ["2 of 3", "1 of 1"]
    assert column(table, "final Pass@1 by seed")[0] == "0: 60.0%, 1: 80.0%"
    assert column(table, "final Pass@8")[1] == "57.0"


def test_what_the_base_model_was_taught_is_said_of_the_embedded_task_alone(methods: list[Method]) -> None:
    elsewhere = [
        replace(m, runs=[replace(r, config=r.config | {"task.kind": "file"}) for r in m.runs]) for m in methods
    ]
    for found, said in ((methods, True), (elsewhere, False)):
        assert (TAUGHT in results_table(found).note) == (TAUGHT in ledger_tables(found)[0].note) == said


def test_every_run_is_listed(methods: list[Method]) -> None:
    table = runs_table(methods)
    assert column(table, "state")[2] == "unfinished: step 2 of 4"
    assert column(table, "last Pass@1 (%)") == ["60.0", "80.0", "100.0", "50.0"]


def test_costs(methods: list[Method]) -> None:
    summary, evaluation, tokens, prompt_tokens, seconds, device_seconds = cost_tables(methods)
    assert column(summary, "compute (million)") == ["1.00", "1.00"]  # 4 steps of 250,000
    assert column(summary, "seconds") == ["6.5", "6.5"]  # of 2, without 0.25 of evaluation and 0.125 of measuring
    assert column(summary, "device-seconds") == ["12.0", "12.0"]
    assert column(summary, "thousand tokens") == ["0.6", "0.6"]
    assert column(summary, "thousand prompt tokens") == column(prompt_tokens, "rollout") == ["0.2", "0.2"]
    assert column(evaluation, "seconds") == ["1.0", "1.0"] and column(evaluation, "device-seconds") == ["2.0", "2.0"]
    assert column(evaluation, "seconds of measuring") == ["0.5", "0.5"]
    gains = [0.6 - 0.5, 0.8 - 0.4]
    assert column(summary, "gain (points)")[0] == f"{100 * mean(gains):.1f} ± {100 * stdev(gains):.1f}"
    assert column(summary, "points per million compute")[0] == f"{100 * mean(gains):.2f} ± {100 * stdev(gains):.2f}"
    assert tokens.columns == ["method", "rollout", "update"] and column(tokens, "update") == ["0.2", "0.2"]
    assert column(seconds, "rollout") == ["6.0", "6.0"] and column(device_seconds, "rollout") == ["12.0", "12.0"]


def test_the_ledger_is_what_the_summaries_pool(tmp_path: Path) -> None:
    ledger = {"ledger.count.corrected": 2, "ledger.count.wrong.cot": 4, "ledger.fixed.cot": 0.25}
    ledger |= {"ledger.count.tokens": 3, "ledger.gap": 1.5, "ledger.p.le_1e-8": 0.75, "ledger.p.le_1e0": 0.25}
    runs = []
    for seed, leaked in ((0, 0.5), (1, 1.0)):
        runs.append(read_run(write_run(tmp_path / str(seed), seed=seed, extra=ledger | {"ledger.leaked": leaked})))
    refinement, likelihood, probabilities, verdicts = ledger_tables(group_by_method(runs))
    assert column(refinement, "questions failed") == ["50.0 ± 0.0"]
    assert column(refinement, "questions refined") == ["25.0 ± 0.0"]
    assert column(refinement, "right ones that copy the answer") == [f"75.0 ± {100 * stdev([0.5, 1.0]):.1f}"]
    assert column(refinement, "fixed by cot") == ["25.0 ± 0.0"]
    assert column(likelihood, "gap") == ["1.500 ± 0.000"]
    assert probabilities.columns[1:] == ["≤ 1e-8", "≤ 1e0"]
    assert len(verdicts.columns) == 1  # none was counted


def test_analyses(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    assert analysis_tables(group_by_method([read_run(directory)])) == []
    write_json(directory / "analysis.json", {"behaviour.prose": 0, "persistent.solved_share": 0.25})
    persistent, rules, judge = analysis_tables(group_by_method([read_run(directory)]))
    assert column(persistent, "of those seen again, solved") == ["25.0"]
    assert "nothing to read" in rules.note and len(rules.columns) == len(judge.columns) == 1
    write_json(directory / "analysis.json", {"behaviour.prose": 9, "behaviour.verification": 0.5})
    _, rules, _ = analysis_tables(group_by_method([read_run(directory)]))
    assert column(rules, "verification") == ["50.0"]


def rescue(failed: int, refined: int, valid: int, attempts: int) -> dict[str, object]:
    counts = {"valid": valid, "refinements": attempts // 2, "questions_refined": refined, "supported": valid}
    counts["attempts"] = attempts
    return {"questions": 100, "failed": failed, "kinds": {"cot": counts}, "source": "program", "checkpoint": None}


def test_rescues_stand_beside_the_papers() -> None:
    table = rescue_table([rescue(40, 20, 16, 160), rescue(50, 40, 60, 200)])
    assert column(table, "questions refined") == [f"65.0 ± {100 * stdev([0.5, 0.8]):.1f}"]
    assert column(table, "valid refinements") == [f"20.0 ± {100 * stdev([0.1, 0.3]):.1f}"]
    assert column(table, "paper (valid)") == ["36.47"] and column(table, "paper (questions)") == ["55.37"]
    assert column(table, "refined / failed questions") == ["60/90"]
    assert column(table, "valid / refinements / failed answers") == ["76/180/360"]
    assert "45.0 ± 7.1" in table.note


def test_rescues_under_other_critics_are_other_rows() -> None:
    own = rescue(40, 1, 1, 160) | {"source": "self"}
    table = rescue_table([rescue(40, 20, 16, 160), own, own | {"checkpoint": "step_000080"}])
    assert column(table, "critique") == ["cot", "cot, from self", "cot, from self, after training"]


@pytest.mark.parametrize("lacking", ["questions", "failed", "kinds"])
def test_a_rescue_file_without_counts_is_refused(lacking: str) -> None:
    damaged = {key: value for key, value in rescue(40, 20, 16, 160).items() if key != lacking}
    with pytest.raises(ConfigError, match="lacks counts"):
        rescue_table([damaged])


def test_pass_at_k_is_in_the_order_of_k() -> None:
    scores = [{"pass_at_1": 0.5, "pass_at_16": 0.7, "pass_at_2": 0.6, "pass_at_1_sound": 1.0}, {"pass_at_1": 0.7}]
    table = curve_table({"ours": scores})
    assert table.columns == ["model", "seeds", "k = 1", "k = 2", "k = 16"]
    assert column(table, "k = 1") == [f"60.0 ± {100 * stdev([0.5, 0.7]):.1f}"] and column(table, "k = 16") == ["70.0"]


def test_markdown_cannot_be_broken_by_a_label() -> None:
    table = Table("t", "T", ["a|b", "n"], [[Cell("x|y\n<b>*z*"), Cell("1", 1)]])
    head, rule, row = markdown(table).splitlines()
    assert head == r"| a\|b | n |" and rule == "|---|---:|"
    assert row == r"| x\|y \<b\>\*z\* | 1 |"

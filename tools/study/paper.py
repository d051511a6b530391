"""Which arms belong to which table, and what arXiv 2506.03106 reports there (average Pass@1 in per cent)."""

from __future__ import annotations

from study.arms import ARMS

from megatron_cgrpo.report.embedded_task import TAUGHT
from megatron_cgrpo.report.study import StudyRow, StudyTable

RESCUE = "1"
"""The table that trains nothing: persistent failures of the base model, by ``mcgrpo rescue``."""
PASS_AT_K = "passk"
"""Pass@k curves of a few arms, by ``mcgrpo eval``."""
PASS_AT_K_ARMS = (None, "r1_drgrpo", "critique_grpo")
SELF_CRITIQUE = "self"
"""Answers before and after the policy's own critiques, by ``mcgrpo eval --self-critique``."""
SELF_CRITIQUE_ARMS = (None, "critique_grpo")

# What a reader has to know who takes these tables for evidence.
_PROGRAM = "CoT critiques are the task's program's, which knows every right value, unless the row says otherwise."
_SHARED = (
    "The base models of all sizes were taught the same misconceptions and judge by them: as critics, of the policy or "
    "of themselves, they take the mistakes that persist for right."
)
_TOLD = (
    "No base model has ever been shown the right answer when it criticised: a critic that is told it reads new text."
)
NOTES = {
    "rescue": f"{TAUGHT} The order of the kinds is built in, and no evidence for the paper's.",
    "pass_at_k": f"{_PROGRAM} {TAUGHT}",
    "self_critique": f"Every model is its own critic. {_SHARED}",
}
"""Below the tables that are not among ``TABLES``."""

_QWEN = ("Qwen2.5-7B-Base", "Qwen3-8B")


def _row(arm: str | None, *paper: float | None, label: str | None = None) -> StudyRow:
    name = "base model" if arm is None else ARMS[arm].label
    return StudyRow(label=label or name, arm=arm, paper=paper)


TABLES = {
    "2": StudyTable(
        name="table_2",
        title="Table 2: methods",
        note="The paper's numbers are averages over eight benchmarks; ours are of the sandbox task, with "
        f"γ = 0.01 where the method has 0.1, which is a row of its own. {_PROGRAM} {TAUGHT} {_SHARED}",
        paper_columns=_QWEN,
        rows=(
            _row(None, 32.04, 53.23),
            _row("sft", 33.04, None),
            _row("raft", 34.27, None),
            _row("refinement_ft", 35.21, None),
            _row("critique_ft", 34.76, None),
            _row("citl_ft", 35.66, 55.84),
            _row("r1_grpo", 41.18, 63.75),
            _row("r1_drgrpo", 42.66, 64.46),
            _row("indicative", 44.62, None),
            _row("indicative_gt", 45.30, None),
            _row("critique_grpo", 47.08, 68.26),
            _row("gamma_0.1", 47.08, 68.26),
            _row("critique_grpo_self", None, None),
        ),
    ),
    "6": StudyTable(
        name="table_6",
        title="Table 6: ablation, cumulative",
        note="Each row adds to the one above; the last two are the same step with the sandbox's γ and with the "
        f"method's, to which the paper's number belongs. {_PROGRAM} {TAUGHT}",
        paper_columns=_QWEN[:1],
        rows=(
            _row("r1_grpo", 41.18),
            _row("r1_drgrpo", 42.66, label="+ no KL, no standard deviation (R1-DrGRPO)"),
            _row("language_feedback", 43.26, label="+ language feedback"),
            _row("selection", 43.95, label="+ selection of correct refinements"),
            _row("critique_grpo", 47.08, label="+ policy shaping, γ 0.01 (C-GRPO, CoT)"),
            _row("gamma_0.1", 47.08, label="+ policy shaping, γ 0.1 (C-GRPO, CoT)"),
        ),
    ),
    "ratios": StudyTable(
        name="ratios",
        title="The ratio of refined tokens",
        note=f"Shaping against its two alternatives: all else is C-GRPO with CoT critiques. {_PROGRAM} {TAUGHT}",
        rows=(
            _row("r1_drgrpo", label="no refinements (R1-DrGRPO)"),
            _row("critique_grpo", label="shaped, γ 0.01"),
            _row("gamma_0.1", label="shaped, γ 0.1 (the method's)"),
            _row("selection", label="importance: true ratio to the policy that saw the critique"),
            _row("on_policy", label="on policy: both conditioned on the question alone"),
        ),
    ),
    "7": StudyTable(
        name="table_7",
        title="Table 7: weak to strong, and back",
        note="The policy has width 128, the smaller model 64, the larger 192; γ is 0.01 throughout. "
        f"{_PROGRAM} {TAUGHT} {_SHARED} {_TOLD}",
        rows=(
            _row("r1_drgrpo"),
            _row("critique_grpo_self"),
            _row("critic_small"),
            _row("critic_large"),
            _row("critic_small_told"),
            _row("critic_large_told"),
            _row("critique_grpo", label="C-GRPO, CoT of the task's program"),
            _row("refiner_small", label="the same, refinement by a smaller model"),
            _row("refiner_large", label="the same, refinement by a larger model"),
        ),
    ),
    "8": StudyTable(
        name="table_8",
        title="Table 8: one after the other, or both at once",
        note=f"Two stages of half the steps each against the same number of steps of one method. {_PROGRAM} {TAUGHT}",
        rows=(_row("r1_grpo"), _row("two_stage"), _row("critique_grpo")),
    ),
    "noise": StudyTable(
        name="noise",
        title="Wrong critiques",
        note="A share of the program's critiques, at γ = 0.01, is replaced by ones that name a wrong value. The base "
        "model was taught to follow both kinds, so a misled refinement is wrong whatever the policy: the sweep counts "
        f"the right critiques that are left, more than it tests who sees through the others. {TAUGHT}",
        rows=(
            _row("critique_grpo", label="none wrong"),
            _row("noise_0.10"),
            _row("noise_0.25"),
            _row("noise_0.50"),
            _row("r1_drgrpo", label="no critiques (R1-DrGRPO)"),
        ),
    ),
    "compute": StudyTable(
        name="compute",
        title="GRPO at equal compute",
        note=f"Equal steps, and equal compute, as the table of costs defines it. {_PROGRAM} {TAUGHT}",
        rows=(_row("r1_drgrpo", label="R1-DrGRPO, equal steps"), _row("equal_compute"), _row("critique_grpo")),
    ),
}
CHOICES = (RESCUE, *TABLES, PASS_AT_K, SELF_CRITIQUE)

"""Which arms belong to which table, and what arXiv 2506.03106 reports there (average Pass@1 in per cent)."""

from __future__ import annotations

from study.arms import ARMS

from megatron_cgrpo.report.study import StudyRow, StudyTable

RESCUE = "1"
"""The table that trains nothing: persistent failures of the base model, by ``mcgrpo rescue``."""
PASS_AT_K = "passk"
"""Pass@k curves of a few arms, by ``mcgrpo eval``."""
PASS_AT_K_ARMS = (None, "r1_drgrpo", "critique_grpo")

_QWEN = ("Qwen2.5-7B-Base", "Qwen3-8B")


def _row(arm: str | None, *paper: float | None, label: str | None = None) -> StudyRow:
    name = "base model" if arm is None else ARMS[arm].label
    return StudyRow(label=label or name, arm=arm, paper=paper)


TABLES = {
    "2": StudyTable(
        name="table_2",
        title="Table 2: methods",
        note="The paper's numbers are averages over eight benchmarks; ours are of the sandbox task.",
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
            _row("critique_grpo_self", None, None),
        ),
    ),
    "6": StudyTable(
        name="table_6",
        title="Table 6: ablation, cumulative",
        paper_columns=_QWEN[:1],
        rows=(
            _row("r1_grpo", 41.18),
            _row("r1_drgrpo", 42.66, label="+ no KL, no standard deviation (R1-DrGRPO)"),
            _row("language_feedback", 43.26, label="+ language feedback"),
            _row("selection", 43.95, label="+ selection of correct refinements"),
            _row("critique_grpo", 47.08, label="+ policy shaping (C-GRPO, CoT)"),
        ),
    ),
    "ratios": StudyTable(
        name="ratios",
        title="The ratio of refined tokens",
        note="Shaping against its two alternatives: all else is C-GRPO with CoT critiques.",
        rows=(
            _row("r1_drgrpo", label="no refinements (R1-DrGRPO)"),
            _row("critique_grpo", label="shaped, gamma 0.01"),
            _row("gamma_0.1", label="shaped, gamma 0.1 (the method's)"),
            _row("selection", label="importance: true ratio to the policy that saw the critique"),
            _row("on_policy", label="on policy: both conditioned on the question alone"),
        ),
    ),
    "7": StudyTable(
        name="table_7",
        title="Table 7: weak to strong, and back",
        note="The policy has width 128, the smaller model 64, the larger 192; all have the same misconceptions.",
        rows=(
            _row("r1_drgrpo"),
            _row("critique_grpo_self"),
            _row("critic_small"),
            _row("critic_large"),
            _row("critique_grpo", label="C-GRPO, CoT of the task's program"),
            _row("refiner_small", label="the same, refinement by a smaller model"),
            _row("refiner_large", label="the same, refinement by a larger model"),
        ),
    ),
    "8": StudyTable(
        name="table_8",
        title="Table 8: one after the other, or both at once",
        note="Two stages of half the steps each against the same number of steps of one method.",
        rows=(_row("r1_grpo"), _row("two_stage"), _row("critique_grpo")),
    ),
    "noise": StudyTable(
        name="noise",
        title="Wrong critiques",
        note="A share of the program's critiques is replaced by misleading ones.",
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
        note="Equal steps, and equal compute: tokens generated, scored and trained on, weighted by what they cost.",
        rows=(_row("r1_drgrpo", label="R1-DrGRPO, equal steps"), _row("equal_compute"), _row("critique_grpo")),
    ),
}
CHOICES = (RESCUE, *TABLES, PASS_AT_K)

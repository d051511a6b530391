"""``mcgrpo rescue`` and ``mcgrpo eval --self-critique`` on the real stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_runs import Run


def test_rescue_counts_add_up(folder: Path, cache: Path) -> None:
    out = folder / "rescue.json"
    run = Run(
        folder, cache, "rescue", "--samples", "3", "--prompts", "6", "--out", str(out), "--json", command="rescue"
    )
    result = json.loads(run.finish())
    assert result == json.loads(out.read_text())
    assert (result["questions"], result["samples"], result["split"]) == (6, 3, "test")
    assert 0 < result["failed"] <= 6, "a model that has hardly been trained fails some"
    assert list(result["kinds"]) == ["cot", "indicative", "indicative_gt"]
    for counts in result["kinds"].values():
        assert counts["attempts"] == 3 * result["failed"]
        assert counts["refinements"] + sum(counts["dropped"].values()) == counts["attempts"]
        assert counts["supported"] <= counts["valid"] <= counts["refinements"]
        assert counts["questions_refined_share"] == pytest.approx(counts["questions_refined"] / result["failed"])


def test_self_critique_scores_answers_and_refinements(folder: Path, cache: Path) -> None:
    arguments = ("--self-critique", "--samples", "2", "--json", "critic.source=self")
    scores = json.loads(Run(folder, cache, "self_critique", *arguments, command="eval").finish())
    for name in ("before", "after", "judged"):
        assert 0 <= scores[f"{name}.pass_at_1"] <= scores[f"{name}.pass_at_2"] <= 1
    assert "fixed" in scores or "dropped" in scores

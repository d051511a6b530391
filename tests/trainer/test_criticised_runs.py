"""``mcgrpo rescue`` and ``mcgrpo eval --self-critique`` on the real stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import chat_server, says
from training_runs import Run

from megatron_cgrpo.tasks.misconceptions.critic import wrong_step


def test_rescue_counts_add_up(folder: Path, cache: Path) -> None:
    out = folder / "rescue.json"
    options = ("--samples", "3", "--prompts", "6", "--out", str(out), "--json")
    with chat_server(lambda body, number: says(wrong_step(1, "1+1=2"))) as server:
        api = ("critic.source=api", "critic.api.model=judge", f"critic.api.base_url={server.base_url}")
        prices = ("critic.api.price_in=2", "critic.api.price_out=10")
        settings = (*api, *prices, "parallel.tp=1")
        result = json.loads(Run(folder, cache, "rescue", *options, *settings, command="rescue").finish())
    assert result == json.loads(out.read_text())
    assert (result["questions"], result["samples"], result["split"]) == (6, 3, "test")
    assert 0 < result["failed"] <= 6, "a model that has hardly been trained fails some"
    assert list(result["kinds"]) == ["cot", "indicative", "indicative_gt"]
    for counts in result["kinds"].values():
        assert counts["attempts"] == 3 * result["failed"]
        assert counts["refinements"] + sum(counts["dropped"].values()) == counts["attempts"]
        assert counts["supported"] <= counts["valid"] <= counts["refinements"]
        assert counts["questions_refined_share"] == pytest.approx(counts["questions_refined"] / result["failed"])
    asked = result["kinds"]["cot"]["attempts"]
    assert result["critique.api.requests"] == len(server.requests) == asked
    assert result["critique.api.cost"] == pytest.approx(asked * (100 * 2 + 20 * 10) / 1e6)


def test_self_critique_scores_answers_and_refinements(folder: Path, cache: Path) -> None:
    arguments = ("--self-critique", "--samples", "2", "--json", "critic.source=self", "parallel.tp=1")
    scores = json.loads(Run(folder, cache, "self_critique", *arguments, command="eval").finish())
    for name in ("before", "after", "judged"):
        assert 0 <= scores[f"{name}.pass_at_1"] <= scores[f"{name}.pass_at_2"] <= 1
    assert "fixed" in scores or "dropped" in scores

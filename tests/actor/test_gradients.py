"""Gradients by source against transformers' own, whatever the layout; measuring them leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradient_cases import SOURCES, norms, references, rows_of
from models import save_hf_model
from oracle import gradients_of
from ranks import run_ranks

from megatron_cgrpo.weights.hf_reader import HFCheckpoint

ONE_RANK = [({}, True), ({}, False)]
TWO_RANKS = [
    ({"tp": 2}, True),
    ({"tp": 2, "sequence_parallel": True}, False),
    ({"pp": 2}, True),
    ({"pp": 2, "vpp": 2}, False),
    ({"dp": 2}, True),
    ({"dp": 2}, False),
    ({"cp": 2}, True),
]
EXPERT_PARALLEL = [({"dp": 2, "ep": 2}, True), ({"dp": 2, "ep": 2}, False)]


def expected(directory: Path) -> dict[str, float]:
    """Norms and cosine of transformers' gradients, from flat float64 vectors."""
    flat = {}
    for origin in SOURCES:
        gradients, _ = gradients_of(directory, rows_of(origin))
        flat[str(origin)] = torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])
    rollout, refinement = flat["rollout"], flat["refinement"]
    cosine = torch.nn.functional.cosine_similarity(rollout, refinement, dim=0).item()
    return {"rollout": rollout.norm().item(), "refinement": refinement.norm().item(), "cosine": cosine}


@pytest.mark.parametrize(
    ("world", "cases", "family", "tied"),
    [
        (1, ONE_RANK, "qwen3", True),
        (2, TWO_RANKS, "qwen3", True),
        (2, [({"pp": 2}, True)], "qwen3", False),
        (2, [({"tp": 2, "sequence_parallel": True}, True), ({"dp": 2}, True), *EXPERT_PARALLEL], "qwen3_moe", False),
    ],
)
def test_norms_are_those_of_transformers_in_every_layout_and_change_nothing(
    tmp_path: Path, world: int, cases: list, family: str, tied: bool
) -> None:
    save_hf_model(tmp_path, family, tied)
    oracle = expected(tmp_path)
    assert 0.05 < abs(oracle["cosine"]) < 0.95
    ranks = run_ranks(norms, world, str(tmp_path), cases)
    for rank, results in enumerate(ranks):
        for case, (found, *_) in zip(cases, results, strict=True):
            assert found == pytest.approx(oracle, rel=1e-4), (rank, case)
    for case, (_, measured, unmeasured) in zip(cases, ranks[0], strict=True):
        assert measured.keys() == unmeasured.keys() and measured
        for name, tensor in measured.items():
            assert torch.equal(tensor, unmeasured[name]), (case, name)


def test_the_reference_is_exported_as_it_was_loaded(tmp_path: Path) -> None:
    save_hf_model(tmp_path, "qwen3", tied=True)
    cases = [{"tp": 2}, {"pp": 2}, {"dp": 2}]
    stored = HFCheckpoint(tmp_path)
    results, _ = run_ranks(references, 2, str(tmp_path), cases)
    for case, result in zip(cases, results, strict=True):
        assert "keep_reference" in result["refusal"]
        assert set(result["reference"]) == set(result["policy"]) == stored.names()
        for name, tensor in result["reference"].items():
            assert torch.equal(tensor, stored.read(name)), (case, name)
            assert not torch.equal(tensor, result["policy"][name]), (case, name)

"""Sequences that are split over ranks give transformers' gradients and log-probabilities, packed and padded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from context_cases import response_logprobs
from models import load_hf_model, save_hf_model
from oracle import save_gradients
from rank_cases import Case, gradients, training_rows
from ranks import run_ranks

TWO_RANKS = [
    Case({"cp": 2}, micro_batch_tokens=33),  # several sequences of odd lengths in a micro-batch
    Case({"cp": 2}, packed=False),
    Case({"cp": 2}, micro_batch_tokens=1, recompute={"granularity": "full"}),
]
SPLIT_EVERY_WAY = [
    Case({"cp": 2, "tp": 2, "sequence_parallel": True, "ep": 2, "etp": 1}, micro_batch_tokens=40),
    Case({"cp": 2, "pp": 2, "vpp": 2, "ep": 2}, packed=False),
]


@pytest.mark.parametrize(
    ("family", "world", "cases"), [("qwen3", 2, TWO_RANKS), ("qwen3_moe", 4, SPLIT_EVERY_WAY)], ids=["two", "four"]
)
def test_gradients_are_those_of_whole_sequences(tmp_path: Path, family: str, world: int, cases: list[Case]) -> None:
    save_hf_model(tmp_path, family, tied=False)
    loss = save_gradients(tmp_path)
    for rank, results in enumerate(run_ranks(gradients, world, str(tmp_path), cases)):
        for case, result in zip(cases, results, strict=True):
            worst = max(result["errors"].items(), key=lambda item: item[1])
            assert worst[1] < 1e-5, (rank, case, worst)
            if result["loss"] is not None:
                assert result["loss"] == pytest.approx(loss, rel=1e-5), (rank, case)


def test_log_probabilities_come_back_in_order_from_one_rank(tmp_path: Path) -> None:
    save_hf_model(tmp_path, "qwen3", tied=True)
    model, expected = load_hf_model(tmp_path), {}
    with torch.no_grad():
        for index, row in enumerate(training_rows()):
            scores = model(torch.tensor([row.token_ids])).logits[0].log_softmax(-1)[row.prompt_length - 1 : -1]
            expected[index] = scores.gather(1, torch.tensor(row.token_ids[row.prompt_length :])[:, None])[:, 0].tolist()
    cases = [Case({"cp": 2}, micro_batch_tokens=33), Case({"cp": 2}, packed=False)]
    first, second = run_ranks(response_logprobs, 2, str(tmp_path), cases)
    assert second == [None, None]
    for found in first:
        assert found.keys() == expected.keys()
        for index, values in expected.items():
            assert found[index] == pytest.approx(values, abs=2e-5), index

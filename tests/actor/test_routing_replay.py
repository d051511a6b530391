"""Megatron's routers take the experts that they are told: the gradient is ``transformers``' with these forced."""

from __future__ import annotations

from pathlib import Path
from types import MethodType

import pytest
import torch
from models import save_hf_model
from oracle import gradients_of
from rank_cases import Case, gradients, routed_rows, training_rows
from ranks import run_ranks
from torch import Tensor
from transformers import PreTrainedModel

from megatron_cgrpo.types import TrainRow

FULL, BLOCK = {"granularity": "full"}, {"granularity": "full", "method": "block", "layers": 2}
EXPERTS_ONLY = {"granularity": "selective", "modules": ["moe"]}
ONE_RANK = [
    Case(replay=True),
    Case(replay=True, packed=False, micro_batch_tokens=1),
    Case(replay=True, recompute=FULL),
    Case(replay=True, recompute=BLOCK),
    Case(replay=True, recompute=EXPERTS_ONLY),
]
TWO_RANKS = [
    Case({"tp": 2, "sequence_parallel": True}, micro_batch_tokens=33, replay=True),
    Case({"tp": 2, "sequence_parallel": True}, packed=False, replay=True, recompute=FULL),
    Case({"pp": 2}, micro_batch_tokens=33, replay=True, recompute=FULL),
    Case({"pp": 2, "vpp": 2}, replay=True, recompute=FULL),
    Case({"cp": 2}, replay=True, recompute=FULL),
    Case({"dp": 2, "ep": 2}, micro_batch_tokens=33, replay=True),
]


def force(model: PreTrainedModel, row: TrainRow) -> None:
    """Every router of ``model`` takes the row's experts, and its own where the row has none."""
    known = 0 if row.routes is None else row.routes.tokens
    told = torch.tensor(list(b"" if row.routes is None else row.routes.experts)).view(known, 4, 2).long()

    def route(gate: torch.nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden.reshape(-1, hidden.shape[-1]) @ gate.weight.T
        probabilities = logits.softmax(-1)
        chosen = probabilities.topk(2, dim=-1).indices
        chosen = torch.cat([told[:, gate.layer], chosen[known:]])
        weights = torch.stack([probabilities[token, experts] for token, experts in enumerate(chosen)])
        return logits, weights / weights.sum(-1, keepdim=True) if gate.norm_topk_prob else weights, chosen

    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate.layer = number
        layer.mlp.gate.forward = MethodType(route, layer.mlp.gate)


@pytest.mark.parametrize(
    ("family", "world", "cases"), [("qwen3_moe_unnormalized", 1, ONE_RANK), ("qwen3_moe", 2, TWO_RANKS)]
)
def test_gradients_are_those_of_the_replayed_experts(
    family: str, world: int, cases: list[Case], tmp_path: Path
) -> None:
    save_hf_model(tmp_path, family, tied=False)
    expected, loss = gradients_of(tmp_path, routed_rows(), force)
    own, own_loss = gradients_of(tmp_path, training_rows())
    router = "model.layers.1.mlp.gate.weight"
    assert (expected[router] - own[router]).norm() > 0.1 * own[router].norm(), "else the agreement would prove little"
    torch.save(expected, tmp_path / "grads.pt")
    for rank, results in enumerate(run_ranks(gradients, world, str(tmp_path), cases)):
        for case, result in zip(cases, results, strict=True):
            worst = max(result["errors"].items(), key=lambda item: item[1])
            assert worst[1] < 1e-5, (rank, case, worst)
            if result["loss"] is not None:
                assert result["loss"] == pytest.approx(loss, rel=1e-5), (rank, case)

"""Auxiliary losses of the routers: their gradients and values, against their formulas on transformers' models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import load_hf_model, save_hf_model
from oracle import _on_disk, gradients_of
from rank_cases import Case, gradients, training_rows
from ranks import run_ranks
from torch import Tensor

from megatron_cgrpo.data.packing import schedule

AUX, Z = 0.3, 0.05
MOE = {"aux_loss": AUX, "z_loss": Z}
TOKENS = 60
SEQUENCE_PARALLEL = {"tp": 2, "sequence_parallel": True}
ONE_RANK = [
    Case(moe=MOE),
    Case(moe=MOE, recompute={"granularity": "full"}),
    Case(moe=MOE, recompute={"granularity": "selective", "modules": ["moe"]}),
]
TWO_RANKS = [Case({"pp": 2}, moe=MOE), Case({"dp": 2}, moe=MOE)]
SHARED_ROWS = [Case({"cp": 2}, moe=MOE), Case({"cp": 2, "ep": 2}, moe=MOE)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_hf_model(directory, "qwen3_moe", False)
    return directory


def router_logits(model: torch.nn.Module, sequences: list[list[int]]) -> list[Tensor]:
    """[tokens, experts] of each layer: what its router computes for the sequences one after the other."""
    layers: list[list[Tensor]] = [[] for _ in model.model.layers]
    for index, layer in enumerate(model.model.layers):

        def keep(module: torch.nn.Module, inputs: tuple[Tensor], index: int = index) -> None:
            layers[index].append(inputs[0].flatten(0, -2) @ module.weight.t())

        layer.mlp.gate.register_forward_pre_hook(keep)
    for tokens in sequences:
        model(torch.tensor([tokens]))
    return [torch.cat(parts) for parts in layers]


def formulas(logits: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """Switch Transformer's balance: experts * sum of (share of the choices * mean probability); ST-MoE's z-loss."""
    probabilities = logits.softmax(-1)
    experts = logits.shape[1]
    picked = torch.zeros_like(logits).scatter(1, probabilities.topk(chosen, dim=1).indices, 1.0)
    shares = picked.sum(0) / (len(logits) * chosen)
    return experts * (shares * probabilities.mean(0)).sum(), logits.logsumexp(-1).square().mean()


def oracle(directory: Path, rows_to: int, padding_to: int) -> dict[str, float]:
    """Writes ``grads.pt``, objective and auxiliary losses together; the mean losses of a layer and micro-batch.

    Each row is padded to a multiple of ``rows_to`` tokens, then each micro-batch to one of ``padding_to``.
    """
    rows = training_rows()
    expected, _ = gradients_of(directory, rows)
    model = load_hf_model(directory)
    padded = [[*row.token_ids, *[0] * (-len(row.token_ids) % rows_to)] for row in rows]
    [plan] = schedule([len(tokens) for tokens in padded], 1, TOKENS)
    batches = [[padded[index] for index in batch] for batch in plan]
    for batch in batches:
        if missing := -sum(map(len, batch)) % padding_to:
            batch.append([0] * missing)
    total = sum(len(tokens) for batch in batches for tokens in batch)
    loss, values = torch.zeros(()), []
    for batch in batches:
        share = sum(map(len, batch)) / total
        for logits in router_logits(load_into(model), batch):
            balance, size = formulas(logits, chosen=2)
            loss = loss + share * (AUX * balance + Z * size)
            values.append((balance.item(), size.item()))
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            for on_disk, gradient in _on_disk(name, parameter.grad):
                expected[on_disk] = expected[on_disk] + gradient
    torch.save(expected, directory / "grads.pt")
    means = torch.tensor(values, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("moe.aux_loss", "moe.z_loss"), means, strict=True))


def load_into(model: torch.nn.Module) -> torch.nn.Module:
    """The same model without the hooks of the micro-batch before."""
    for layer in model.model.layers:
        layer.mlp.gate._forward_pre_hooks.clear()
    return model


@pytest.mark.parametrize(
    ("world", "cases", "rows_to", "padding_to"),
    [
        (1, ONE_RANK, 1, 1),
        (2, TWO_RANKS, 1, 1),
        (2, [Case(SEQUENCE_PARALLEL, moe=MOE)], 1, 2),
        (2, SHARED_ROWS, 4, 1),
    ],
)
def test_router_losses_equal_their_formulas_in_every_layout(
    model_dir: Path, world: int, cases: list[Case], rows_to: int, padding_to: int
) -> None:
    expected = oracle(model_dir, rows_to, padding_to)
    for rank, results in enumerate(run_ranks(gradients, world, str(model_dir), cases)):
        for case, result in zip(cases, results, strict=True):
            worst = max(result["errors"].items(), key=lambda item: item[1])
            assert worst[1] < 1e-5, (rank, case, worst)
            assert result["router"] == pytest.approx(expected, rel=1e-5), (rank, case)


def test_without_coefficients_there_is_no_such_loss(model_dir: Path) -> None:
    gradient, _ = gradients_of(model_dir, training_rows())
    torch.save(gradient, model_dir / "grads.pt")
    cases = [Case(), replace(ONE_RANK[0], moe={"aux_loss": AUX})]
    without, balanced = run_ranks(gradients, 1, str(model_dir), cases)[0]
    assert without["router"] == {} and max(without["errors"].values()) < 1e-5
    assert set(balanced["router"]) == {"moe.aux_loss"}
    assert max(balanced["errors"].values()) > 1e-3, "its gradient is not the objective's"

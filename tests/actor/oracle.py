"""transformers' own gradient of the objective, under the names of the files on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from models import load_hf_model
from rank_cases import SPEC, training_rows
from torch import Tensor
from transformers import PreTrainedModel

from megatron_cgrpo.algorithm.loss import LossInputs, policy_loss
from megatron_cgrpo.types import Origin, TrainRow


def save_gradients(directory: Path) -> float:
    """Writes ``grads.pt`` (HF name -> gradient) beside the model; returns the loss."""
    gradients, loss = gradients_of(directory, training_rows())
    torch.save(gradients, directory / "grads.pt")
    return loss


def gradients_of(
    directory: Path,
    rows: list[TrainRow],
    prepare: Callable[[PreTrainedModel, TrainRow], None] = lambda model, row: None,
) -> tuple[dict[str, Tensor], float]:
    """(HF name -> gradient, loss) of the model in ``directory``, sequence by sequence, after ``prepare`` for each."""
    model = load_hf_model(directory)
    total = 0.0
    for row in rows:
        prepare(model, row)
        scores = model(torch.tensor([row.token_ids])).logits[0].log_softmax(-1)
        first, count = row.prompt_length - 1, row.response_length
        responses = scores[first : first + count]
        targets = torch.tensor(row.token_ids[row.prompt_length :])
        inputs = LossInputs(
            weight=torch.full((count,), row.weight),
            advantage=torch.full((count,), row.advantage),
            refined=torch.full((count,), row.origin is Origin.REFINEMENT),
            sequence_index=torch.zeros(count, dtype=torch.int64),
            behaviour_logp=torch.tensor(row.behaviour_logprobs),
            old_logp=torch.tensor(row.old_logprobs),
        )
        entropy = -(responses.exp() * responses).sum(-1)
        loss = policy_loss(responses.gather(1, targets[:, None])[:, 0], entropy, inputs, SPEC).loss
        loss.backward()
        total += loss.item()
    gradients = {
        on_disk: gradient
        for name, parameter in model.named_parameters()
        for on_disk, gradient in _on_disk(name, parameter.grad)
    }
    return gradients, total


def _on_disk(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """transformers keeps Qwen3-MoE's experts fused in memory: [expert, gate and up rows, hidden]."""
    module, _, kind = name.rpartition(".")
    if kind == "gate_up_proj":
        for expert, both in enumerate(tensor):
            yield from zip(
                [f"{module}.{expert}.{part}_proj.weight" for part in ("gate", "up")], both.chunk(2), strict=True
            )
    elif kind == "down_proj":
        yield from ((f"{module}.{expert}.down_proj.weight", down) for expert, down in enumerate(tensor))
    else:
        yield name, tensor

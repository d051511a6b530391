from typing import Any

import pytest
import torch

from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.types import TrainRow


def row(length: int) -> TrainRow:
    return TrainRow([3] * length, prompt_length=1, advantage=1.0, weight=1.0)


@pytest.mark.parametrize("packed", [True, False])
def test_equal_micro_batches_have_one_shape_that_the_ranks_divide(packed: bool) -> None:
    layout = Layout(packed, multiple_of=4, equal=True)
    batches = build_microbatches([[row(3), row(6)], [row(5)]], layout, torch.device("cpu"))
    shapes = {tuple(batch.tokens.shape) for batch in batches}
    assert shapes == ({(1, 12)} if packed else {(2, 8)})


@pytest.mark.parametrize("packed", [True, False])
def test_a_replica_without_rows_has_no_micro_batches(packed: bool) -> None:
    assert build_microbatches([], Layout(packed, multiple_of=2, equal=True), torch.device("cpu")) == []


@pytest.mark.parametrize(
    ("fp8", "parallel", "tokens"),
    [
        ("none", {}, 9),
        ("tensorwise", {}, 16),
        ("delayed", {"tp": 2, "sequence_parallel": True}, 32),
        ("delayed", {"tp": 2}, 16),
        ("mxfp8", {}, 32),
        ("blockwise", {"tp": 4, "sequence_parallel": True}, 512),
    ],
)
def test_each_ranks_tokens_suit_fp8(fp8: str, parallel: dict[str, Any], tokens: int) -> None:
    layout = Layout.of(ParallelConfig(**parallel), True, ModelConfig(fp8={"recipe": fp8}))
    [batch] = build_microbatches([[row(3), row(6)]], layout, torch.device("cpu"))
    assert batch.tokens.shape == (1, tokens)
    assert batch.cu_seqlens.tolist() == ([0, 3, 9] if tokens == 9 else [0, 3, 9, tokens]), "padding attends to itself"
    assert not batch.weight[0, 9:].any()


@pytest.mark.parametrize(
    ("model", "parallel"),
    [
        (ModelConfig(), ParallelConfig(tp=2, sequence_parallel=True, overlap={"tensor": True})),
        (ModelConfig(moe={"dispatcher": "allgather"}), ParallelConfig()),
    ],
)
def test_user_buffers_and_the_all_gather_of_tokens_get_one_length_for_ever(
    model: ModelConfig, parallel: ParallelConfig
) -> None:
    layout = Layout.of(parallel, True, model, micro_batch_tokens=12)
    for rows in ([[row(3), row(6)], [row(5)]], [[row(12)]]):
        batches = build_microbatches(rows, layout, torch.device("cpu"))
        assert {tuple(batch.tokens.shape) for batch in batches} == {(1, 12)}
    with pytest.raises(ValueError, match=r"a sequence has 13 tokens: raise train\.micro_batch_tokens=12"):
        build_microbatches([[row(13)]], layout, torch.device("cpu"))

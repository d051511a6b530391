from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_cgrpo.actor.context import own_parts
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.config.model import Fp8Config, ModelConfig
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


@pytest.mark.parametrize(("recipe", "part"), [("none", 2), ("delayed", 32)])
@pytest.mark.parametrize("packed", [True, False])
def test_context_parallel_ranks_share_each_row_and_tensor_parallel_ones_what_is_left(
    recipe: str, part: int, packed: bool
) -> None:
    """Of cp=2, tp=2: rows in four chunks, and each rank's half of a micro-batch in two parts that suit FP8."""
    parallel = ParallelConfig(cp=2, tp=2, sequence_parallel=True)
    layout = Layout.of(parallel, packed, ModelConfig(fp8=Fp8Config.model_validate({"recipe": recipe})))
    [batch] = build_microbatches([[row(3), row(6), row(5)]], layout, torch.device("cpu"))
    assert layout.row_length(row(5)) == 8
    assert batch.tokens.shape[1] // 2 % part == 0
    if packed:
        assert batch.cu_seqlens is not None
        assert batch.cu_seqlens.diff().tolist()[:3] == [4, 8, 8]


def test_ranks_find_their_parts_without_reading_lengths_from_the_device() -> None:
    """Which a device without values could not give them, and a GPU not without waiting."""
    layout, rows = Layout.of(ParallelConfig(cp=2), True), [[row(3), row(6)]]
    for device in (torch.device("cpu"), torch.device("meta")):
        [batch] = build_microbatches(rows, layout, device)
        for rank, expected in enumerate(([0, 3, 4, 5, 10, 11], [1, 2, 6, 7, 8, 9])):
            group = SimpleNamespace(size=lambda: 2, rank=lambda rank=rank: rank)
            (own,) = own_parts((torch.arange(12, device=device)[None],), batch, group)
            assert own.shape == (1, 6)
            assert device.type == "meta" or own[0].tolist() == expected
    [whole] = build_microbatches(rows, Layout.of(ParallelConfig(), True), torch.device("cpu"))
    assert whole.context_order is None

import pytest
import torch

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

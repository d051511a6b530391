import pytest
import torch

from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
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

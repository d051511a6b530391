"""Products in few numbers of rows: all rows, the right values, and no kernel that sums otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vllm import _custom_ops

from megatron_cgrpo.rollout.cpu_batch_invariance import FEWER, PROBED, ROWS, equal_sizes, in_fixed_rows, multiply


@pytest.mark.parametrize("count", [1, 4, 5, 8, 63, 64, 65, 68, 130, 192])
def test_every_row_is_multiplied_in_the_fewest_rows_that_are_allowed(count: int) -> None:
    sizes, weight, rows, used = (4, 16, ROWS), torch.randn(8, 3), torch.randn(count, 8), []

    def product(part: Tensor, into: Tensor) -> None:
        used.append(len(part))
        into.copy_(part @ weight)

    torch.testing.assert_close(in_fixed_rows(product, rows, 3, sizes), rows @ weight)
    rest = count % ROWS
    assert used == [ROWS] * (count // ROWS) + [min(size for size in sizes if size >= rest)] * bool(rest)


@pytest.mark.parametrize(("dtype", "outer"), [(torch.bfloat16, 5), (torch.float32, PROBED // 96 + 1)])
def test_where_nothing_is_found_out_all_rows_are_multiplied(dtype: torch.dtype, outer: int) -> None:
    assert equal_sizes(multiply, 96, outer, dtype, False) == (ROWS,)


@pytest.mark.parametrize("biased", [False, True])
def test_a_number_of_rows_whose_kernel_sums_otherwise_is_left_out(biased: bool) -> None:
    def otherwise(handler: _custom_ops.CPUDNNLGEMMHandler, x: Tensor, into: Tensor, bias: Tensor | None) -> None:
        assert (bias is not None) == biased
        if len(x) == FEWER[1]:  # the last bits of some sums differ, as of another order
            x = x * (1 + 2**-23)
        into.copy_(torch.nn.functional.linear(x, torch.ones(5, 96), bias))

    kept = equal_sizes(otherwise, 96, 5, torch.float32, biased)
    assert FEWER[1] not in kept and kept[-1] == ROWS

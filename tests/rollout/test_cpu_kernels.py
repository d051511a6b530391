"""vLLM's layers on CPUs: the values of their definition, whatever else is in the batch, with a kernel or without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm

from megatron_cgrpo.rollout import vllm_worker  # noqa: F401 (what workers import installs the kernels)

WIDTHS = (8, 64, 20)
"""The last is no multiple of what the kernels go by."""


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    eager = VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE))
    with set_current_vllm_config(eager), torch.inference_mode():
        yield


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    exact = x.double()
    return exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()


def _layer(width: int, dtype: torch.dtype) -> RMSNorm:
    layer = RMSNorm(width, eps=1e-6, dtype=dtype)
    layer.weight.copy_(torch.linspace(0.5, 1.5, width))
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_norm_is_that_of_its_definition(width: int, dtype: torch.dtype) -> None:
    layer, x = _layer(width, dtype), torch.randn(5, 2, 3 * width).to(dtype)
    part = x[..., width : 2 * width]  # as heads are, of one product for queries, keys and values
    torch.testing.assert_close(layer(part), _normed(part, layer.weight).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_norm_adds_the_residual_and_returns_the_sum(width: int, dtype: torch.dtype) -> None:
    layer = _layer(width, dtype)
    x, residual = torch.randn(2, 70, width).to(dtype)
    total = x.double() + residual.double()
    normed, kept = layer(x, residual)
    torch.testing.assert_close(kept, total.to(dtype))
    torch.testing.assert_close(normed, _normed(total, layer.weight).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_gate_is_that_of_its_definition(width: int, dtype: torch.dtype) -> None:
    x = torch.randn(70, 2 * width).to(dtype)
    gate, value = x.double().chunk(2, dim=-1)
    expected = gate / (1 + (-gate).exp()) * value
    torch.testing.assert_close(SiluAndMul()(x), expected.to(dtype))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_has_the_same_bits_in_every_batch(width: int) -> None:
    layer, x, residual = _layer(width, torch.float32), torch.randn(130, width), torch.randn(130, width)
    whole = layer(x.clone(), residual.clone())[0]
    gated = SiluAndMul()(x[:, : width // 2 * 2])
    for rows in (slice(0, 1), slice(3, 10), slice(64, 129)):
        assert torch.equal(layer(x[rows].clone(), residual[rows].clone())[0], whole[rows])
        assert torch.equal(SiluAndMul()(x[rows, : width // 2 * 2]), gated[rows])


def test_kernels_are_what_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer_class in (RMSNorm, SiluAndMul):
        monkeypatch.setattr(layer_class, "forward_native", lambda *arguments: pytest.fail("taken apart"))
    x = torch.randn(3, 16)
    _layer(16, torch.float32)(x)
    _layer(16, torch.float32)(x, x.clone())
    SiluAndMul()(x)

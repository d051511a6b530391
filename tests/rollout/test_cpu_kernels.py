"""vLLM's layers on CPUs: the values of their definition, whatever else is in the batch, with a kernel or without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm import AsyncEngineArgs
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm

from megatron_cgrpo.rollout import vllm_worker  # noqa: F401 (what workers import installs the kernels)
from megatron_cgrpo.rollout.engine_spec import EngineSpec, engine_args

WIDTHS = (8, 64, 20)
"""The last is no multiple of what the kernels go by."""


@pytest.fixture(scope="module")
def config(spec: EngineSpec) -> VllmConfig:
    """An engine's: it decides whether vLLM's layers use kernels at all."""
    return AsyncEngineArgs(**engine_args(spec)).create_engine_config()


@pytest.fixture(autouse=True)
def configured(config: VllmConfig) -> Iterator[None]:
    with set_current_vllm_config(config), torch.inference_mode():
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


@pytest.mark.parametrize("residual", [None, torch.float32])
@pytest.mark.parametrize(
    ("options", "weight"),
    [({"dtype": torch.float32}, 1.5), ({"has_weight": False}, 1.0), ({"var_hidden_size": 8}, 1.5)],
)
def test_what_the_kernels_do_not_do_is_computed_without_them(
    options: dict[str, Any], weight: float, residual: torch.dtype | None
) -> None:
    dtype = torch.float32 if "var_hidden_size" in options else torch.bfloat16
    layer = RMSNorm(16, eps=1e-6, **{"dtype": dtype} | options)
    layer.weight.fill_(weight)
    x = torch.randn(5, 16).to(dtype)
    added = None if residual is None else torch.randn(5, 16, dtype=residual)
    exact = x.double() if added is None else x.double() + added.double()
    seen = exact[:, : options.get("var_hidden_size", 16)]
    expected = exact / (seen.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    normed = layer(x) if added is None else layer(x, added)[0]
    torch.testing.assert_close(normed, expected.to(normed.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_has_the_same_bits_in_every_batch(width: int, dtype: torch.dtype) -> None:
    layer, gate = _layer(width, dtype), SiluAndMul()
    x, residual = torch.randn(130, 2 * width).to(dtype), torch.randn(130, width).to(dtype)
    inputs = x[:, :width].contiguous()
    normed, added, gated = layer(inputs), layer(inputs.clone(), residual.clone())[0], gate(x)
    for rows in (slice(0, 1), slice(3, 10), slice(64, 129)):
        assert torch.equal(layer(inputs[rows]), normed[rows])
        assert torch.equal(layer(inputs[rows].clone(), residual[rows].clone())[0], added[rows])
        assert torch.equal(gate(x[rows]), gated[rows])


def test_kernels_are_what_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer_class in (RMSNorm, SiluAndMul):
        monkeypatch.setattr(layer_class, "forward_native", lambda *arguments: pytest.fail("taken apart"))
    x = torch.randn(3, 16)
    _layer(16, torch.float32)(x)
    _layer(16, torch.float32)(x, x.clone())
    SiluAndMul()(x)

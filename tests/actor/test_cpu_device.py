"""The CPU device layer changes what megatron.core sees, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core import jit
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.tensor_parallel import layers, random

from megatron_cgrpo.actor import cpu_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA: the layer is not installed")


def inside(module: str, source: str) -> Callable[..., Any]:
    """``lambda tensor: <source>`` as code of ``module``."""
    return eval(f"lambda tensor: {source}", {"__name__": module, "torch": torch})


def test_torch_is_untouched_elsewhere() -> None:
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.current_device()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).cuda()
    assert torch.zeros(1).type() == "torch.FloatTensor"
    assert torch.zeros(1).type(torch.int64).dtype == torch.int64


def test_megatron_core_gets_the_cpu_where_it_names_cuda() -> None:
    view = layers.torch
    assert view is not torch
    assert view.cuda.current_device() == torch.device("cpu")
    for tensor in (
        view.zeros(2, device="cuda"),
        view.empty((2,), device=view.cuda.current_device()),
        view.tensor([1, 2], device=torch.device("cuda", 0), pin_memory=True),
        view.ones_like(torch.zeros(2), device="cuda"),
    ):
        assert tensor.device.type == "cpu" and tensor.shape == (2,)
    assert view.zeros(1, device="meta").device.type == "meta"
    assert view.nn is torch.nn and view.Tensor is torch.Tensor


def test_the_cuda_random_state_is_the_cpu_one() -> None:
    before = torch.get_rng_state()
    try:
        random.torch.cuda.manual_seed(7)
        state = random.torch.cuda.get_rng_state()
        first = torch.rand(3)
        random._set_cuda_rng_state(state)
        assert torch.equal(torch.rand(3), first)
        assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    finally:
        torch.set_rng_state(before)


def test_tensor_methods_decide_by_their_caller() -> None:
    tensor = torch.zeros(1)
    assert inside("megatron.core.example", "tensor.cuda()")(tensor) is tensor
    assert inside("megatron.core.example", "tensor.type()")(tensor) == "torch.cuda.FloatTensor"
    assert inside("megatron.core.example", "tensor.type(torch.int64)")(tensor).dtype == torch.int64
    for name in ("megatron.corex", "megatron", "vllm.worker"):
        with pytest.raises((AssertionError, RuntimeError)):
            inside(name, "tensor.cuda()")(tensor)
        assert inside(name, "tensor.type()")(tensor) == "torch.FloatTensor"


def test_what_megatron_would_compile_runs_as_it_is_written() -> None:
    assert jit.jit_fuser is jit.noop_decorator
    assert not hasattr(fused_bias_swiglu.swiglu, "_torchdynamo_orig_callable"), "torch.compile has wrapped it"
    gate, up = torch.randn(2, 3, 4).unbind()
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(fused_bias_swiglu.swiglu(torch.cat([gate, up], -1)), expected)


def test_installing_twice_is_installing_once() -> None:
    finders, method = list(sys.meta_path), torch.Tensor.cuda
    cpu_device.install()
    assert sys.meta_path == finders
    assert torch.Tensor.cuda is method


def test_a_machine_with_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="this machine has CUDA"):
        cpu_device.install()


def test_it_must_come_before_megatron_core(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [finder for finder in sys.meta_path if not isinstance(finder, cpu_device._Finder)]
    monkeypatch.setattr(sys, "meta_path", others)
    with pytest.raises(RuntimeError, match="import megatron_cgrpo.actor first"):
        cpu_device.install()

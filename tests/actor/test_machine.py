"""What a machine cannot compute is refused before anything starts, by field, value and remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_cgrpo.actor.machine import Machine, check_machine, has_apex
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig

CPU = Machine(None, transformer_engine=False, apex=False)
HOPPER = Machine((9, 0), transformer_engine=True, apex=False, cuda_version=(13, 0))
BF16 = {"dtype": "bfloat16"}


def problems(machine: Machine, *, packed: bool = True, **sections: dict[str, Any]) -> tuple[str, ...]:
    model, parallel = ModelConfig(**sections.get("model", {})), ParallelConfig(**sections.get("parallel", {}))
    try:
        check_machine(model, parallel, OptimizerConfig(**sections.get("optimizer", {})), packed, machine)
    except ConfigError as error:
        return error.problems
    return ()


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """``implementation: auto`` asks torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "_gpu" in request.node.name)


def test_the_defaults_run_without_cuda() -> None:
    assert problems(CPU) == ()
    assert Machine.here().capability is None and not Machine.here().cuda


@pytest.mark.parametrize(
    ("sections", "field", "remedy"),
    [
        ({"model": {"implementation": "transformer_engine"} | BF16}, "model.implementation=transformer_engine", "auto"),
        ({"model": {"fp8": {"recipe": "tensorwise"}}}, "model.fp8.recipe=tensorwise", "recipe=none"),
        ({"model": {"moe": {"grouped_gemm": True}}}, "model.moe.grouped_gemm=true", "grouped_gemm=null"),
        ({"model": {"moe": {"permute_fusion": True}}}, "model.moe.permute_fusion=true", "permute_fusion=null"),
        (
            {"model": {"recompute": {"granularity": "selective", "modules": ["moe_act"]}}},
            "model.recompute.modules=moe_act",
            "recompute moe",
        ),
        ({"optimizer": {"offload": 0.5}}, "optimizer.offload=0.5", "offload=0"),
        ({"optimizer": {"precision_aware": True}}, "optimizer.precision_aware=true", "precision_aware=false"),
        ({"optimizer": {"implementation": "apex"}}, "optimizer.implementation=apex", "PyPI's package apex is not"),
        (
            {"optimizer": {"implementation": "transformer_engine"}},
            "optimizer.implementation=transformer_engine",
            "auto",
        ),
        ({"parallel": {"overlap": {"tensor": True}}}, "parallel.overlap.tensor=true", "tensor=false"),
    ],
)
def test_what_needs_cuda_is_refused_without(sections: dict[str, Any], field: str, remedy: str) -> None:
    (problem,) = problems(CPU, **sections)
    assert problem.startswith(field) and remedy in problem


@pytest.mark.parametrize(
    ("capability", "refused"),
    [
        ((8, 0), {"delayed", "tensorwise", "blockwise", "mxfp8"}),
        ((8, 9), {"blockwise", "mxfp8"}),
        ((9, 0), {"mxfp8"}),
        ((10, 0), set()),
        ((12, 0), {"mxfp8"}),
    ],
)
def test_recipes_need_the_gpus_that_have_their_products_gpu(capability: tuple[int, int], refused: set[str]) -> None:
    found = set()
    for recipe in ("delayed", "tensorwise", "blockwise", "mxfp8"):
        for problem in problems(replace(HOPPER, capability=capability), model=BF16 | {"fp8": {"recipe": recipe}}):
            assert problem.startswith(f"model.fp8.recipe={recipe}: needs GPUs of compute capability")
            assert f"these have {capability[0]}.{capability[1]}" in problem
            found.add(recipe)
    assert found == refused


def test_scales_per_block_need_a_cuda_that_multiplies_with_them_gpu() -> None:
    old, new = (replace(HOPPER, cuda_version=version) for version in ((12, 8), (12, 9)))
    (problem,) = problems(old, model=BF16 | {"fp8": {"recipe": "blockwise"}})
    assert problem.startswith("model.fp8.recipe=blockwise: needs CUDA 12.9 or newer, torch was built with 12.8")
    assert problems(old, model=BF16 | {"fp8": {"recipe": "tensorwise"}}) == ()
    assert problems(new, model=BF16 | {"fp8": {"recipe": "blockwise"}}) == ()


def test_transformer_engine_has_to_be_installed_and_has_no_packed_float32_gpu() -> None:
    (problem,) = problems(replace(HOPPER, transformer_engine=False), model=BF16)
    assert problem.startswith("model.implementation=auto: Transformer Engine is not installed")
    (problem,) = problems(HOPPER)
    assert problem.startswith("model.dtype=float32: ") and "train.packed=false" in problem
    assert problems(HOPPER, packed=False) == problems(HOPPER, model=BF16) == ()
    assert problems(replace(HOPPER, transformer_engine=False), model={"implementation": "local"}) == ()


@pytest.mark.parametrize("packed", [True, False])
def test_transformer_engine_has_no_float32_for_shared_sequences_gpu(packed: bool) -> None:
    (problem,) = problems(HOPPER, packed=packed, parallel={"cp": 2})
    assert problem.startswith("model.dtype=float32: ") and "parallel.cp=2 ranks share" in problem
    assert "model.dtype=bfloat16" in problem
    assert problems(HOPPER, packed=packed, model=BF16, parallel={"cp": 2}) == ()
    local = {"implementation": "local"}
    assert problems(HOPPER, packed=packed, model=local, parallel={"cp": 2}) == ()


def test_apex_is_nvidias_gpu() -> None:
    (problem,) = problems(HOPPER, model=BF16, optimizer={"implementation": "apex"})
    assert problem.startswith("optimizer.implementation=apex: needs CUDA and NVIDIA's apex")
    assert problems(replace(HOPPER, apex=True), model=BF16, optimizer={"implementation": "apex"}) == ()
    assert not has_apex()

"""Every contradiction among Megatron's options is refused by field, value and remedy; what is possible is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cgrpo.config import ConfigError, ModelShape, Recipe, check_recipe, load_recipe
from megatron_cgrpo.config.fp8_checks import fp8_problems
from megatron_cgrpo.config.loading import dump_recipe
from megatron_cgrpo.config.megatron_checks import megatron_problems, megatron_shape_problems
from megatron_cgrpo.config.micro_batches import fp8_columns, fp8_rows, of_fixed_length
from megatron_cgrpo.config.model import Fp8Config, ModelConfig
from megatron_cgrpo.config.model_shape import QWEN3, QWEN3_MOE, Experts
from megatron_cgrpo.config.parallel import ParallelConfig

SANDBOX = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
BF16 = "model.dtype=bfloat16"
PRECISION_AWARE = "optimizer.precision_aware=true"
DENSE = ModelShape(QWEN3, 8, 8, 4, 64, 512, 1024, 1024, 4096)
MIXTURE = replace(DENSE, architecture=QWEN3_MOE, experts=Experts(count=8, per_token=2, ffn=256))
SPLIT = ["parallel.tp=2", "parallel.sequence_parallel=true"]
APART = [*SPLIT, "parallel.ep=2", "parallel.etp=1"]
TENSOR = [*SPLIT, BF16, "parallel.overlap.tensor=true", "train.micro_batch_tokens=8192"]
STAGES = ["parallel.pp=2", "parallel.vpp=2"]


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe(SANDBOX, ["parallel.tp=1", *overrides])


def problems(*overrides: str, model: ModelShape = DENSE) -> list[str]:
    recipe = recipe_of(*overrides)
    return [*megatron_problems(recipe), *megatron_shape_problems(recipe, model)]


def fp8(recipe: str, *more: str) -> list[str]:
    return [f"model.fp8.recipe={recipe}", BF16, *more]


@pytest.mark.parametrize(
    ("overrides", "field", "remedy"),
    [
        (["model.fp8.first_layers_bf16=1"], "model.fp8.first_layers_bf16=1", "choose a recipe"),
        (["model.fp8.last_layers_bf16=2"], "model.fp8.last_layers_bf16=2", "leave last_layers_bf16 out"),
        (["model.fp8.parameters=true"], "model.fp8.parameters=true", "choose a recipe"),
        (["model.fp8.format=e4m3"], "model.fp8.format=e4m3", "leave format out"),
        (["model.fp8.amax_history=4"], "model.fp8.amax_history=4", "leave amax_history out"),
        (fp8("blockwise", "model.fp8.amax_history=4"), "model.fp8.amax_history=4", "leave it out"),
        (["model.fp8.recipe=delayed"], "model.fp8.recipe=delayed", "model.dtype=bfloat16"),
        (fp8("mxfp8", "model.implementation=local"), "model.fp8.recipe=mxfp8", "model.implementation=auto"),
        (fp8("delayed", "model.fp8.first_layers_bf16=1"), "model.fp8.first_layers_bf16=1", "set both to 0"),
        (
            fp8("tensorwise", "model.fp8.parameters=true", "optimizer.distributed=false"),
            "model.fp8.parameters=true",
            "optimizer.distributed=true",
        ),
        (
            fp8("tensorwise", "model.fp8.parameters=true", "optimizer.offload=0.5", PRECISION_AWARE),
            "model.fp8.parameters=true",
            "optimizer.offload=0",
        ),
        (fp8("delayed", "model.fp8.parameters=true"), "model.fp8.parameters=true", "choose another recipe"),
        (fp8("delayed", "algorithm.kl.coef=0.01"), "model.fp8.recipe=delayed", "tensorwise"),
        (fp8("delayed", "algorithm.sample_from=base"), "model.fp8.recipe=delayed", "tensorwise"),
        (
            fp8("delayed", "stages=[{from_step: 2, algorithm: {kl: {coef: 0.01}}}]"),
            "model.fp8.recipe=delayed",
            "tensorwise",
        ),
        (
            fp8("blockwise", "model.fp8.parameters=true", PRECISION_AWARE, "optimizer.main_dtype=float16"),
            "model.fp8.parameters=true",
            "optimizer.precision_aware=false",
        ),
        (
            fp8(
                "mxfp8",
                "model.fp8.parameters=true",
                "parallel.overlap.gradients=true",
                "parallel.overlap.parameters=true",
            ),
            "model.fp8.parameters=true",
            "parallel.overlap.parameters=false",
        ),
        (
            fp8("tensorwise", "parallel.pp=4", "model.fp8.first_layers_bf16=3"),
            "model.fp8.first_layers_bf16=3",
            "lower it",
        ),
        (
            fp8("blockwise", "model.fp8.first_layers_bf16=4", "model.fp8.last_layers_bf16=4"),
            "model.fp8.first_layers_bf16=4",
            "model.fp8.recipe=none",
        ),
        (["model.recompute.modules=[mlp]"], "model.recompute.modules=mlp", "granularity=selective"),
        (
            ["model.recompute.granularity=full", "model.recompute.modules=[mlp]"],
            "model.recompute.modules=mlp",
            "granularity=selective",
        ),
        (
            ["model.recompute.granularity=selective", "model.recompute.method=block"],
            "model.recompute.method=block",
            "granularity=full",
        ),
        (["model.recompute.layers=2"], "model.recompute.layers=2", "granularity=full"),
        (
            [*STAGES, "model.recompute.granularity=full", "model.recompute.layers=3"],
            "model.recompute.layers=3",
            "lower it",
        ),
        (
            fp8("delayed", "model.recompute.granularity=selective", "model.recompute.modules=[layernorm]"),
            "model.recompute.modules=layernorm",
            "another recipe",
        ),
        (
            [
                "model.implementation=transformer_engine",
                "model.recompute.granularity=selective",
                "model.recompute.modules=[layernorm]",
            ],
            "model.recompute.modules=layernorm",
            "leave it out",
        ),
        (
            ["model.recompute.granularity=selective", "model.recompute.modules=[moe]"],
            "model.recompute.modules=moe",
            "other modules",
        ),
        ([PRECISION_AWARE, "optimizer.distributed=false"], PRECISION_AWARE, "optimizer.distributed=true"),
        ([PRECISION_AWARE, "optimizer.implementation=apex"], "optimizer.implementation=apex", "implementation=auto"),
        ([PRECISION_AWARE, "optimizer.implementation=torch"], "optimizer.implementation=torch", "implementation=auto"),
        (["optimizer.main_dtype=float16"], "optimizer.main_dtype=float16", PRECISION_AWARE),
        (["optimizer.gradient_dtype=bfloat16"], "optimizer.gradient_dtype=bfloat16", PRECISION_AWARE),
        (["optimizer.exp_avg_dtype=float8"], "optimizer.exp_avg_dtype=float8", PRECISION_AWARE),
        (["optimizer.exp_avg_sq_dtype=float16"], "optimizer.exp_avg_sq_dtype=float16", PRECISION_AWARE),
        ([PRECISION_AWARE, "optimizer.main_dtype=float16"], "optimizer.main_dtype=float16", BF16),
        ([PRECISION_AWARE, "optimizer.gradient_dtype=bfloat16"], "optimizer.gradient_dtype=bfloat16", BF16),
        ([BF16, "optimizer.offload=0.5"], "optimizer.offload=0.5", PRECISION_AWARE),
        ([PRECISION_AWARE, "optimizer.offload=1"], "optimizer.offload=1.0", BF16),
        (
            [BF16, PRECISION_AWARE, "optimizer.offload=1", "optimizer.exp_avg_dtype=bfloat16"],
            "optimizer.exp_avg_dtype=bfloat16",
            "optimizer.offload=0",
        ),
        (
            ["parallel.overlap.gradients=true", "parallel.overlap.parameters=true", "optimizer.distributed=false"],
            "parallel.overlap.parameters=true",
            "optimizer.distributed=true",
        ),
        (["parallel.overlap.parameters=true"], "parallel.overlap.parameters=true", "parallel.overlap.gradients=true"),
        (["parallel.pp=2", "parallel.overlap.pipeline=true"], "parallel.overlap.pipeline=true", "set parallel.vpp"),
        ([*TENSOR, "parallel.sequence_parallel=false"], "parallel.overlap.tensor=true", "sequence_parallel=true"),
        ([*TENSOR, "model.implementation=local"], "parallel.overlap.tensor=true", "model.implementation=auto"),
        ([*TENSOR, "model.dtype=float32"], "parallel.overlap.tensor=true", BF16),
        ([*TENSOR, "model.fp8.recipe=blockwise"], "parallel.overlap.tensor=true", "delayed, tensorwise or mxfp8"),
        ([*TENSOR, "train.packed=false"], "parallel.overlap.tensor=true", "train.packed=true"),
        ([*TENSOR, "train.micro_batch_tokens=16"], "train.micro_batch_tokens=16", "raise it"),
        ([*TENSOR, "train.micro_batch_tokens=8193"], "train.micro_batch_tokens=8193", "make it a multiple"),
        (["parallel.ep=2", "parallel.dp=2"], "parallel.ep=2", "no experts"),
        (["parallel.etp=1"], "parallel.etp=1", "no experts"),
        (["model.moe.aux_loss=0.01"], "model.moe.aux_loss=0.01", "no experts"),
        (["model.moe.z_loss=0.01"], "model.moe.z_loss=0.01", "no experts"),
        (["model.moe.replay_routing=true"], "model.moe.replay_routing=true", "no experts"),
        (["model.moe.grouped_gemm=false"], "model.moe.grouped_gemm=false", "no experts"),
    ],
)
def test_a_contradiction_is_refused(overrides: list[str], field: str, remedy: str) -> None:
    (problem,) = problems(*overrides)
    assert problem.startswith(field), problem
    assert remedy in problem


@pytest.mark.parametrize(
    ("overrides", "field", "remedy"),
    [
        (["parallel.ep=3", "parallel.dp=3"], "parallel.ep=3", "choose a divisor"),
        (["parallel.ep=4", "parallel.dp=2"], "parallel.ep=4", "choose divisors"),
        ([*SPLIT, "parallel.etp=4", "parallel.dp=2", "parallel.ep=2"], "parallel.ep=2, parallel.etp=4", "divisors"),
        ([*SPLIT, "parallel.etp=1"], "parallel.etp=1: without expert parallelism", "leave parallel.etp out"),
        (["parallel.cp=2", "parallel.etp=2"], "parallel.etp=2: without expert parallelism", "set parallel.ep > 1"),
        (
            ["model.implementation=local", "model.moe.grouped_gemm=true"],
            "model.moe.grouped_gemm=true",
            "model.moe.grouped_gemm=null",
        ),
        (
            ["model.implementation=local", "model.moe.permute_fusion=true"],
            "model.moe.permute_fusion=true",
            "model.moe.permute_fusion=null",
        ),
        (
            [
                "model.moe.grouped_gemm=false",
                "model.recompute.granularity=selective",
                "model.recompute.modules=[moe_act]",
            ],
            "model.recompute.modules=moe_act",
            "recompute moe",
        ),
        (
            ["model.recompute.granularity=selective", "model.recompute.modules=[mlp]"],
            "model.recompute.modules=mlp",
            "recompute moe",
        ),
        (
            ["model.moe.dispatcher=allgather", "train.micro_batch_tokens=16"],
            "train.micro_batch_tokens=16",
            "model.moe.dispatcher=allgather needs",
        ),
        (
            ["model.recompute.granularity=selective", "model.recompute.modules=[moe,moe_act]"],
            "model.recompute.modules=moe,moe_act",
            "leave one of them out",
        ),
        (["model.moe.dispatcher=allgather", "train.packed=false"], "model.moe.dispatcher=allgather", "packed=true"),
    ],
)
def test_a_contradiction_among_options_of_experts_is_refused(overrides: list[str], field: str, remedy: str) -> None:
    (problem,) = problems(*overrides, model=MIXTURE)
    assert problem.startswith(field), problem
    assert remedy in problem


@pytest.mark.parametrize(
    ("model", "overrides", "part"),
    [
        (replace(DENSE, hidden=520), fp8("tensorwise"), "hidden size 520 is split over 1"),
        (replace(DENSE, ffn=1024 + 16), [*fp8("delayed"), *SPLIT], "feed-forward size 1040 is split over 2"),
        (replace(DENSE, ffn=1024 + 16), fp8("mxfp8"), "multiples of 32"),
        (replace(DENSE, heads=4, kv_heads=1, head_dim=24), [*fp8("blockwise")], None),
        (replace(MIXTURE, experts=Experts(8, 2, 272)), [*fp8("blockwise"), *APART], None),
        (replace(MIXTURE, experts=Experts(8, 2, 272)), [*fp8("blockwise"), *SPLIT], "feed-forward size 272 is split"),
    ],
)
def test_widths_suit_fp8_on_every_rank(model: ModelShape, overrides: list[str], part: str | None) -> None:
    found = problems(*overrides, model=model)
    assert (found == []) == (part is None), found
    for problem in found:
        assert problem.startswith("model.fp8.recipe=") and "model.fp8.recipe=none" in problem
        assert part in problem


@pytest.mark.parametrize(
    ("overrides", "model"),
    [
        (fp8("delayed", "model.fp8.amax_history=16"), DENSE),
        (fp8("tensorwise", "model.fp8.parameters=true", "algorithm.kl.coef=0.01"), DENSE),
        (fp8("tensorwise", "model.fp8.first_layers_bf16=1", "model.fp8.last_layers_bf16=1", *TENSOR), DENSE),
        (fp8("blockwise", "model.fp8.format=e4m3", "model.fp8.parameters=true", PRECISION_AWARE), MIXTURE),
        (fp8("mxfp8", "model.recompute.granularity=selective", "model.recompute.modules=[layernorm]"), DENSE),
        (["model.recompute.granularity=full", "model.recompute.layers=2", *STAGES], DENSE),
        (["model.recompute.granularity=selective", "model.recompute.modules=[core_attn,mlp,layernorm]"], DENSE),
        (["model.recompute.granularity=selective", "model.recompute.modules=[moe,layernorm]"], MIXTURE),
        ([BF16, PRECISION_AWARE, "optimizer.offload=0.5", "optimizer.gradient_dtype=bfloat16"], DENSE),
        ([PRECISION_AWARE, "optimizer.exp_avg_dtype=float8"], DENSE),
        ([BF16, PRECISION_AWARE, "optimizer.main_dtype=float16", "optimizer.gradient_dtype=bfloat16"], DENSE),
        (["parallel.overlap={gradients: true, parameters: true, pipeline: true}", *STAGES], DENSE),
        (["parallel.dp=4", "parallel.ep=4", "model.moe.aux_loss=0.01", "model.moe.z_loss=0.001"], MIXTURE),
        ([*SPLIT, "parallel.dp=2", "parallel.ep=4", "parallel.etp=1", "model.moe.router_dtype=fp64"], MIXTURE),
        (["model.moe.dispatcher=allgather", "train.micro_batch_tokens=8192"], MIXTURE),
        (["model.fusions=false", "optimizer.implementation=torch"], DENSE),
    ],
)
def test_what_is_possible_passes(overrides: list[str], model: ModelShape) -> None:
    assert problems(*overrides, model=model) == []


def test_a_recipe_that_was_written_out_is_the_same(tmp_path: Path) -> None:
    """Defaults that are written down count as defaults."""
    recipe = recipe_of("model.recompute.granularity=full")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "recipe.yaml", [])
    assert [*megatron_problems(again), *megatron_shape_problems(again, DENSE)] == []


def test_the_checks_are_part_of_a_recipes() -> None:
    with pytest.raises(ConfigError) as caught:
        check_recipe(recipe_of("model.fp8.recipe=delayed", "model.recompute.layers=2", "parallel.ep=2"), DENSE)
    fields = ("model.fp8.recipe=delayed", "model.recompute.layers=2", "parallel.ep=2")
    assert all(any(problem.startswith(field) for problem in caught.value.problems) for field in fields)
    assert [*fp8_problems(recipe_of())] == []


@pytest.mark.parametrize(
    ("recipe", "tensor", "rows", "columns"),
    [
        ("none", False, 1, 1),
        ("delayed", False, 16, 16),
        ("tensorwise", True, 16, 16),
        ("blockwise", False, 128, 16),
        ("mxfp8", False, 32, 32),
        ("mxfp8", True, 128, 32),
    ],
)
def test_fp8_asks_for_multiples(recipe: str, tensor: bool, rows: int, columns: int) -> None:
    config, parallel = Fp8Config(recipe=recipe), ParallelConfig(overlap={"tensor": tensor})
    assert (fp8_rows(config, parallel), fp8_columns(config)) == (rows, columns)


def test_what_needs_one_length() -> None:
    assert not of_fixed_length(ModelConfig(), ParallelConfig())
    assert of_fixed_length(ModelConfig(), ParallelConfig(overlap={"tensor": True}))
    assert of_fixed_length(ModelConfig(moe={"dispatcher": "allgather"}), ParallelConfig())

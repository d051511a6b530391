"""FP8, FP8 parameters and recomputation on one GPU, against the bfloat16 policy on the same rows.

``pytest -m gpu tests/gpu``
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rank_cases import training_rows
from torch import Tensor

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.forward import run_microbatches
from megatron_cgrpo.actor.machine import Machine, check_machine
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.model_weights import named_parameters
from megatron_cgrpo.actor.parallel import ParallelState
from megatron_cgrpo.actor.policy import MegatronPolicy, PolicySpec
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.weights.hf_reader import HFCheckpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("transformer_engine") is None, reason="needs Transformer Engine"),
]

ONE = ParallelConfig()
BF16 = ModelConfig(dtype="bfloat16")
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
UPDATES = 5
TOLERANCE = 0.25
"""Relative. Transformer Engine compares what passed through E5M2, as hybrid gradients do, with a tolerance of 0.25."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths that FP8 products take."""
    directory = tmp_path_factory.mktemp("model")
    config = transformers.Qwen3Config(
        vocab_size=61, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        intermediate_size=512, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory


def fp8_model(recipe: str, **options: Any) -> ModelConfig:
    """Skips where this GPU lacks the recipe's products."""
    model = ModelConfig(dtype="bfloat16", fp8={"recipe": recipe} | options)
    try:
        check_machine(model, ONE, OptimizerConfig(), True, Machine.here())
    except ConfigError as error:
        pytest.skip(str(error))
    return model


def loaded(model_dir: Path, model: ModelConfig, state: ParallelState) -> MegatronPolicy:
    optimizer = OptimizerConfig(lr=3e-3, weight_decay=0.0)
    policy = MegatronPolicy(PolicySpec(read_model_shape(model_dir), model, ONE, optimizer, UPDATES, seed=1), state)
    policy.load(HFCheckpoint(model_dir).read)
    return policy


def batches(model: ModelConfig, state: ParallelState) -> list[Any]:
    rows = training_rows()
    return build_microbatches([rows[:4], rows[4:]], Layout.of(ONE, True, model), state.device)


def gradients(model_dir: Path, model: ModelConfig, state: ParallelState) -> dict[str, Tensor]:
    policy = loaded(model_dir, model, state)
    policy._backward(batches(model, state), objectives.supervised)  # delayed scaling: the first pass sets its scales
    policy._backward(batches(model, state), objectives.supervised)
    return {name: parameter.main_grad.clone() for name, parameter in named_parameters(policy._chunks)}


def logprobs(policy: MegatronPolicy, model: ModelConfig, state: ParallelState) -> Tensor:
    reports = run_microbatches(policy._chunks, batches(model, state), objectives.read_logprobs, train=False)
    weights = [batch.weight.cpu() for batch in batches(model, state)]
    return torch.cat([report[weight > 0] for report, weight in zip(reports, weights, strict=True)])


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).float().norm() / expected.float().norm()).item()


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_gradients_and_logprobs_are_those_of_bfloat16(model_dir: Path, recipe: str, state: ParallelState) -> None:
    model = fp8_model(recipe)
    expected, found = gradients(model_dir, BF16, state), gradients(model_dir, model, state)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < TOLERANCE, name
    assert any(not torch.equal(found[name], gradient) for name, gradient in expected.items()), "nothing was in FP8"
    pair = [logprobs(loaded(model_dir, each, state), each, state) for each in (BF16, model)]
    assert (pair[0] - pair[1]).abs().mean() < 0.05


@pytest.mark.parametrize("recipe", RECIPES[1:])  # not delayed: its scales come with the first update
def test_fp8_parameters_train_and_come_out_as_what_was_computed_with(
    model_dir: Path, recipe: str, state: ParallelState
) -> None:
    model = fp8_model(recipe, parameters=True)
    policy = loaded(model_dir, model, state)
    source = HFCheckpoint(model_dir)
    exported = {name: tensor.cpu() for name, tensor in policy.export()}
    for name, tensor in exported.items():
        assert tensor.dtype == torch.bfloat16
        assert relative(tensor.float(), source.read(name).float()) < 0.07, name  # E4M3: half a unit of 3 bits
    assert any(not torch.equal(tensor, source.read(name).bfloat16()) for name, tensor in exported.items())
    losses = []
    for _ in range(UPDATES):
        result = policy.update(batches(model, state), objectives.supervised)
        assert math.isfinite(result.grad_norm) and result.grad_norm > 0
        losses.append(float(sum(result.reports)))
    assert losses[-1] < losses[0], losses


def test_the_outermost_layers_stay_in_bfloat16(model_dir: Path, state: ParallelState) -> None:
    model = fp8_model("tensorwise", parameters=True, first_layers_bf16=1, last_layers_bf16=1)
    policy = loaded(model_dir, model, state)
    plain = {name for name, tensor in named_parameters(policy._chunks) if type(tensor.data) is Tensor}
    for layer, expected in enumerate((True, False, False, True)):
        assert (f"decoder.layers.{layer}.mlp.linear_fc2.weight" in plain) is expected


@pytest.mark.parametrize(
    "recompute",
    [
        {"granularity": "selective", "modules": ["core_attn", "mlp"]},
        {"granularity": "full"},
        {"granularity": "full", "method": "block", "layers": 2},
    ],
)
@pytest.mark.parametrize("recipe", ["none", "tensorwise"])
def test_recomputation_gives_the_same_gradients(
    model_dir: Path, recompute: dict[str, Any], recipe: str, state: ParallelState
) -> None:
    kept = fp8_model(recipe)
    again = kept.model_copy(update={"recompute": ModelConfig(recompute=recompute).recompute})
    expected, found = gradients(model_dir, kept, state), gradients(model_dir, again, state)
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < 1e-2, name


@pytest.mark.parametrize(
    "options",
    [
        {"precision_aware": True, "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"},
        {"precision_aware": True, "gradient_dtype": "bfloat16"},
        {"precision_aware": True, "offload": 1.0},
        {"precision_aware": True, "offload": 0.5},
    ],
)
def test_smaller_and_offloaded_states_train_alike(
    model_dir: Path, options: dict[str, Any], state: ParallelState
) -> None:
    losses = []
    for config in (OptimizerConfig(lr=1e-3), OptimizerConfig(lr=1e-3, **options)):
        spec = PolicySpec(read_model_shape(model_dir), BF16, ONE, config, UPDATES, seed=1)
        policy = MegatronPolicy(spec, state)
        policy.load(HFCheckpoint(model_dir).read)
        results = [policy.update(batches(BF16, state), objectives.supervised) for _ in range(UPDATES)]
        losses.append([float(sum(result.reports)) for result in results])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)

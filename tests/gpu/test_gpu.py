"""The policy on one GPU, with Transformer Engine in bfloat16 and with Megatron's local layers in float32.

``pytest -m gpu tests/gpu``
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from models import load_hf_model, save_hf_model
from rank_cases import training_rows
from torch import Tensor

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.model import build_chunks
from megatron_cgrpo.actor.model_weights import WeightExport, load_weights
from megatron_cgrpo.actor.parallel import ParallelState
from megatron_cgrpo.actor.policy import MegatronPolicy, PolicySpec
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.microbatch import MicroBatch
from megatron_cgrpo.weights.families import TE_NAMES
from megatron_cgrpo.weights.hf_reader import HFCheckpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FUSED = ModelConfig(dtype="bfloat16", implementation="transformer_engine")
LOCAL = ModelConfig(dtype="float32", implementation="local")
MODELS = [
    pytest.param(
        FUSED,
        id="transformer_engine",
        marks=pytest.mark.skipif(find_spec("transformer_engine") is None, reason="needs Transformer Engine"),
    ),
    pytest.param(LOCAL, id="local"),
]
ONE = ParallelConfig()
UPDATES = 5


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    save_hf_model(directory, request.param, tied=request.param == "qwen3")
    return directory


def new_policy(model_dir: Path, model: ModelConfig, state: ParallelState) -> MegatronPolicy:
    optimizer = OptimizerConfig(lr=3e-3, weight_decay=0.0)
    return MegatronPolicy(PolicySpec(read_model_shape(model_dir), model, ONE, optimizer, UPDATES, seed=1), state)


def batches(state: ParallelState) -> list[MicroBatch]:
    rows = training_rows()
    return build_microbatches([rows[:4], rows[4:]], Layout.of(ONE, packed=True), state.device)


def oracle_logprobs(model_dir: Path) -> list[Tensor]:
    """transformers' float32 log-probabilities, on the CPU, of all tokens of each row after its first."""
    model, result = load_hf_model(model_dir), []
    for row in training_rows():
        tokens = torch.tensor(row.token_ids)
        with torch.no_grad():
            scores = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        result.append(scores.gather(1, tokens[1:, None])[:, 0])
    return result


@pytest.mark.parametrize("model", MODELS)
def test_logprobs_equal_transformers(model_dir: Path, model: ModelConfig, state: ParallelState) -> None:
    policy = new_policy(model_dir, model, state)
    policy.load(HFCheckpoint(model_dir).read)
    found = torch.cat([report[0] for report in policy.forward(batches(state), objectives.read_logprobs)])
    expected = oracle_logprobs(model_dir)
    rows = found[: sum(len(row) + 1 for row in expected)].split([len(row) + 1 for row in expected])
    differences = torch.cat([(row[:-1] - wanted).abs() for row, wanted in zip(rows, expected, strict=True)])
    # bfloat16 keeps 8 bits of activations and of logits; float32 kernels differ in the order of their sums.
    mean, largest = (0.03, 0.25) if model.dtype == "bfloat16" else (1e-5, 1e-4)
    assert differences.mean() < mean
    assert differences.max() < largest


@pytest.mark.parametrize("model", MODELS)
def test_supervised_updates_lower_the_loss(model_dir: Path, model: ModelConfig, state: ParallelState) -> None:
    policy = new_policy(model_dir, model, state)
    policy.load(HFCheckpoint(model_dir).read)
    losses = []
    for _ in range(UPDATES):
        result = policy.update(batches(state), objectives.supervised)
        assert math.isfinite(result.grad_norm) and result.grad_norm > 0
        losses.append(float(sum(result.reports)))
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False)), losses


@pytest.mark.parametrize("model", MODELS)
def test_weights_come_back_bit_by_bit(model_dir: Path, model: ModelConfig, state: ParallelState) -> None:
    shape, weights = read_model_shape(model_dir), HFCheckpoint(model_dir)
    chunks = build_chunks(shape, model, ONE, state)
    names = {name for chunk in chunks for name, _ in chunk.named_parameters()}
    for plain, fused in TE_NAMES.items():
        wanted, other = (fused, plain) if model is FUSED else (plain, fused)
        assert any(name.endswith(f"layers.0.{wanted}") for name in names)
        assert not any(name.endswith(f"layers.0.{other}") for name in names)
    load_weights(chunks, shape, weights.read, state)
    exported = {name: tensor.cpu().clone() for name, tensor in WeightExport(chunks, shape, state)}
    assert exported.keys() == weights.names() - ({"lm_head.weight"} if shape.tied_embeddings else set())
    for name, tensor in exported.items():
        assert torch.equal(tensor, weights.read(name).to(tensor.dtype)), name
        assert tensor.dtype == (torch.bfloat16 if model is FUSED else torch.float32)


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_restores_weights_and_optimiser(
    model_dir: Path, model: ModelConfig, state: ParallelState, tmp_path: Path
) -> None:
    policy = new_policy(model_dir, model, state)
    policy.load(HFCheckpoint(model_dir).read)
    policy.update(batches(state), objectives.supervised)
    policy.save(tmp_path)
    resumed = new_policy(model_dir, model, state)
    resumed.resume(tmp_path, same_layout=True)
    saved = {name: tensor.clone() for name, tensor in policy.export()}
    for name, tensor in resumed.export():
        assert torch.equal(tensor, saved[name]), name
    results = [trained.update(batches(state), objectives.supervised) for trained in (policy, resumed)]
    assert results[1].lr == results[0].lr
    assert results[1].grad_norm == pytest.approx(results[0].grad_norm, rel=1e-3)
    # Lost moments would make Adam's step several times larger: its first one has the full learning rate everywhere.
    continued = {name: tensor.clone() for name, tensor in policy.export()}
    for name, tensor in resumed.export():
        step = (continued[name] - saved[name]).float().norm()
        assert (tensor - continued[name]).float().norm() <= 0.05 * step, name

"""The driver's view of two tensor-parallel ranks: which weights it sends, and what it measures of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import save_hf_model
from rank_cases import SPEC, training_rows
from received_weights import Receiver
from safetensors.torch import load_file

from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.actor.policy import PolicySpec
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.launch.cluster import ray_cluster
from megatron_cgrpo.types import Origin
from megatron_cgrpo.weights.hf_reader import HFCheckpoint


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_hf_model(directory, "qwen3", tied=True)
    return directory


@pytest.fixture(scope="module")
def group(model_dir: Path) -> Iterator[ActorGroup]:
    parallel = ParallelConfig(tp=2)
    spec = PolicySpec(read_model_shape(model_dir), ModelConfig(), parallel, OptimizerConfig(lr=1e-2), 4, seed=1)
    with ray_cluster(2):
        started = ActorGroup(spec, packed=True, micro_batch_tokens=60, threads=1, gpu=False)
        started.load_base(model_dir, reference=True)
        yield started
        started.stop()


def test_the_base_can_be_pushed_after_the_policy_has_left_it(
    group: ActorGroup, model_dir: Path, tmp_path: Path
) -> None:
    received = tmp_path / "received"
    group.connect("file", Receiver(received), 1, "float32")
    group.push(0)
    group.update(training_rows(), SPEC)
    group.push(1)
    group.push(2, base=True)
    first, trained, base = (load_file(received / f"v{version}.safetensors") for version in range(3))
    assert base.keys() == first.keys() == HFCheckpoint(model_dir).names()
    for name, tensor in base.items():
        assert torch.equal(tensor, first[name]) and torch.equal(tensor, HFCheckpoint(model_dir).read(name)), name
        assert not torch.equal(tensor, trained[name]), name


def test_gradient_norms_are_those_of_the_update_where_there_is_one_source(group: ActorGroup) -> None:
    rows = training_rows()
    both = group.gradient_norms(rows, SPEC)
    assert set(both) == {"rollout", "refinement", "cosine"}
    refined = [row for row in rows if row.origin is Origin.REFINEMENT]
    assert group.gradient_norms(refined, SPEC) == {"refinement": both["refinement"]}
    unlikely = [replace(row, weight=0.0) for row in refined]
    assert group.gradient_norms([*rows[:2], *unlikely], SPEC)["refinement"] == 0
    assert "cosine" not in group.gradient_norms([*rows[:2], *unlikely], SPEC), "nothing has no direction"
    assert group.gradient_norms([], SPEC) == {}
    assert group.update(refined, SPEC).grad_norm == pytest.approx(both["refinement"], rel=1e-6)

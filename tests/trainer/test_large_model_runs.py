"""Whole runs as large models have them: context- and expert-parallel ranks with replayed routing, engines in FP8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from own_model import SHAPE, write_own_problems
from training_runs import OF_ANY_TASK, Run

from megatron_cgrpo.config.model_shape import QWEN3, QWEN3_MOE, Experts
from megatron_cgrpo.observe.metrics import read_metrics

MIXTURE = replace(SHAPE, architecture=QWEN3_MOE, experts=Experts(count=4, per_token=2, ffn=32))
BLOCKS = replace(SHAPE, architecture=QWEN3, head_dim=64, hidden=128, ffn=128)
SETTINGS = [*OF_ANY_TASK, "parallel.tp=1", "train.steps=2", "evaluation.every=0"]


def _steps(run: Run) -> list[dict[str, float]]:
    run.finish()
    return read_metrics(run.directory / "metrics.jsonl")[1:]


def test_context_and_expert_parallel_ranks_replay_what_the_engine_routed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The second step samples from what the first has trained: the engine still computes what the ranks do."""
    parallel = ["parallel.cp=2", "parallel.ep=2", "model.moe.replay_routing=true"]
    run = Run(tmp_path, tmp_path, "mixture", *write_own_problems(tmp_path, shape=MIXTURE), *parallel, settings=SETTINGS)
    steps = _steps(run)
    assert len(steps) == 2
    for step in steps:
        assert step["grad_norm"] > 0 and step["routing.replayed"] == 1
        assert step["mismatch.max_abs"] < 1e-4


@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="vLLM has no FP8 cache on CPUs without AVX-512")
def test_engines_in_fp8_differ_by_more_than_those_in_bfloat16_and_more_is_limited(tmp_path: Path) -> None:
    """The correction's cap is one that both kinds of engine exceed on some tokens."""
    settings = [*SETTINGS, "model.dtype=bfloat16", "algorithm.correction.cap=1.001"]
    problems = write_own_problems(tmp_path, shape=BLOCKS)
    plain = _steps(Run(tmp_path, tmp_path, "bfloat16", *problems, settings=settings))
    fp8 = ["rollout.quantization=fp8", "rollout.kv_cache_dtype=fp8"]
    rounded = _steps(Run(tmp_path, tmp_path, "fp8", *problems, *fp8, settings=settings))
    assert len(plain) == len(rounded) == 2
    for own, other in zip(rounded, plain, strict=True):
        assert own["grad_norm"] > 0
        assert 5 * other["mismatch.mean_abs"] < own["mismatch.mean_abs"] < 0.1
        assert own["mismatch.limited"] > other["mismatch.limited"]

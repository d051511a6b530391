"""Whole runs that start from a converted model, and models converted from what a run has trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from training_runs import ROOT, SMALL, STEPS, Files, Run
from typer.testing import CliRunner

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.options import Options
from megatron_cgrpo.cli import app
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.same_training import model_fingerprint
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.layout import CheckpointLayout


def _without_scores(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if not key.startswith("eval.")}


def test_a_run_from_a_converted_model_computes_the_same_bytes(
    folder: Path, cache: Path, uninterrupted: Files, base: Path
) -> None:
    """With a reference policy, critiques and refinements, on two tensor-parallel ranks; one engine instead of two."""
    hf_to_megatron(base, folder / "base_megatron", CheckpointLayout(pp=2, vocab_divisor=16), Options())
    settings = (f"model.path={folder / 'base_megatron'}", "train.steps=1")
    run = Run(folder, cache, "converted", *settings)
    run.finish()
    found, expected = run.comparable_metrics(), uninterrupted.comparable_metrics()
    assert len(found) == 2 and found[0] == expected[0]
    assert _without_scores(found[1]) == _without_scores(expected[1])  # the last step of a run is scored


def test_a_runs_checkpoints_are_models(folder: Path, uninterrupted: Files, base: Path) -> None:
    steps = [uninterrupted.directory / "checkpoints" / f"step_{step:06d}" for step in (STEPS - 1, STEPS)]
    assert model_fingerprint(steps[0] / "policy") != model_fingerprint(steps[1] / "policy")
    megatron_to_hf(steps[1], folder / "trained", Options())
    trained, original = HFCheckpoint(folder / "trained"), HFCheckpoint(base)
    assert trained.names() == original.names()
    assert not any(torch.equal(trained.read(name), original.read(name)) for name in trained.names())
    _, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "trained", output_loading_info=True)
    assert not any(info.values())
    tokenizers = [transformers.AutoTokenizer.from_pretrained(directory) for directory in (folder / "trained", base)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    for model in (folder / "trained", steps[1] / "policy"):
        overrides = [*SMALL, f"model.path={model}", f"run.dir={folder / 'next'}"]
        Problems.load(load_recipe(ROOT / "examples/sandbox.yaml", overrides))
        result = CliRunner().invoke(app, ["validate", str(ROOT / "examples/sandbox.yaml"), *overrides])
        assert result.exit_code == 0, result.output

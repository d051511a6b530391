"""Ways to save time that change no bit of an update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_hf_model
from ranks import run_ranks
from update_cases import main_weights, overlapped, recomputed

from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.mapping import local_shard


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_hf_model(directory, "qwen3", False)
    return directory


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("parallel", [{"dp": 2}, {"pp": 2, "vpp": 2}])
def test_what_is_sent_while_ranks_compute_changes_no_weight(model_dir: Path, parallel: dict[str, Any]) -> None:
    """Gradients during the backward pass, parameters during the next forward pass, activations beside both."""
    for after, *overlapping in run_ranks(overlapped, 2, str(model_dir), parallel):
        assert len(overlapping) == (3 if "vpp" in parallel else 2)
        for each in overlapping:
            assert after.keys() == each.keys()
            assert all(torch.equal(after[name], each[name]) for name in after)


@pytest.mark.parametrize("parallel", [{}, {"dp": 2}])
def test_old_log_probabilities_are_the_current_ones_in_the_first_update(
    model_dir: Path, parallel: dict[str, Any]
) -> None:
    """So a step of one update leaves the pass for them out, also on samples of an older policy."""
    skipped, computed = run_ranks(recomputed, parallel.get("dp", 1), str(model_dir), parallel)[0]
    assert_equal(skipped, computed)


def test_main_weights_can_be_as_precise_as_the_file_is(model_dir: Path) -> None:
    """For FP8 parameters, whose values keep four bits; on a CPU what bfloat16 loses shows the same."""
    parts: dict[str, list[torch.Tensor]] = {}
    for rank in run_ranks(main_weights, 2, str(model_dir)):
        for name, (rounded, precise) in rank.items():
            assert torch.equal(precise.bfloat16().float(), rounded), name
            parts.setdefault(name, []).append(precise)
    shape, read = read_model_shape(model_dir), HFCheckpoint(model_dir).read
    for weight in model_weights(shape):
        expected = local_shard(weight, read, shape, 0, 1).flatten()
        assert torch.equal(torch.cat(parts[weight.megatron]), expected), weight.megatron

"""A resumed policy equals the uninterrupted one: bit by bit in its own layout, up to rounding in any other."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from megatron.core.optimizer import MegatronOptimizer
from models import save_hf_model
from policy_cases import Trained, one_rank, two_ranks
from ranks import run_ranks

from megatron_cgrpo.actor.checkpoint import load_model
from megatron_cgrpo.actor.optimizer_state import for_optimizers
from megatron_cgrpo.config.errors import ConfigError

# 61 rows of vocabulary: two tensor-parallel ranks pad them to 62, the other layouts do not.
RESUMED = ["tp", "tp, as if moved", "pp", "vpp", "dp", "dp, then tp", "cp", "one rank"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found; rank 0 also went through one rank alone."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_hf_model(folder / "model", "qwen3", tied=True)
    directories = [folder / "first", folder / "second", folder / "untrained"]
    for directory in directories:
        directory.mkdir()
    both = run_ranks(two_ranks, 2, str(folder / "model"), directories)
    [alone] = run_ranks(one_rank, 1, str(folder / "model"), directories[0])
    return [both[0] | alone, both[1]]


@pytest.mark.parametrize("name", RESUMED)
def test_every_layout_loads_the_same_weights_bit_by_bit(ranks: list[dict[str, Any]], name: str) -> None:
    saved, loaded = ranks[0]["uninterrupted"].loaded, ranks[0][name].loaded
    assert saved.keys() == loaded.keys()
    for key, tensor in saved.items():
        assert torch.equal(tensor, loaded[key]), key


def test_parameters_load_without_the_optimiser(ranks: list[dict[str, Any]]) -> None:
    for key, tensor in ranks[0]["uninterrupted"].loaded.items():
        assert torch.equal(tensor, ranks[0]["parameters"][key]), key


def test_the_same_layout_goes_on_bit_by_bit(ranks: list[dict[str, Any]]) -> None:
    expected, found = ranks[0]["uninterrupted"].updated, ranks[0]["tp"].updated
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key
        assert not torch.equal(tensor, ranks[0]["tp"].loaded[key]), f"{key} did not train"


def test_what_nothing_has_trained_is_saved_and_goes_on_bit_by_bit(ranks: list[dict[str, Any]]) -> None:
    """A run may be told to end while every question still fails."""
    expected, found = ranks[0]["untrained"].updated, ranks[0]["untrained, resumed"].updated
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key
        assert not torch.equal(tensor, ranks[0]["untrained"].loaded[key]), f"{key} did not train"


@pytest.mark.parametrize("name", RESUMED)
def test_other_layouts_go_on_with_the_same_moments_and_step_count(ranks: list[dict[str, Any]], name: str) -> None:
    """Compared as updates: the weights alone would hide a wrong moment behind their own size."""
    before = ranks[0]["uninterrupted"].loaded
    expected, found = ranks[0]["uninterrupted"].updated, ranks[0][name].updated
    for key in expected:
        assert (found[key] - expected[key]).norm() < 1e-5 * expected[key].norm(), key
        step = expected[key] - before[key]
        assert (found[key] - expected[key]).norm() < 1e-3 * step.norm(), key


@pytest.mark.parametrize("name", ["bfloat16", "not distributed"])
def test_other_kinds_of_optimiser_state_go_on_bit_by_bit(ranks: list[dict[str, Any]], name: str) -> None:
    """Float32 masters of bfloat16 parameters; states that are not sharded."""
    expected, found = ranks[0][name]
    for key, tensor in expected.updated.items():
        assert torch.equal(expected.loaded[key], found.loaded[key]), key
        assert torch.equal(tensor, found.updated[key]), key
    assert found.lr == expected.lr
    changed = [key for key, tensor in expected.updated.items() if not torch.equal(tensor, expected.loaded[key])]
    assert "model.embed_tokens.weight" in changed


def test_the_schedule_goes_on(ranks: list[dict[str, Any]]) -> None:
    trained: list[Trained] = [ranks[0][name] for name in RESUMED]
    assert {result.lr for result in trained} == {ranks[0]["uninterrupted"].lr}
    # Update 3 of 6, two of which warm up: a quarter of the way down the cosine.
    assert trained[0].lr == pytest.approx(1e-3 + 2e-3 * (1 + 0.5**0.5) / 2)


def test_random_state_comes_back_to_the_rank_that_had_it(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert torch.equal(rank["tp"].random, rank["uninterrupted"].random)
        assert not torch.equal(rank["tp, as if moved"].random, rank["uninterrupted"].random)
    assert not torch.equal(ranks[0]["tp"].random, ranks[1]["tp"].random)


def test_the_reference_stays_while_the_policy_moves(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["reference"]
    assert "keep_reference first" in found["refusal"]
    for index, before in enumerate(found["policy before"]):
        assert torch.equal(before, found["reference before"][index])
        assert torch.equal(before, found["reference after"][index])
        assert (before - found["policy after"][index]).abs().max() > 1e-3


def test_a_gradient_that_is_not_a_number_is_an_error(ranks: list[dict[str, Any]]) -> None:
    assert "gradient norm nan" in ranks[0]["not finite"]
    assert "lower optimizer.lr" in ranks[0]["not finite"]


def test_optimisers_that_number_their_parameters_are_not_taken_apart() -> None:
    """Experts in an optimiser of their own, saved; one optimiser for all, that is to go on."""
    now = SimpleNamespace(chained_optimizers=[object()])
    saved = {0: {"param_groups": []}, 1: {"param_groups": []}}
    with pytest.raises(ConfigError, match="optimizer.distributed=false: .* with expert parallelism.* set parallel.ep"):
        for_optimizers(saved, cast(MegatronOptimizer, now))
    same = SimpleNamespace(chained_optimizers=[object(), object()])
    assert for_optimizers(saved, cast(MegatronOptimizer, same)) is saved


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of the checkpoint ran')",))


def test_metadata_that_would_run_code_is_refused_before_megatron_reads_it(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (tmp_path / ".metadata").write_bytes(pickle.dumps(_Payload()))
    with pytest.raises(ConfigError, match="builtins.exec does not belong there"):
        load_model(tmp_path, [])

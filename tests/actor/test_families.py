"""Every family in Megatron against transformers: logits, log-probabilities, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import FAMILIES, LLAMA3_ROPE, load_hf_model, save_hf_model
from oracle import save_gradients
from policy_cases import with_experts
from rank_cases import Case, gradients, logits, sequence_outputs, training_rows
from ranks import run_ranks

from megatron_cgrpo.weights.hf_reader import HFCheckpoint

SEQUENCE_PARALLEL = Case({"tp": 2, "sequence_parallel": True}, micro_batch_tokens=33)
EXPERT_PARALLEL = [
    Case({"dp": 2, "ep": 2}, micro_batch_tokens=33),
    Case({"tp": 2, "sequence_parallel": True, "ep": 2, "etp": 1}, micro_batch_tokens=33),
]
EVERY_TOKEN_TO_EVERY_RANK = [
    Case({"cp": 2, "ep": 2}, micro_batch_tokens=40, moe={"dispatcher": "allgather"}),
    Case({"tp": 2, "sequence_parallel": True, "ep": 2, "etp": 1}, moe={"dispatcher": "allgather"}),
]
TOKENS = torch.randint(0, 61, (1, 400), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Alternately tied and untied, and the other of the two for those that are tied."""
    dirs = {}
    for index, family in enumerate(FAMILIES):
        for tied in {False, bool(index % 2)}:
            name = family if tied == bool(index % 2) else f"{family}_untied"
            dirs[name] = tmp_path_factory.mktemp(name)
            save_hf_model(dirs[name], family, tied)
    return dirs


def _oracle(directory: Path, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return load_hf_model(directory)(tokens).logits[0]


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_logits_and_logprobs_equal_transformers(model_dirs: dict[str, Path]) -> None:
    """400 positions: enough for Llama's scaled wavelengths to turn visibly less than unscaled ones."""
    [results] = run_ranks(sequence_outputs, 1, [str(directory) for directory in model_dirs.values()], TOKENS)
    targets = TOKENS[0].roll(-1)
    for (family, directory), (found, logprobs) in zip(model_dirs.items(), results, strict=True):
        expected = _oracle(directory)
        assert _relative(found[:, : expected.shape[1]], expected) < 1e-5, family
        scores = expected.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        assert _relative(logprobs, scores) < 1e-5, family


def test_the_models_above_have_what_distinguishes_their_families(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    """Else the agreement would prove little: each alternative moves the logits by much more than the tolerance."""

    def changed(family: str, **changes: object) -> float:
        directory = tmp_path / family
        directory.mkdir()
        config = json.loads((model_dirs[family] / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | changes))
        (directory / "model.safetensors").symlink_to(model_dirs[family] / "model.safetensors")
        return _relative(_oracle(directory), _oracle(model_dirs[family]))

    plain = {"rope_type": "default", "rope_theta": LLAMA3_ROPE["rope_theta"]}
    assert changed("llama3", rope_parameters=plain) > 1e-2
    assert changed("qwen3_moe", norm_topk_prob=False) > 1e-2
    assert changed("mixtral", num_experts_per_tok=1) > 1e-2


@pytest.mark.parametrize(
    ("world", "cases", "families"),
    [
        (1, [Case()], list(FAMILIES)),
        (
            2,
            [Case({"pp": 2}), SEQUENCE_PARALLEL],
            ["llama3", "llama2_untied", "mistral", "mixtral", "qwen3_moe", "qwen3_moe_untied"],
        ),
        (2, EXPERT_PARALLEL, ["mixtral", "qwen3_moe_untied"]),
        (4, [Case({"pp": 2, "dp": 2, "ep": 2})], ["qwen3_moe"]),
    ],
)
def test_packed_logits_and_the_export_do_not_depend_on_the_layout(
    model_dirs: dict[str, Path], world: int, cases: list[Case], families: list[str]
) -> None:
    directories = [str(model_dirs[family]) for family in families]
    ranks = run_ranks(logits, world, directories, cases)
    for results in ranks:
        for directory, found, _ in results:
            if found is not None:
                rows = [_oracle(Path(directory), torch.tensor([row.token_ids])) for row in training_rows()]
                expected = torch.cat(rows)
                assert _relative(found[: len(expected), : expected.shape[1]], expected) < 1e-5, directory
    assert sum(found is not None for results in ranks for _, found, _ in results) == len(cases) * len(families)
    for directory, _, export in ranks[0]:
        written = HFCheckpoint(Path(directory))
        assert set(export) == written.names()
        assert all(torch.equal(tensor, written.read(name)) for name, tensor in export.items())


@pytest.mark.parametrize(
    ("family", "world", "cases"),
    [
        ("qwen3_moe", 1, [Case(), Case(recompute={"granularity": "full"}), Case(packed=False)]),
        ("qwen3_moe", 2, [Case({"pp": 2}, micro_batch_tokens=33), Case({"dp": 2}), SEQUENCE_PARALLEL]),
        ("qwen3_moe", 2, [*EXPERT_PARALLEL, Case({"cp": 2, "ep": 2}, packed=False), *EVERY_TOKEN_TO_EVERY_RANK]),
        ("qwen3_moe_unnormalized", 2, [SEQUENCE_PARALLEL, Case({"pp": 2, "vpp": 2})]),
    ],
)
def test_gradients_of_experts_and_router(
    model_dirs: dict[str, Path], family: str, world: int, cases: list[Case]
) -> None:
    _check_gradients(model_dirs[family], world, cases)


def test_a_model_with_experts_resumes_in_any_layout(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    directories = [tmp_path / "first", tmp_path / "second"]
    for directory in directories:
        directory.mkdir()
    found, _ = run_ranks(with_experts, 2, str(model_dirs["qwen3_moe_untied"]), directories)
    expected = found["uninterrupted"]
    for layout in ("pp", "dp", "tp", "ep", "ep, then ep", "ep, then tp", "ep, then pp"):
        for key, tensor in expected.loaded.items():
            assert torch.equal(tensor, found[layout].loaded[key]), (layout, key)
            step = expected.updated[key] - tensor
            assert step.norm() > 0, key
            assert (found[layout].updated[key] - expected.updated[key]).norm() < 1e-3 * step.norm(), (layout, key)


def test_fewer_key_value_heads_than_tensor_parallel_ranks(tmp_path: Path) -> None:
    """Megatron then gathers queries, keys and values of all ranks, and each takes its own."""
    save_hf_model(tmp_path, "qwen3_one_group", tied=False)
    _check_gradients(tmp_path, 2, [Case({"tp": 2}), Case({"tp": 2, "sequence_parallel": True}, packed=False)])


def _check_gradients(directory: Path, world: int, cases: list[Case]) -> None:
    loss = save_gradients(directory)
    for rank, results in enumerate(run_ranks(gradients, world, str(directory), cases)):
        for case, result in zip(cases, results, strict=True):
            worst = max(result["errors"].items(), key=lambda item: item[1])
            assert worst[1] < 1e-5, (rank, case, worst)
            if result["loss"] is not None:
                assert result["loss"] == pytest.approx(loss, rel=1e-5), (rank, case)

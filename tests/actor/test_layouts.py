"""Megatron against transformers: logits, export and gradients, for every layout of two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import load_hf_model, save_hf_model
from oracle import save_gradients
from rank_cases import Case, gradients, logits, training_rows
from ranks import run_ranks

MODELS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]
ONE_RANK = [
    Case(),
    Case(micro_batch_tokens=1),
    Case(packed=False),
    Case(micro_batch_tokens=500),
    Case(recompute={"granularity": "full"}),
    Case(recompute={"granularity": "full", "method": "block", "layers": 2}),
    Case(recompute={"granularity": "selective"}),
    Case(recompute={"granularity": "selective", "modules": ["mlp", "layernorm"]}, packed=False),
]
TWO_RANKS = [
    Case({"tp": 2}),
    Case({"tp": 2}, packed=False),
    Case({"tp": 2, "sequence_parallel": True}, micro_batch_tokens=33),
    Case({"tp": 2, "sequence_parallel": True}, packed=False),
    Case({"pp": 2}, micro_batch_tokens=33),
    Case({"pp": 2}, packed=False),
    Case({"pp": 2, "vpp": 2}),
    Case({"pp": 2, "vpp": 2}, packed=False),
    Case({"dp": 2}),
    Case({"dp": 2}, packed=False, micro_batch_tokens=1),
    Case({"dp": 2, "overlap": {"gradients": True}}, micro_batch_tokens=33),
    Case({"pp": 2, "overlap": {"gradients": True}}, micro_batch_tokens=33),
    Case({"pp": 2, "vpp": 2, "overlap": {"gradients": True}}),
]


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    dirs = {key: tmp_path_factory.mktemp("-".join(map(str, key))) for key in MODELS}
    for (family, tied), directory in dirs.items():
        save_hf_model(directory, family, tied)
    return dirs


@pytest.mark.parametrize(("world", "cases"), [(1, ONE_RANK), (2, TWO_RANKS)])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_do_not_depend_on_the_layout(model_dirs: dict, world: int, cases: list[Case], tied: bool) -> None:
    directory = model_dirs["qwen3", tied]
    loss = save_gradients(directory)
    for rank, results in enumerate(run_ranks(gradients, world, str(directory), cases)):
        for case, result in zip(cases, results, strict=True):
            worst = max(result["errors"].items(), key=lambda item: item[1])
            assert worst[1] < 1e-5, (rank, case, worst)
            if result["loss"] is not None:
                assert result["loss"] == pytest.approx(loss, rel=1e-5), (rank, case)


@pytest.mark.parametrize(("world", "cases"), [(1, [Case()]), (2, [Case({"tp": 2}), Case({"pp": 2})])])
def test_logits_equal_transformers_and_the_export_is_bit_exact(model_dirs: dict, world: int, cases: list[Case]) -> None:
    expected = {}
    for directory in model_dirs.values():
        model = load_hf_model(directory)
        with torch.no_grad():
            rows = [model(torch.tensor([row.token_ids])).logits[0] for row in training_rows()]
        expected[str(directory)] = (torch.cat(rows), model.state_dict())
    ranks = run_ranks(logits, world, [str(directory) for directory in model_dirs.values()], cases)
    compared = 0
    for result in ranks:
        for directory, found, export in result:
            oracle, state = expected[directory]
            if found is not None:
                assert (found[: len(oracle), : oracle.shape[1]] - oracle).abs().max() < 1e-4
                compared += 1
            for name, tensor in export.items():
                assert torch.equal(tensor, state[name]), name
    for index in range(len(cases) * len(MODELS)):
        directory, _, export = ranks[0][index]
        tied = {"lm_head.weight"} if load_hf_model(Path(directory)).config.tie_word_embeddings else set()
        assert set(export) == set(expected[directory][1]) - tied
    assert compared == len(cases) * len(MODELS)

"""Megatron's logits against transformers', each in processes of its own, from the files on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pairs import KEEP, MOE, TIED, UNTIED, change_tensors, check_of, failed, save_hf
from torch import Tensor
from transformers import AutoTokenizer

from checkpoints_convert import logits as logits_module
from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.logits import LogitsOptions, prepare_logits
from checkpoints_convert.options import Options
from checkpoints_convert.verify import verify
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.ops import InterleaveQKV


def test_random_tokens_over_tensor_parallel_ranks_with_a_rounded_router(originals: Path, tmp_path: Path) -> None:
    hf, routers = tmp_path / "hf", [f"model.layers.{layer}.mlp.gate.weight" for layer in range(MOE.layers)]
    shutil.copytree(originals / "moe", hf)
    change_tensors(hf, lambda tensors: tensors.update({name: tensors[name].float() * 1.001 for name in routers}))
    hf_to_megatron(hf, tmp_path / "megatron", CheckpointLayout(ep=2), Options.parse("bf16", 1))
    found = check_of(verify(hf, tmp_path / "megatron", logits=LogitsOptions(tp=2)), "logits")
    assert found.status == "passed", found
    assert found.measures["max_relative"] < 1e-5
    assert found.measures["argmax_agreement"] == 1
    assert "80 tokens in 2 sequences" in found.detail


def test_prompts_over_pipeline_stages_with_a_checkpoint_that_was_rounded(tmp_path: Path) -> None:
    hf = save_hf(tmp_path / "hf", TIED, torch.float32)
    hf_to_megatron(hf, tmp_path / "megatron", CheckpointLayout(tp=2), Options.parse("bf16", 1))
    options = LogitsOptions(("the lazy dog", "fox"), pp=2)
    found = check_of(verify(hf, tmp_path / "megatron", logits=options), "logits")
    assert found.status == "passed", found
    assert found.measures["max_relative"] < 1e-5
    assert "float32 from bfloat16" in found.detail


def test_prompts_are_tokenised_as_transformers_does(originals: Path) -> None:
    prompts = ("the lazy dog", "fox")
    sequences = prepare_logits(originals / "tied", TIED, LogitsOptions(prompts))
    tokenizer = AutoTokenizer.from_pretrained(originals / "tied")
    assert [tokenizer.decode(tokens).strip() for tokens in sequences] == list(prompts)


def test_random_sequences_have_different_lengths_within_the_context(originals: Path) -> None:
    sequences = prepare_logits(originals / "tied", TIED, LogitsOptions())
    assert sorted(map(len, sequences)) == [16, 64]
    assert {token < TIED.vocab for tokens in sequences for token in tokens} == {True}


def test_logits_tell_queries_keys_and_values_that_are_not_interleaved(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """[q; k; v] in place of Megatron's order: what a converter gets wrong whose shapes are all right."""
    wrong = tmp_path / "wrong"
    shutil.copytree(pair[0], wrong)

    def concatenate(tensors: dict[str, Tensor]) -> None:
        for layer in range(UNTIED.layers):
            names = [f"model.layers.{layer}.self_attn.{x}_proj.weight" for x in "qkv"]
            stacked = torch.cat([tensors[name] for name in names])
            parts = InterleaveQKV().to_hf(stacked, UNTIED)
            tensors.update({name: part.contiguous() for name, part in zip(names, parts, strict=True)})

    change_tensors(wrong, concatenate)
    hf_to_megatron(wrong, tmp_path / "bad", CheckpointLayout(), KEEP)
    report = verify(pair[0], tmp_path / "bad", logits=LogitsOptions(("pack five dozen liquor jugs",)))
    assert failed(report) == {"contents", "logits"}
    assert check_of(report, "logits").measures["max_relative"] > 1e-2


def test_a_checkpoint_that_megatron_cannot_load_fails_the_logits(pair: tuple[Path, Path]) -> None:
    (pair[1] / "__1_1.distcp").unlink()
    found = check_of(verify(*pair, logits=LogitsOptions(("fox",))), "logits")
    assert found.status == "failed"
    assert "Megatron: " in found.detail


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (LogitsOptions(tp=3), "tp=3"),
        (LogitsOptions(pp=3), "pp=3"),
        (LogitsOptions(("fox " * 70,)), r"has \d{3} tokens"),
        (LogitsOptions(("",)), "has 0 tokens"),
    ],
)
def test_logits_that_cannot_be_compared_are_refused_first(originals: Path, options: LogitsOptions, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        verify(originals / "tied", originals / "tied_megatron", logits=options)


def test_logits_need_memory_for_the_model(originals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_module, "available_memory", lambda: 10**9)
    with pytest.raises(ConfigError, match=r"needs 2\.0 GB of memory.*2 processes.*1\.0 GB are available"):
        verify(originals / "tied", originals / "tied_megatron", logits=LogitsOptions(tp=2))

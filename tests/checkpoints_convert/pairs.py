"""Tiny models with a tokenizer, whose every parameter counts; and what damages them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import SHAPES, write_model
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

from checkpoints_convert.options import Options
from checkpoints_convert.verify_report import Check, Report
from megatron_cgrpo.config.model_shape import ModelShape
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.layout import CheckpointLayout

TIED, UNTIED, MOE = SHAPES["qwen2_tied"], SHAPES["qwen3"], SHAPES["qwen3_moe"]
PAIRS: dict[str, tuple[ModelShape, CheckpointLayout]] = {
    "tied": (TIED, CheckpointLayout(tp=2, pp=2)),
    "padded": (UNTIED, CheckpointLayout(tp=2, pp=2, vpp=2, vocab_divisor=8)),
    "moe": (MOE, CheckpointLayout(tp=2, ep=2)),
}
KEEP = Options(None, 2)
WEIGHTS = "model.safetensors"


def save_hf(directory: Path, shape: ModelShape, dtype: torch.dtype = torch.bfloat16) -> Path:
    """With a tokenizer of three tokens less than the vocabulary.

    Parameters have sizes at which attention, norms and feed-forward layers all show in the logits.
    """
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, size in hf_shapes(shape).items():
        noise = torch.randn(size, generator=generator)
        tensors[name] = (1 + 0.2 * noise if "norm" in name else 0.15 * noise).to(dtype)
    write_model(directory, shape, tensors, dtype)
    save_tokenizer(directory, shape.vocab - 3)
    return directory


def save_tokenizer(directory: Path, tokens: int) -> None:
    """Byte pairs, as Qwen's: ids 0 and 1 are the special ones."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    lines = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 5
    trainer = trainers.BpeTrainer(vocab_size=tokens, special_tokens=list(special.values()), show_progress=False)
    backend.train_from_iterator(lines, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrites the file as a writer of such a model would have."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.status == "failed"}


def check_of(report: Report, name: str) -> Check:
    [check] = [check for check in report.checks if check.name == name]
    return check


def text(check: Check) -> str:
    return "\n".join([check.detail, *check.offenders])

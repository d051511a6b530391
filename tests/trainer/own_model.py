"""A model and problems of one's own: a vocabulary of characters, and additions in files."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch
import transformers
from torch import Tensor

from megatron_cgrpo.config.model_shape import QWEN2, ModelShape, hf_config
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.hf_writer import write_hf_directory
from megatron_cgrpo.weights.random_init import RandomWeights

PAD, EOS = 0, 1
SHAPE = ModelShape(QWEN2, 2, 2, 2, 32, 64, 96, vocab=128, max_positions=512)
Weights = Callable[[str, Tensor], Tensor]


def write_own_problems(
    folder: Path, change: Weights = lambda name, tensor: tensor, shape: ModelShape = SHAPE
) -> list[str]:
    """The overrides that train such a model, with random weights or what ``change`` makes of each of them."""
    tokens = ["<pad>", "<eos>", *string.printable]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({token: i for i, token in enumerate(tokens)}))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder / "tokenizer")
    weights = RandomWeights(shape, seed=3)
    tensors = ((name, change(name, weights.read(name))) for name in hf_shapes(shape))
    config = hf_config(shape, EOS, PAD)
    write_hf_directory(folder / "model", tensors, hf_shapes(shape), torch.float32, config, folder / "tokenizer")
    for split in ("train", "test"):
        rows = [{"question": f"{i}+{i}", "answer": str(2 * i % 10)} for i in range(8)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "question.jinja").write_text("{{ question }}")
    return [
        f"model.path={folder / 'model'}",
        "task.kind=file",
        f"task.templates.answer={folder / 'question.jinja'}",
        f"task.train={folder / 'train.jsonl'}",
        f"task.test={folder / 'test.jsonl'}",
        "critic.kind=none",
        "algorithm.refinements=0",
        "checkpoint.every=0",
    ]

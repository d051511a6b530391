"""Tiny random checkpoints of every family, in the layout of the hub, made without transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_cgrpo.config.model_shape import (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    Experts,
    ModelShape,
    RopeScaling,
    hf_config,
)
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes

_DENSE = ModelShape(QWEN3, layers=4, heads=8, kv_heads=4, head_dim=4, hidden=32, ffn=48, vocab=61, max_positions=64)
_EXPERTS = Experts(count=4, per_token=2, ffn=24)
SHAPES = {
    "qwen2": replace(_DENSE, architecture=QWEN2),
    "qwen2_tied": replace(_DENSE, architecture=QWEN2, tied_embeddings=True),
    "qwen3": _DENSE,
    "llama3": replace(_DENSE, architecture=LLAMA, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), max_positions=32768),
    "mistral": replace(_DENSE, architecture=MISTRAL),
    "qwen3_moe": replace(_DENSE, architecture=QWEN3_MOE, experts=_EXPERTS),
    "mixtral": replace(_DENSE, architecture=MIXTRAL, experts=_EXPERTS, ffn=24),
}


def random_tensors(shape: ModelShape, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(size, generator=generator).to(dtype) for name, size in hf_shapes(shape).items()}


def write_model(
    directory: Path,
    shape: ModelShape,
    tensors: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    **config: object,
) -> Path:
    """A Hugging Face directory without tokenizer; ``config`` changes config.json."""
    directory.mkdir(parents=True)
    content = random_tensors(shape, dtype) if tensors is None else tensors
    save_file(content, directory / "model.safetensors", metadata={"format": "pt"})
    written = hf_config(shape, eos_token_id=1, pad_token_id=0) | {"dtype": str(dtype).removeprefix("torch.")} | config
    (directory / "config.json").write_text(json.dumps(written))
    return directory


def assert_same_tensors(first: Path, second: Path) -> None:
    """Names, data types and bits."""
    one, other = HFCheckpoint(first), HFCheckpoint(second)
    assert one.names() == other.names()
    for name in one.names():
        assert one.dtype(name) == other.dtype(name), name
        assert torch.equal(one.read(name).view(torch.uint8), other.read(name).view(torch.uint8)), name


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}

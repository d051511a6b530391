"""Random Hugging Face checkpoints of a given size, and the sizes of one that is too large to make."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from megatron_cgrpo.config.model_shape import QWEN3, ModelShape, hf_config
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.safetensors_stream import StreamedSafetensors
from megatron_cgrpo.weights.tensor_spec import TensorSpec

DTYPE = torch.bfloat16
QWEN3_32B = ModelShape(
    QWEN3, layers=64, heads=64, kv_heads=8, head_dim=128, hidden=5120, ffn=25600, vocab=151936, max_positions=40960
)
_HIDDEN_STEP, _HEAD_DIM = 256, 64
_HIDDEN_PER_LAYER = 85  # width over depth of models of these sizes
_LAYER_SHARE = 0.8  # of the parameters; embedding and head have the rest
_LAYER_MATRICES = 12  # a layer's parameters over the square of its width, with the sizes below
_LEAST_VOCAB = 512


def shape_of(parameters: int) -> ModelShape:
    """A dense, untied Qwen3 of about so many parameters, a fifth of them in embedding and head; an even depth."""
    cube = _LAYER_SHARE * parameters * _HIDDEN_PER_LAYER / _LAYER_MATRICES
    hidden = max(1, round(cube ** (1 / 3) / _HIDDEN_STEP)) * _HIDDEN_STEP
    layer = _LAYER_MATRICES * hidden**2
    layers = 2 * max(1, round(_LAYER_SHARE * parameters / layer / 2))
    vocab = max(_LEAST_VOCAB, round((parameters - layers * layer) / (2 * hidden)) // 2 * 2)
    heads = hidden // _HEAD_DIM
    return ModelShape(
        QWEN3,
        layers=layers,
        heads=heads,
        kv_heads=heads // 2,
        head_dim=_HEAD_DIM,
        hidden=hidden,
        ffn=3 * hidden,
        vocab=vocab,
        max_positions=4096,
    )


def count(shape: ModelShape) -> int:
    """Parameters."""
    return sum(math.prod(size) for size in hf_shapes(shape).values())


def size_name(parameters: int) -> str:
    """500000000 -> 0.50B."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 10**8 else f"{parameters / 1e6:.3g}M"


def nbytes(shape: ModelShape) -> int:
    """Of all weights, in ``DTYPE``."""
    return count(shape) * DTYPE.itemsize


def in_flight(shape: ModelShape, threads: int) -> int:
    """Bytes of the largest weights that ``threads`` can have in work together."""
    sizes = [math.prod(weight.size(shape)) * DTYPE.itemsize for weight in model_weights(shape)]
    return sum(sorted(sizes, reverse=True)[:threads])


def write_model(directory: Path, shape: ModelShape) -> None:
    """Weights, config.json, and a tokenizer with as many words as the model's vocabulary."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    specs = {name: TensorSpec(DTYPE, size) for name, size in hf_shapes(shape).items()}
    with StreamedSafetensors(directory, specs) as writer:
        for name, spec in specs.items():
            writer.write(name, torch.empty(spec.shape, dtype=DTYPE).normal_(0, 0.02, generator=generator))
        writer.finish()
    config = hf_config(shape, eos_token_id=1, pad_token_id=0) | {"dtype": "bfloat16"}
    words = {f"w{number}": number for number in range(shape.vocab)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
        "pre_tokenizer": {"type": "Whitespace"},
    }
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "w0", "eos_token": "w1"},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")


def check_same(first: Path, second: Path) -> None:
    """Raises RuntimeError unless names, data types and every bit of the tensors agree."""
    one, other = HFCheckpoint(first), HFCheckpoint(second)
    if one.names() != other.names():
        raise RuntimeError(f"{first} and {second} have different tensors: the conversion is wrong")
    for name in sorted(one.names()):
        a, b = one.read(name), other.read(name)
        if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(_bits(a), _bits(b)):
            raise RuntimeError(f"{name} differs between {first} and {second}: the conversion is wrong")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16)

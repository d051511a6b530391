"""A policy's weights as an FP8 engine takes them: the layers' matrices in blockwise FP8, everything else as it is.

What is quantised is what publishers of FP8 models quantise: attention's and the feed-forward networks' projections, of
every expert too. Embedding, output layer, norms, biases and routers stay, so about half of the bytes travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from megatron_cgrpo.config.fp8_rollout_checks import FP8_BLOCK
from megatron_cgrpo.weights.fp8_blocks import SCALE_SUFFIX, Fp8Blocks
from megatron_cgrpo.weights.transfer.protocol import TensorMeta

BLOCKS = Fp8Blocks(FP8_BLOCK, FP8_BLOCK)
_LAYERS, _ROUTER = "model.layers.", ".gate.weight"


def is_quantised(name: str, dimensions: int) -> bool:
    """Of the tensor's Hugging Face name and its number of dimensions."""
    return name.startswith(_LAYERS) and dimensions == 2 and not name.endswith(_ROUTER)


def quantised(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same stream, with every quantised matrix as float8_e4m3fn and its float32 scales right behind it."""
    for name, tensor in tensors:
        if is_quantised(name, tensor.dim()):
            values, scale = BLOCKS.quantise(tensor)
            yield name, values
            yield name + SCALE_SUFFIX, scale
        else:
            yield name, tensor


def quantised_metadata(metadata: Iterable[TensorMeta]) -> list[TensorMeta]:
    """What ``quantised`` makes of a stream with this ``metadata``, in its order."""
    result = []
    for meta in metadata:
        if is_quantised(meta.name, len(meta.shape)):
            result.append(TensorMeta(meta.name, torch.float8_e4m3fn, meta.shape))
            scales = BLOCKS.scale_shape(meta.shape)
            result.append(TensorMeta(meta.name + SCALE_SUFFIX, torch.float32, scales))
        else:
            result.append(meta)
    return result


def quantisation_config(names: Iterable[str]) -> dict[str, Any]:
    """``config.json``'s ``quantization_config`` for a model whose weights have these Hugging Face ``names``."""
    routers = [name.removesuffix(".weight") for name in names if name.endswith(_ROUTER)]
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        "modules_to_not_convert": ["lm_head", *routers],
    }

"""FP8 weights with a scale per block, as DeepSeek-V3 and Qwen3-FP8 publish them: made, and turned into bfloat16.

``config.json``: ``quantization_config: {quant_method: fp8, fmt: e4m3, weight_block_size: [rows, columns]}``. Beside
each float8_e4m3fn ``<name>`` [out, in] stands ``<name>_scale_inv`` [ceil(out / rows), ceil(in / columns)], by which
the block is multiplied (the name is that of the inverse of the quantising scale).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.tensor_spec import TensorSpec, dtype_name

SCALE_SUFFIX = "_scale_inv"
DEQUANTISED = torch.bfloat16
_FLOAT8 = frozenset(
    dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and "float8" in str(dtype)
)
_SCALE_DTYPES = (torch.float32, torch.bfloat16)  # DeepSeek's and Qwen's
# float8_e4m3fn -> float32 by its byte: torch converts one number at a time on CPUs, at half the speed of this table.
_VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
_LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
_SMALLEST_BLOCK = 2.0**-100  # a largest value below it counts as it: the scale of a block of zeros is a normal number
_REMEDY = "dequantise the checkpoint to bfloat16 first, or take the publisher's unquantised one"


@dataclass(frozen=True)
class Fp8Blocks:
    """Sizes of a block that shares a scale."""

    rows: int
    columns: int

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the scales of a weight [out, in]."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)

    def quantise(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """float8_e4m3fn [out, in] and float32 scales of ``scale_shape``, on the weight's device.

        A block's scale takes its largest magnitude to the format's largest number, 448. Rounds to the nearest.
        """
        rows, columns = self.scale_shape((weight.shape[0], weight.shape[1]))
        beyond = (0, columns * self.columns - weight.shape[1], 0, rows * self.rows - weight.shape[0])
        blocks = torch.nn.functional.pad(weight.float(), beyond).view(rows, self.rows, columns, self.columns)
        scale = blocks.abs().amax((1, 3)).clamp_(min=_SMALLEST_BLOCK) / _LARGEST
        values = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).view(rows * self.rows, -1)
        return values[: weight.shape[0], : weight.shape[1]].contiguous(), scale

    def dequantise(self, weight: Tensor, scale: Tensor) -> Tensor:
        """float8 [out, in] times its blocks' scales in float32, rounded to bfloat16 [out, in].

        A row of blocks at a time, so that the float32 values of the whole never exist.
        """
        result = torch.empty(weight.shape, dtype=DEQUANTISED)
        for number, row in enumerate(scale.float()):
            part = slice(number * self.rows, (number + 1) * self.rows)
            columns = row.repeat_interleave(self.columns)[: weight.shape[1]]
            values = _VALUES.index_select(0, weight[part].view(torch.uint8).flatten().int())
            result[part] = values.view(-1, weight.shape[1]).mul_(columns)
        return result


def read_quantisation(config: Mapping[str, Any], source: Path) -> Fp8Blocks | None:
    """None where config.json names no quantisation. Raises ConfigError on any but blockwise FP8."""
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return None
    if not isinstance(quantisation, dict):
        raise ConfigError(f"{source}: quantization_config={quantisation!r} is no mapping: the file is damaged")
    supported = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    found = {"quant_method": None, "fmt": "e4m3", "activation_scheme": "dynamic"} | quantisation
    for key, value in supported.items():
        if found[key] != value:
            raise ConfigError(f"{source}: quantization_config.{key}={found[key]!r} is not supported: {_REMEDY}")
    block = quantisation.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ConfigError(
            f"{source}: quantization_config.weight_block_size={block!r} is not supported (scales per block [rows, "
            f"columns] are): {_REMEDY}"
        )
    return Fp8Blocks(*block)


def scaled_names(specs: Mapping[str, TensorSpec], blocks: Fp8Blocks | None, source: Path) -> dict[str, str]:
    """Name of each FP8 tensor -> name of its scales. Raises ConfigError naming one that cannot be dequantised."""
    scales = {}
    for name, spec in specs.items():
        if spec.dtype not in _FLOAT8:
            continue
        scales[name] = name + SCALE_SUFFIX
        if problem := _problem(spec, specs.get(scales[name]), blocks):
            raise ConfigError(f"{source}: tensor {name} is {dtype_name(spec.dtype)}, {problem}: {_REMEDY}")
    return scales


def _problem(spec: TensorSpec, scale: TensorSpec | None, blocks: Fp8Blocks | None) -> str | None:
    if blocks is None:
        return "but config.json has no quantization_config"
    if spec.dtype != torch.float8_e4m3fn or len(spec.shape) != 2:
        return f"shape {spec.shape}: only float8_e4m3fn matrices have scales per block"
    if scale is None:
        return f"but has no tensor {SCALE_SUFFIX} beside it"
    expected = blocks.scale_shape(spec.shape)
    if scale.shape != expected or scale.dtype not in _SCALE_DTYPES:
        return f"but its {SCALE_SUFFIX} is {dtype_name(scale.dtype)} {scale.shape}, not float32 {expected}"
    return None

"""The header of a safetensors file, read and written: names, dtypes, shapes and byte ranges.

The format (https://huggingface.co/docs/safetensors): the header's length n as 8 little-endian bytes, n bytes of JSON,
the data. The tensors' byte ranges cover the data without gap or overlap, so a header tells a truncated file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.tensor_spec import SAFETENSORS_DTYPES, SAFETENSORS_NAMES, TensorSpec

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Header:
    """``offsets`` count from the file's first byte; ``encoded`` is all that stands before the data."""

    specs: dict[str, TensorSpec]
    offsets: dict[str, int]
    encoded: bytes

    @property
    def file_bytes(self) -> int:
        return len(self.encoded) + sum(spec.nbytes for spec in self.specs.values())


def read_header(path: Path) -> Header:
    """Raises ConfigError naming the file where the header is damaged or describes other data than follows it."""
    try:
        return _read(path)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{path} is truncated or corrupt ({error}): download or copy it again") from error


def build_header(specs: Mapping[str, TensorSpec]) -> Header:
    """Data in the order of ``specs``, wider dtypes first, so that each tensor is aligned to its own element size."""
    ordered = sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize)
    content: dict[str, Any] = {_METADATA: {"format": "pt"}}
    offsets, position = {}, 0
    for name, spec in ordered:
        offsets[name], end = position, position + spec.nbytes
        dtype = SAFETENSORS_NAMES[spec.dtype]
        content[name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    encoded = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return Header(dict(ordered), {name: len(encoded) + offset for name, offset in offsets.items()}, encoded)


def _read(path: Path) -> Header:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if size < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        text = file.read(length)
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("the header is no JSON object")
    content.pop(_METADATA, None)
    specs, offsets = {}, {}
    for name, fields in content.items():
        specs[name], offsets[name] = _tensor(name, fields, path)
    _check_cover(specs, offsets, size - _LENGTH_BYTES - length)
    data = _LENGTH_BYTES + length
    return Header(specs, {name: data + offset for name, offset in offsets.items()}, prefix + text)


def _tensor(name: str, fields: dict[str, Any], path: Path) -> tuple[TensorSpec, int]:
    dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype not in SAFETENSORS_DTYPES:
        supported = ", ".join(SAFETENSORS_DTYPES)
        raise ConfigError(f"{path}: tensor {name} has dtype {dtype!r}, which is not supported: save it as {supported}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape {shape} and data_offsets {[begin, end]} of tensor {name}")
    spec = TensorSpec(SAFETENSORS_DTYPES[dtype], tuple(shape))
    if end - begin != spec.nbytes:
        raise ValueError(f"tensor {name} of shape {shape} and dtype {dtype} in {end - begin} bytes")
    return spec, begin


def _check_cover(specs: Mapping[str, TensorSpec], offsets: Mapping[str, int], data_bytes: int) -> None:
    position = 0
    for name in sorted(specs, key=lambda name: (offsets[name], specs[name].nbytes)):
        if offsets[name] != position:
            what = "overlaps the tensor before it" if offsets[name] < position else "follows a gap"
            raise ValueError(f"tensor {name} {what}")
        position += specs[name].nbytes
    if position != data_bytes:
        raise ValueError(f"{data_bytes} bytes of data where the header describes {position}")

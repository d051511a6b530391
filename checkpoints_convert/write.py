"""From any source to a finished directory: the part that the commands share."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from blake3 import blake3

from checkpoints_convert.carry import carry_files
from checkpoints_convert.digest import TensorRecord
from checkpoints_convert.engine import Conversion
from checkpoints_convert.hf_sink import HFSink
from checkpoints_convert.journal import Journal, UnitRecord
from checkpoints_convert.manifest import Manifest, read_manifest
from checkpoints_convert.megatron_sink import MegatronSink
from checkpoints_convert.options import Options, check_one_dtype_a_key
from checkpoints_convert.progress import Progress
from checkpoints_convert.result import Result
from checkpoints_convert.sources import Source
from checkpoints_convert.staging import JOURNAL, check_target, staging
from checkpoints_convert.tokenizer import check_tokenizer
from checkpoints_convert.units import units
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.safetensors_stream import StreamedSafetensors
from megatron_cgrpo.weights.tensor_spec import TensorSpec, dtype_name

_PACKAGES = ("torch", "safetensors")


@dataclass(frozen=True)
class Input:
    """``config_dir`` holds config.json and tokenizer; ``fingerprint`` changes with the weights."""

    source: Source
    shape: ModelShape
    weights_dir: Path
    config_dir: Path
    fingerprint: str


def write_megatron(given: Input, target: Path, layout: CheckpointLayout, options: Options) -> Result:
    """Raises ConfigError for what cannot be converted, before anything is written; RunError for a full disk."""
    shape, all_units = given.shape, units(given.shape)
    check_target(target)
    layout.check(shape)
    dtypes = options.dtypes(given.source, all_units)
    check_one_dtype_a_key(dtypes, all_units, shape)
    tokenizer = check_tokenizer(given.config_dir, shape.vocab)
    started = time.monotonic()
    nbytes = _nbytes(shape, dtypes)
    with staging(target, _job(given, options, layout), nbytes) as partial:
        carry_files(given.config_dir, partial, dtypes)
        sink = MegatronSink(partial, shape, layout)
        conversion = Conversion(given.source, sink, shape, all_units, dtypes, _recorded(given))
        with Progress(str(target), nbytes) as progress:
            records = conversion.run(Journal(partial / JOURNAL), options.threads, progress)
        sink.finish(records, all_units, dtypes)
        manifest = _manifest(given, records, layout)
        manifest.write(partial)
    return Result(target, manifest, tokenizer, nbytes, time.monotonic() - started)


def write_hf(given: Input, target: Path, max_shard_bytes: int, options: Options) -> Result:
    """A directory that ``transformers`` and vLLM load as it is. Raises like ``write_megatron``."""
    shape, all_units = given.shape, units(given.shape)
    check_target(target)
    dtypes = options.dtypes(given.source, all_units)
    specs = {name: TensorSpec(dtypes[name], size) for name, size in hf_shapes(shape).items()}
    tokenizer = check_tokenizer(given.config_dir, shape.vocab)
    started = time.monotonic()
    nbytes = _nbytes(shape, dtypes)
    with staging(target, _job(given, options, max_shard_bytes), nbytes) as partial:
        carry_files(given.config_dir, partial, dtypes)
        with StreamedSafetensors(partial, specs, max_shard_bytes) as writer:
            sink = HFSink(partial, writer)
            conversion = Conversion(given.source, sink, shape, all_units, dtypes, _recorded(given))
            with Progress(str(target), nbytes) as progress:
                records = conversion.run(Journal(partial / JOURNAL), options.threads, progress)
            writer.finish()
        manifest = _manifest(given, records, None)
        manifest.write(partial)
    return Result(target, manifest, tokenizer, nbytes, time.monotonic() - started)


def _nbytes(shape: ModelShape, dtypes: dict[str, torch.dtype]) -> int:
    return sum(TensorSpec(dtypes[name], size).nbytes for name, size in hf_shapes(shape).items())


def _recorded(given: Input) -> dict[str, TensorRecord]:
    earlier = read_manifest(given.weights_dir)
    return earlier.tensors if earlier else {}


def _job(given: Input, options: Options, target: CheckpointLayout | int) -> dict[str, object]:
    """What has to be the same for an interrupted attempt to be continued."""
    return {
        "weights": given.fingerprint,
        "config": blake3((given.config_dir / "config.json").read_bytes()).hexdigest(),
        "dtype": None if options.dtype is None else dtype_name(options.dtype),
        "target": asdict(target) if isinstance(target, CheckpointLayout) else target,
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _manifest(given: Input, records: list[UnitRecord], layout: CheckpointLayout | None) -> Manifest:
    tensors = {name: record for unit in records for name, record in unit.tensors.items()}
    stored = Counter(
        dtype_name(dtype)
        for unit in units(given.shape)
        for weight in unit.weights
        for dtype in given.source.stored_dtypes(weight)
    )
    return Manifest(
        kind="huggingface" if layout is None else "megatron",
        architecture=given.shape.architecture,
        parameters=sum(math.prod(record.shape) for record in tensors.values()),
        stored_dtypes=dict(stored),
        layout=layout,
        tensors=tensors,
    )

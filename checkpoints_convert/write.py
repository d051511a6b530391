"""From any source to a finished directory: the part that the commands share."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from blake3 import blake3

from checkpoints_convert.carry import carry_files
from checkpoints_convert.digest import TensorRecord
from checkpoints_convert.dtypes import check_one_dtype_a_key, written_dtypes
from checkpoints_convert.engine import Conversion, Sink
from checkpoints_convert.hf_sink import HFSink
from checkpoints_convert.journal import Journal, UnitRecord
from checkpoints_convert.manifest import FORMAT, Manifest, read_manifest
from checkpoints_convert.megatron_sink import MegatronSink
from checkpoints_convert.options import Options
from checkpoints_convert.progress import Progress
from checkpoints_convert.result import Result
from checkpoints_convert.sources import Source
from checkpoints_convert.staging import check_target, staging
from checkpoints_convert.tokenizer import check_tokenizer
from checkpoints_convert.units import units
from megatron_cgrpo.config.model_files import CONFIG, carried_files
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.layout import CheckpointLayout
from megatron_cgrpo.weights.tensor_spec import TensorSpec, dtype_name


@dataclass(frozen=True)
class Input:
    """``config_dir`` holds config.json and tokenizer; ``fingerprint`` changes with the weights."""

    source: Source
    shape: ModelShape
    weights_dir: Path
    config_dir: Path
    fingerprint: str


def write_megatron(given: Input, target: Path, layout: CheckpointLayout, options: Options) -> Result:
    """Raises ConfigError for what cannot be converted, before anything is written; RunError where the disk fails."""
    layout.check(given.shape)
    dtypes = written_dtypes(given.source, units(given.shape), options.dtype)
    check_one_dtype_a_key(dtypes, units(given.shape), given.shape)

    def sink(directory: Path) -> Sink:
        return MegatronSink(directory, given.shape, dtypes, layout)

    return _write(given, target, options, dtypes, sink, layout)


def write_hf(given: Input, target: Path, max_shard_bytes: int, options: Options) -> Result:
    """A directory that ``transformers`` and vLLM load as it is. Raises like ``write_megatron``."""
    dtypes = written_dtypes(given.source, units(given.shape), options.dtype)

    def sink(directory: Path) -> Sink:
        return HFSink(directory, given.shape, dtypes, max_shard_bytes)

    return _write(given, target, options, dtypes, sink, max_shard_bytes)


def _write(
    given: Input,
    target: Path,
    options: Options,
    dtypes: dict[str, torch.dtype],
    make_sink: Callable[[Path], Sink],
    form: CheckpointLayout | int,
) -> Result:
    """``form``: a Megatron checkpoint's layout, or the largest safetensors file in bytes."""
    shape = given.shape
    check_target(target)
    tokenizer = check_tokenizer(given.config_dir, shape.vocab)
    started = time.monotonic()
    nbytes = sum(TensorSpec(dtypes[name], size).nbytes for name, size in hf_shapes(shape).items())
    with staging(target, _job(given, options, form), nbytes) as work:
        carry_files(given.config_dir, work.directory, dtypes)
        with closing(make_sink(work.directory)) as sink, Progress(str(target), nbytes) as progress:
            conversion = Conversion(given.source, sink, shape, units(shape), dtypes, _recorded(given))
            records = conversion.run(Journal(work.journal), options.threads, progress)
            sink.finish(records)
        manifest = _manifest(given, records, form if isinstance(form, CheckpointLayout) else None)
        manifest.write(work.directory)
    return Result(target, manifest, tokenizer, nbytes, time.monotonic() - started)


def _recorded(given: Input) -> dict[str, TensorRecord]:
    earlier = read_manifest(given.weights_dir)
    return earlier.tensors if earlier else {}


def _job(given: Input, options: Options, form: CheckpointLayout | int) -> dict[str, object]:
    """What has to be the same for an interrupted attempt to be continued."""
    files = blake3()
    for name in (Path(CONFIG), *carried_files(given.config_dir)):
        files.update(f"{name}\0".encode() + blake3((given.config_dir / name).read_bytes()).digest())
    return {
        "format": FORMAT,
        "weights": given.fingerprint,
        "files": files.hexdigest(),
        "dtype": None if options.dtype is None else dtype_name(options.dtype),
        "form": asdict(form) if isinstance(form, CheckpointLayout) else form,
        "torch": version("torch"),
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

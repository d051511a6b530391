"""What a checkpoint holds, from headers, indices and manifests: no tensor is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from checkpoints_convert.inspect_report import Contents, DtypeCount, Kind
from checkpoints_convert.locate import megatron_directory
from checkpoints_convert.manifest import MANIFEST
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.hf_config import read_model_shape
from megatron_cgrpo.config.json_object import read_json_object
from megatron_cgrpo.config.model_files import (
    CONFIG,
    GENERATION_CONFIG,
    MEGATRON_CONFIG,
    carried_files,
    is_megatron,
)
from megatron_cgrpo.weights.coverage import MODEL_PREFIXES
from megatron_cgrpo.weights.families import EMBEDDING, HF_EMBEDDING, HF_HEAD, OUTPUT
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.tensor_spec import TensorSpec, dtype_name
from megatron_cgrpo.weights.torch_dist import COMMON, TorchDistCheckpoint

_RUN_MANIFEST, _POLICY = "manifest.json", "policy"
_HF_EMBEDDINGS = (HF_EMBEDDING, HF_HEAD)
_ITERATION = re.compile(r"iter_(\d+)")
_RANK = re.compile(r"__(\d+)_\d+\.distcp")
_TELLING = (EMBEDDING, "linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight", OUTPUT)
"""Ends of the keys whose chunks show how the model was laid out."""


def inspect(directory: Path) -> Contents:
    """Raises ConfigError where the directory holds no checkpoint, or one whose metadata is damaged."""
    if (directory / CONFIG).is_file() and not is_megatron(directory):
        return _huggingface(directory)
    try:
        weights = megatron_directory(directory)
    except ConfigError as error:
        raise ConfigError(
            f"{directory}: holds no checkpoint: neither config.json and *.safetensors (Hugging Face), nor .metadata "
            "and metadata.json (Megatron, also in policy/ of a training run's step_*), nor a "
            "latest_checkpointed_iteration.txt that leads there (Megatron-LM): name such a directory"
        ) from error
    return _megatron(directory, weights)


def _huggingface(directory: Path) -> Contents:
    checkpoint = HFCheckpoint(directory)
    model = _Architecture(directory)
    names = checkpoint.names() - ({HF_HEAD} if model.tied else set())
    specs = {name: TensorSpec(checkpoint.stored_dtype(name), checkpoint.shape(name)) for name in names}
    safetensors = any(directory.glob("*.safetensors"))
    transformers_version = model.config.get("transformers_version")
    packages = {"transformers": str(transformers_version)} if transformers_version else {}
    return Contents(
        kind="huggingface",
        directory=str(directory),
        format="safetensors" if safetensors else "torch .bin",
        architecture=model.name,
        shape=model.shape,
        parameters=_elements(specs.values()),
        parameters_without_embeddings=_elements(spec for n, spec in specs.items() if n not in _HF_EMBEDDINGS),
        dtypes=_dtypes(specs.values()),
        layout=None,
        step=None,
        state=dict.fromkeys(("optimizer", "schedule", "random"), False),
        tokenizer_files=_tokenizer_files(directory),
        packages=packages | _json(directory / MANIFEST).get("packages", {}),
        files=_sizes(directory),
        notes=model.notes,
    )


def _megatron(directory: Path, weights: Path) -> Contents:
    checkpoint = TorchDistCheckpoint(weights)
    model = _Architecture(weights)
    conversion = _json(weights / MANIFEST)
    run = _json(weights.parent / _RUN_MANIFEST) if weights.name == _POLICY else {}
    common, notes = _common(weights)
    kind: Kind = "megatron"
    if conversion:
        kind = "converted"
    elif run:
        kind = "training"
    elif _ITERATION.fullmatch(weights.name) or weights != directory:
        kind = "megatron-lm"
    specs = {key: spec for key, spec in checkpoint.tensors.items() if key.startswith(MODEL_PREFIXES)}
    counted = {key: model.without_padding(key, spec) for key, spec in specs.items()}
    backend = read_json_object(weights / MEGATRON_CONFIG)
    return Contents(
        kind=kind,
        directory=str(weights),
        format=f"{backend['sharded_backend']} {backend.get('sharded_backend_version', '')}".strip(),
        architecture=model.name,
        shape=model.shape,
        parameters=_elements(counted.values()),
        parameters_without_embeddings=_elements(s for key, s in counted.items() if key not in (EMBEDDING, OUTPUT)),
        dtypes=_dtypes(specs.values()),
        layout=_layout(checkpoint, conversion, run),
        step=_step(weights, run, common),
        state=_state(checkpoint, common),
        tokenizer_files=_tokenizer_files(weights),
        packages=conversion.get("packages", {}) | run.get("packages", {}),
        files=_sizes(weights),
        notes=[*model.notes, *notes],
    )


class _Architecture:
    """What config.json says; nothing of it is needed."""

    def __init__(self, directory: Path) -> None:
        self.config = _json(directory / CONFIG)
        names = self.config.get("architectures") or [None]
        self.name: str | None = names[0]
        self.shape: dict[str, Any] | None = None
        self.notes: list[str] = []
        self.tied = self.config.get("tie_word_embeddings") is True
        if not self.config:
            self.notes.append("no config.json: the architecture is not known, and padding counts as parameters")
            return
        try:
            shape = read_model_shape(directory, "config.json")
        except ConfigError as error:
            self.notes.append(f"not supported: {error}")
        else:
            self.shape, self.tied = asdict(shape), shape.tied_embeddings

    def without_padding(self, key: str, spec: TensorSpec) -> TensorSpec:
        vocab = self.config.get("vocab_size")
        if key in (EMBEDDING, OUTPUT) and isinstance(vocab, int):
            return TensorSpec(spec.dtype, (min(vocab, spec.shape[0]), *spec.shape[1:]))
        return spec


def _layout(checkpoint: TorchDistCheckpoint, conversion: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """What was written down, else what the chunks show: data and pipeline parallelism leave no trace in them."""
    for source, known in ((MANIFEST, conversion), (_RUN_MANIFEST, run)):
        if isinstance(known.get("layout"), dict):
            return {"source": source, **known["layout"]}
    chunks = {}
    for end in _TELLING:
        if key := next((key for key in sorted(checkpoint.tensors) if _is_telling(key, end)), None):
            offsets = [chunk.offset for chunk in checkpoint.chunks if chunk.key == key]
            chunks[key] = [len(set(axis)) for axis in zip(*offsets, strict=True)]
    files = {chunk.file for chunk in checkpoint.chunks}
    ranks = {match[1] for file in files if (match := _RANK.fullmatch(file))}
    split = [counts[-1] for key, counts in chunks.items() if key.endswith("linear_proj.weight")]
    return {"source": "chunks", "tp": split[0] if split else None, "writing_ranks": len(ranks), "chunks": chunks}


def _is_telling(key: str, end: str) -> bool:
    return key.startswith(MODEL_PREFIXES) and (key == end or key.endswith(f".{end}"))


def _state(checkpoint: TorchDistCheckpoint, common: dict[str, Any] | None) -> dict[str, bool | None]:
    keys = [*checkpoint.tensors, *checkpoint.objects]
    schedule = None if common is None else any(name in common for name in ("scheduler", "opt_param_scheduler"))
    return {
        "optimizer": any("optimizer." in key for key in keys),
        "schedule": schedule,
        "random": any(key.startswith(("random", "rng_state")) for key in keys),
    }


def _common(weights: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The unsharded state, as far as it is plain values: nothing in it may run code."""
    try:
        content = torch.load(weights / COMMON, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign archive raises whatever its parser raises
        reason = str(error).strip().splitlines()[0]
        return None, [f"{COMMON} cannot be read as plain values, so that schedule and step may be unknown ({reason})"]
    return (content, []) if isinstance(content, dict) else (None, [f"{COMMON} is no dictionary"])


def _step(weights: Path, run: dict[str, Any], common: dict[str, Any] | None) -> int | None:
    if isinstance(step := run.get("step", (common or {}).get("iteration")), int):
        return step
    named = _ITERATION.fullmatch(weights.name)
    return int(named[1]) if named else None


def _elements(specs: Iterable[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) for spec in specs)


def _dtypes(specs: Iterable[TensorSpec]) -> dict[str, DtypeCount]:
    by_dtype: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        by_dtype.setdefault(dtype_name(spec.dtype), []).append(spec)
    return {
        name: DtypeCount(len(found), _elements(found), sum(spec.nbytes for spec in found))
        for name, found in sorted(by_dtype.items())
    }


def _tokenizer_files(directory: Path) -> list[str]:
    return [str(file) for file in carried_files(directory) if file.name != GENERATION_CONFIG]


def _sizes(directory: Path) -> dict[str, int]:
    return dict(_walk(directory))


def _walk(directory: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(directory)), path.stat().st_size


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file. Raises ConfigError for a damaged one."""
    return read_json_object(path) if path.is_file() else {}

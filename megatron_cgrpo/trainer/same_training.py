"""What has to be the same for two recipes to compute the same: for resuming, and for using a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import MEGATRON_INDEX
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.section import Section

# Sections and keys that decide how a run runs and what it shows, not what it computes.
_FREE_SECTIONS = ("run", "parallel", "checkpoint", "observe", "sync", "guard", "slurm")
_FREE_KEYS = {
    "train": {"steps", "compute_of", "micro_batch_tokens", "packed", "threads", "progress_timeout_s"},
    "evaluation": {"every"},
    "task": {"workers", "allow_weak_sandbox"},
    "rollout": {
        "engines",
        "tensor_parallel",
        "kv_cache_mib",
        "gpu_memory_utilization",
        "max_concurrent_sequences",
        "placement",
        "prefix_caching",
        "schedule",
        "stages",
        "threads",
        "start_timeout_s",
        "progress_timeout_s",
    },
    "model": {"path", "implementation", "logprob_chunk", "fusions", "recompute"},
    "model.fp8": set(),
    "model.moe": {"dispatcher", "grouped_gemm", "permute_fusion"},
    "optimizer": {"implementation"},
    "warm_start": {"cache_dir", "tp", "dp", "micro_batch_tokens"},
    # How a server is reached and what it costs, not which model answers; where a model lies and how many engines.
    "critic.api": {
        "base_url",
        "api_key_env",
        "concurrency",
        "timeout_s",
        "retries",
        "deadline_s",
        "down_after",
        "price_in",
        "price_out",
    },
    "critic.model": {"path", "engines", "tensor_parallel"},
}
_BLOCKS, _BLOCK_BYTES = 256, 1 << 16


def check_same(recipe: Recipe, earlier: dict[str, Any], sections: Iterable[str] | None = None) -> None:
    """Raises ConfigError naming each difference that matters; ``sections`` limits what is compared (None: all).

    A key that the release that wrote ``earlier`` did not have had its default.
    """
    now, earlier = recipe.model_dump(mode="json"), _with_defaults(recipe, earlier)
    problems: list[str] = []
    for section in sections or [name for name in now if name not in _FREE_SECTIONS]:
        problems += _differences(section, now[section], earlier.get(section))
    if problems:
        raise ConfigError(sorted(problems))


def _with_defaults(like: Section, earlier: dict[str, Any]) -> dict[str, Any]:
    """``earlier`` with the keys of ``like``'s sections that it lacks, wherever both have the section."""
    defaults = type(like).model_construct().model_dump(mode="json")
    return {key: _section_with_defaults(getattr(like, key, None), value) for key, value in (defaults | earlier).items()}


def _section_with_defaults(like: Any, earlier: Any) -> Any:
    if isinstance(like, Section) and isinstance(earlier, dict):
        return _with_defaults(like, earlier)
    if isinstance(like, Sequence) and isinstance(earlier, list) and len(like) == len(earlier):
        return [_section_with_defaults(*pair) for pair in zip(like, earlier, strict=True)]
    return earlier


def _differences(section: str, now: Any, then: Any) -> list[str]:
    if not isinstance(now, dict) or not isinstance(then, dict):
        return [] if now == then else [_sentence(section, now, then)]
    free = _FREE_KEYS.get(section, set())
    found: list[str] = []
    for key in sorted((now.keys() | then.keys()) - free):
        name = f"{section}.{key}"
        if name in _FREE_KEYS:
            found += _differences(name, now.get(key), then.get(key))
        elif now.get(key) != then.get(key):
            found.append(_sentence(name, now.get(key), then.get(key)))
    return found


def _sentence(key: str, now: Any, then: Any) -> str:
    return f"{key}={now}: the run was started with {then}: use that, or start a new run in another run.dir"


def model_fingerprint(model_dir: Path) -> str:
    """16 hex digits over config, tokenizer and weights. Two models of one shape have different ones.

    Weight files of up to 16 MiB are read whole; of larger ones 256 blocks, spread evenly from the first byte to the
    last, so that the cost is bounded. It is no content hash: a change between the blocks goes unseen.
    """
    digest = blake3()
    for path in sorted(model_dir.iterdir()):
        if path.suffix == ".json" or path.name == MEGATRON_INDEX:  # every save gives the index an identity of its own
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        elif path.suffix in (".safetensors", ".bin", ".distcp"):
            _sample_bytes(path, digest)
    return digest.hexdigest(length=8)


def _sample_bytes(path: Path, digest: blake3) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        if size <= _BLOCKS * _BLOCK_BYTES:
            digest.update(file.read())
            return
        for block in range(_BLOCKS):
            offset = (size - _BLOCK_BYTES) * block // (_BLOCKS - 1)
            digest.update(os.pread(file.fileno(), _BLOCK_BYTES, offset))

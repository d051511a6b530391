"""What has to be the same for two recipes to compute the same: for resuming, and for using a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model_files import MEGATRON_INDEX
from megatron_cgrpo.config.recipe import Recipe

# Sections and keys that decide how a run runs and what it shows, not what it computes.
_FREE_SECTIONS = ("run", "parallel", "checkpoint", "observe", "sync", "guard")
_FREE_KEYS = {
    "train": {"steps", "compute_of", "micro_batch_tokens", "packed", "threads"},
    "evaluation": {"every"},
    "task": {"workers", "allow_weak_sandbox"},
    "rollout": {
        "engines",
        "tensor_parallel",
        "kv_cache_mib",
        "gpu_memory_utilization",
        "max_concurrent_sequences",
        "prefix_caching",
        "threads",
        "start_timeout_s",
        "progress_timeout_s",
    },
    "model": {"path", "implementation", "logprob_chunk", "recompute"},
    "warm_start": {"cache_dir", "tp", "dp", "micro_batch_tokens"},
    # How a server is reached and what it costs, not which model answers; where a model lies and how many engines.
    "critic.api": {"base_url", "api_key_env", "concurrency", "timeout_s", "retries", "price_in", "price_out"},
    "critic.model": {"path", "engines", "tensor_parallel"},
}


def check_same(recipe: Recipe, earlier: dict[str, Any], sections: Iterable[str] | None = None) -> None:
    """Raises ConfigError naming each difference that matters; ``sections`` limits what is compared (None: all)."""
    now = recipe.model_dump(mode="json")
    problems: list[str] = []
    for section in sections or [name for name in now if name not in _FREE_SECTIONS]:
        problems += _differences(section, now[section], earlier.get(section))
    if problems:
        raise ConfigError(sorted(problems))


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
    """16 hex digits over the small files' contents and the weight files' sizes: enough to tell models apart."""
    digest = hashlib.sha256()
    for path in sorted(model_dir.iterdir()):
        if path.suffix == ".json" or path.name == MEGATRON_INDEX:  # every save gives the index an identity of its own
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix in (".safetensors", ".bin", ".distcp"):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]

"""Sampling seeds: a pure function of what is sampled, so that a run is reproducible in any order of execution."""

from __future__ import annotations

import hashlib
from typing import Literal

Stage = Literal["generate", "critique", "refine", "select", "evaluate"]

SEED_BITS = 48
"""Far below vLLM's 63 bits (``n`` continuations use ``seed … seed + n - 1``), and exact in any JSON reader."""


def request_seed(run_seed: int, step: int, prompt_id: str, stage: Stage, index: int = 0) -> int:
    """A seed in ``[0, 2**48)``; ``index`` tells apart the requests that one prompt makes in one stage."""
    key = "\x1f".join((str(run_seed), str(step), prompt_id, stage, str(index)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=SEED_BITS // 8).digest(), "big")

"""What a finished conversion reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checkpoints_convert.manifest import Manifest
from checkpoints_convert.tokenizer import TokenizerReport


@dataclass(frozen=True)
class Result:
    """``nbytes`` of weights; ``seconds`` that this process took, without what an earlier attempt had done."""

    directory: Path
    manifest: Manifest
    tokenizer: TokenizerReport
    nbytes: int
    seconds: float

"""Megatron ``dist_checkpointing`` in one layout -> the same weights in another."""

from __future__ import annotations

from pathlib import Path

from checkpoints_convert.megatron_to_hf import megatron_input
from checkpoints_convert.options import Options
from checkpoints_convert.result import Result
from checkpoints_convert.write import write_megatron
from megatron_cgrpo.weights.layout import CheckpointLayout


def reshard(
    megatron: Path, target: Path, layout: CheckpointLayout, options: Options, config: Path | None = None
) -> Result:
    """Any layout loads any checkpoint; one whose chunks are the ranks' own is read with fewer, larger requests.

    The model weights alone: a training run resumes from its own checkpoints, whatever its layout.
    """
    return write_megatron(megatron_input(megatron, config), target, layout, options)

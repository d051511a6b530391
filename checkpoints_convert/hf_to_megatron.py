"""Hugging Face safetensors -> Megatron ``dist_checkpointing``."""

from __future__ import annotations

from pathlib import Path

from checkpoints_convert.options import Options
from checkpoints_convert.result import Result
from checkpoints_convert.sources import HFSource
from checkpoints_convert.write import Input, write_megatron
from megatron_cgrpo.config.hf_config import read_model_shape
from megatron_cgrpo.weights.layout import CheckpointLayout


def hf_input(hf: Path) -> Input:
    """Raises ConfigError where the directory cannot be converted."""
    shape = read_model_shape(hf, "--hf")
    source = HFSource(hf, shape)
    return Input(source, shape, hf, hf, source.checkpoint.fingerprint())


def hf_to_megatron(hf: Path, megatron: Path, layout: CheckpointLayout, options: Options) -> Result:
    """Writes ``megatron``, chunked as the ranks of ``layout`` would have saved it; any layout can load it."""
    return write_megatron(hf_input(hf), megatron, layout, options)

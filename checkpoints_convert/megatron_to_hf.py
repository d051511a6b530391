"""Megatron ``dist_checkpointing``, converted or trained -> Hugging Face safetensors."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from checkpoints_convert.locate import config_directory, megatron_directory
from checkpoints_convert.manifest import MANIFEST
from checkpoints_convert.options import Options
from checkpoints_convert.result import Result
from checkpoints_convert.write import Input, write_hf
from megatron_cgrpo.config.hf_config import read_model_shape
from megatron_cgrpo.weights.megatron_weights import MegatronSource
from megatron_cgrpo.weights.safetensors_stream import MAX_SHARD_BYTES


def megatron_input(megatron: Path, config: Path | None = None) -> Input:
    """``config`` is the Hugging Face directory of the architecture, where the checkpoint carries no config.json."""
    weights_dir = megatron_directory(megatron)
    config_dir = config_directory(weights_dir, config)
    shape = read_model_shape(config_dir, "--config" if config else "--megatron")
    source = MegatronSource(weights_dir, shape)
    digest = blake3(source.checkpoint.fingerprint().encode())
    if (weights_dir / MANIFEST).is_file():  # what we write has no identity of its own but the hashes
        digest.update((weights_dir / MANIFEST).read_bytes())
    return Input(source, shape, weights_dir, config_dir, digest.hexdigest())


def megatron_to_hf(
    megatron: Path, hf: Path, options: Options, config: Path | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Result:
    """Writes ``hf`` from the model weights of a checkpoint of any layout; optimiser state stays behind."""
    return write_hf(megatron_input(megatron, config), hf, max_shard_bytes, options)

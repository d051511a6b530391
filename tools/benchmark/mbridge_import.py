"""Time and memory of mbridge's import of a Qwen3 checkpoint on CPU ranks, followed by Megatron's own save.

    python tools/benchmark/mbridge_import.py --hf DIR --megatron DIR --tp 2 --pp 2

Needs mbridge, which is none of this project's requirements. As it is, mbridge needs Transformer Engine and CUDA. Here
Megatron's local layers stand in for the former and the project's CPU layer for the latter; reading, converting,
scattering and saving are mbridge's and Megatron's own code. Prints one line of JSON a rank: seconds and bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

# What Transformer Engine, whose names mbridge maps, calls the norms of the local layers.
_FUSED = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--megatron", type=Path, required=True)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--memory-efficient", action="store_true", help="mbridge's memory_efficient=True")
    options = parser.parse_args()
    options.megatron.mkdir(parents=True)
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    multiprocessing.spawn(run_rank, (meeting.port, options), nprocs=options.tp * options.pp)


def run_rank(rank: int, port: int, options: argparse.Namespace) -> None:
    from megatron_cgrpo.actor import cpu_device

    cpu_device.install()
    torch.set_num_threads(1)
    world = options.tp * options.pp
    dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", port), rank=rank, world_size=world)
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from transformers import AutoConfig

    parallel_state.initialize_model_parallel(options.tp, options.pp)
    model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    torch.nn.Module.cuda = lambda self, *_: self
    torch.cuda.current_device = lambda: torch.device("cpu")
    config = AutoConfig.from_pretrained(options.hf)
    config.rope_theta = 1e6  # transformers 5 keeps it elsewhere; no weight depends on it
    bridge = local_bridge()(config)
    bridge.set_extra_args(use_cpu_initialization=True, perform_initialization=False, gradient_accumulation_fusion=False)
    dist.barrier()
    before, started = peak_rss(), time.monotonic()
    models = bridge.get_model()
    with torch.no_grad():
        bridge.load_weights(models, str(options.hf), memory_efficient=options.memory_efficient)
    dist.barrier()
    loaded = time.monotonic()
    dist_checkpointing.save(models[0].module.sharded_state_dict(), str(options.megatron))
    if rank == 0:
        os.sync()
    dist.barrier()
    saved = time.monotonic()
    seconds = {"load": loaded - started, "save": saved - loaded}
    found = {"rank": rank, **seconds, "rss_before": before, "peak_rss": peak_rss()}
    os.write(1, f"{json.dumps(found)}\n".encode())  # at once: the ranks share the output


def local_bridge() -> type[Any]:
    """mbridge's Qwen3 on layers that run without Transformer Engine."""
    from mbridge.models.qwen3 import Qwen3Bridge
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

    from megatron_cgrpo.actor.norm import RMSNorm

    class LocalQwen3(Qwen3Bridge):
        def _get_transformer_layer_spec(self, vp_stage: int | None = None) -> Any:
            self.has_vp_stage = True
            layer = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
            attention = layer.submodules.self_attention.submodules
            layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
            attention.q_layernorm = attention.k_layernorm = RMSNorm
            return TransformerBlockSubmodules([layer] * get_num_layers_to_build(self.config), RMSNorm)

        def _weight_name_mapping_mcore_local_to_global(self, model: Any) -> dict[str, str]:
            names = super()._weight_name_mapping_mcore_local_to_global(model)
            for local, fused in _FUSED.items():
                names = {key: name.replace(local, fused) for key, name in names.items()}
            return names

    return LocalQwen3


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

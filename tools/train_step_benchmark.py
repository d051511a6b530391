"""Tokens per second and model FLOPs utilisation of a training step, precisions side by side on one device.

    python tools/train_step_benchmark.py                                          # about 1.2B parameters, on a GPU
    python tools/train_step_benchmark.py --model DIR --tokens 16384 --json        # the shape of another model
    python tools/train_step_benchmark.py --layers 2 --hidden 64 --ffn 128 --heads 4 --kv-heads 2 --vocab 512 \\
        --length 128 --tokens 256 --rounds 3                                      # whether it works, on a CPU too

A step is what `mcgrpo train` computes with one mini-batch: forward and backward pass of the policy-gradient objective
through Megatron's schedule, gradient reduction, clipping, AdamW. Weights are random, rows full. In every round each
precision makes one step, so that what else the machine does meets all of them; ratios are of steps of one round.
Utilisation is `config/flops.py`'s count over time and the peak for bfloat16 (FP8's too: what is divided by does not
move with the precision). Precisions that the device has no products for are left out by name.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.machine import Machine, check_machine
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.actor.policy import MegatronPolicy, PolicySpec
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.flops import training_flops
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import QWEN3, ModelShape, read_model_shape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.microbatch import MicroBatch
from megatron_cgrpo.types import TrainRow
from megatron_cgrpo.weights.random_init import RandomWeights

RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
PRECISIONS = ("fp32", "bf16", *RECIPES)
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "H800": 989.0, "A100": 312.0, "B200": 2250.0}
"""Dense bfloat16, from NVIDIA's data sheets, of the SXM modules."""
WARM_UP = 3


def main() -> None:
    options = _options()
    shape = read_model_shape(options.model) if options.model else _shape(options)
    results = measure(shape, options)
    print(json.dumps(results, indent=2) if options.json else table(results))


def measure(shape: ModelShape, options: argparse.Namespace) -> dict[str, Any]:
    """One rank in this process. Seconds per step are lists, one value a round."""
    cuda = torch.cuda.is_available()
    wanted = options.precisions or (["bf16", *RECIPES] if cuda else ["fp32", "bf16"])
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    parallel = ParallelConfig()
    state = ParallelState.start(parallel, 0, Endpoint("127.0.0.1", meeting.port), seed=1)
    left_out: dict[str, str] = {}
    steps: dict[str, tuple[MegatronPolicy, list[MicroBatch]]] = {}
    for name in wanted:
        model = model_config(name, options)
        try:
            check_machine(model, parallel, OptimizerConfig(), True, Machine.here())
        except ConfigError as error:
            left_out[name] = str(error)
            continue
        steps[name] = _policy(shape, model, state), _batches(shape, model, options, state)
    seconds = _alternate(steps, options.rounds, cuda)
    state.stop()
    lengths = [options.length] * (options.tokens // options.length)
    return _figures(shape, seconds, lengths, options.peak_tflops or _peak()) | {"left_out": left_out}


def model_config(name: str, options: argparse.Namespace) -> ModelConfig:
    dtype = "float32" if name == "fp32" else "bfloat16"
    parameters = options.fp8_parameters and name != "delayed"
    fp8 = {"recipe": name, "parameters": parameters} if name in RECIPES else {}
    return ModelConfig(dtype=dtype, fp8=fp8, recompute={"granularity": options.recompute})


def _policy(shape: ModelShape, model: ModelConfig, state: ParallelState) -> MegatronPolicy:
    spec = PolicySpec(shape, model, ParallelConfig(), OptimizerConfig(lr=1e-6), total_updates=10_000, seed=1)
    policy = MegatronPolicy(spec, state)
    policy.load(RandomWeights(shape, seed=1).read)
    return policy


def _batches(
    shape: ModelShape, model: ModelConfig, options: argparse.Namespace, state: ParallelState
) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(1)
    count, prompt = options.tokens // options.length, options.length // 8
    rows = [
        TrainRow(
            token_ids=torch.randint(0, shape.vocab, (options.length,), generator=generator).tolist(),
            prompt_length=prompt,
            advantage=1.0 if index % 2 else -1.0,
            weight=1 / (count * (options.length - prompt)),
        )
        for index in range(count)
    ]
    each = max(1, options.micro_batch_tokens // options.length)
    shares = [rows[start : start + each] for start in range(0, count, each)]
    return build_microbatches(shares, Layout.of(ParallelConfig(), True, model), state.device)


def _alternate(
    steps: dict[str, tuple[MegatronPolicy, list[MicroBatch]]], rounds: int, cuda: bool
) -> dict[str, list[float]]:
    objective = objectives.policy_gradient(replace(LossSpec(), correction="none"))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + rounds):
        order = list(steps) if number % 2 else list(reversed(steps))
        for name in order:
            policy, batches = steps[name]
            start = time.perf_counter()
            policy.update(batches, objective)
            if cuda:
                torch.cuda.synchronize()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _figures(
    shape: ModelShape, seconds: dict[str, list[float]], lengths: list[int], peak: float | None
) -> dict[str, Any]:
    flops, precisions = training_flops(shape, lengths), {}
    for name, each in seconds.items():
        ratios = [base / own for base, own in zip(seconds.get("bf16", []), each, strict=False)]
        precisions[name] = {
            "seconds": each,
            "tokens_per_s": sum(lengths) / median(each),
            "mfu": flops / median(each) / (peak * 1e12) if peak else None,
            "speed_over_bf16": [min(ratios), median(ratios), max(ratios)] if ratios else None,
        }
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "peak_tflops": peak,
        "parameters_met_by_a_token": shape.parameters,
        "flops_per_step": flops,
        "tokens_per_step": sum(lengths),
        "precisions": precisions,
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        f"{results['device']}: {results['parameters_met_by_a_token'] / 1e9:.3g}B parameters, "
        f"{results['tokens_per_step']} tokens a step",
        f"{'precision':<12}{'tokens/s':>10}{'MFU':>8}   speed over bf16: least, median, most",
    ]
    for name, found in results["precisions"].items():
        mfu = "" if found["mfu"] is None else f"{found['mfu']:.1%}"
        ratios = " ".join(f"{ratio:.2f}" for ratio in found["speed_over_bf16"] or [])
        lines.append(f"{name:<12}{found['tokens_per_s']:>10.0f}{mfu:>8}   {ratios}")
    return "\n".join(lines + [f"left out: {reason}" for reason in results["left_out"].values()])


def _peak() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def _shape(options: argparse.Namespace) -> ModelShape:
    return ModelShape(
        architecture=QWEN3,
        layers=options.layers,
        heads=options.heads,
        kv_heads=options.kv_heads,
        head_dim=options.hidden // options.heads,
        hidden=options.hidden,
        ffn=options.ffn,
        vocab=options.vocab,
        max_positions=options.length,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", type=Path, help="a model directory, of which the shape is taken")
    sizes = {"layers": 8, "hidden": 4096, "ffn": 8192, "heads": 32, "kv-heads": 8, "vocab": 32768}
    for name, value in (sizes | {"length": 4096, "tokens": 16384, "micro-batch-tokens": 8192, "rounds": 10}).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} unless given")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="all that the device has")
    parser.add_argument("--fp8-parameters", action="store_true", help="but for delayed scaling, which has none")
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--peak-tflops", type=float, help="of bfloat16; known for some GPUs")
    return parser.parse_args()


if __name__ == "__main__":
    main()

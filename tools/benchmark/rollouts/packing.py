"""Padding of long-tailed rows: packed and padded micro-batches in a run, and the schedule for other layouts."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch
from benchmark.ratios import Goal, Spread, ratio
from benchmark.rollouts.bench import QUICK, Bench, Section, Size, spread, values
from benchmark.rollouts.streaming import SETTING as LONG_TAILED
from benchmark.setting import Setting

from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.packing import schedule
from megatron_cgrpo.types import TrainRow

MICRO_BATCH_TOKENS = 2048
SECTIONS = {
    "algorithm": {"preset": "r1_drgrpo"},
    "parallel": {"dp": 2},
    "rollout": {"engines": 2},
    "train": {"micro_batch_tokens": MICRO_BATCH_TOKENS},
}
LAYOUTS = {
    "dp=2": ParallelConfig(dp=2),
    "tp=2 with sequence parallelism": ParallelConfig(tp=2, sequence_parallel=True),
    "pp=2 vpp=2, micro-batches of one shape": ParallelConfig(pp=2, vpp=2),
}
FULL, BRIEF = Size(repeats=2, steps=4), QUICK

_PADDING = "padding share, packed"


def measure(bench: Bench) -> Section:
    setting = bench.setting(replace(LONG_TAILED, problems="easy"))
    variants = {"packed": ["train.packed=true"], "padded": ["train.packed=false"]}
    runs = bench.alternate("packing", setting, SECTIONS, variants)
    packed, padded = runs["packed"], runs["padded"]
    update = {name: values(own, lambda steps: steps.total("time.update")) for name, own in runs.items()}
    figures = {
        _PADDING: spread(packed, lambda steps: steps.mean("packing.padding")),
        "padding share, padded": spread(padded, lambda steps: steps.mean("packing.padding")),
        "balance of the replicas, packed": spread(packed, lambda steps: steps.mean("packing.balance")),
        "update time, packed / padded": ratio(update["packed"], update["padded"]),
    }
    for name, layout in LAYOUTS.items():
        shares = [padding(lengths(setting, seed), setting, layout) for seed in range(bench.size.repeats)]
        figures[f"padding share of the schedule, {name}"] = Spread(tuple(shares))
    limited = [name for name in figures if name.startswith("padding") and "padded" not in name]
    goals = dict.fromkeys(limited, Goal(most=0.05))
    return Section(figures, goals, {"micro-batch tokens": MICRO_BATCH_TOKENS})


def lengths(setting: Setting, seed: int) -> list[int]:
    """Prompt and response of a step's samples, drawn as the model draws them."""
    rng = Random(seed)
    tail = setting.chain.response
    drawn = []
    for _ in range(setting.samples):
        mean = tail.long if rng.random() < tail.of_long else tail.short
        words = 1
        while rng.random() > 1 / mean:
            words += 1
        drawn.append(setting.prompt_tokens + min(words + 2, setting.max_response))
    return drawn


def padding(row_lengths: list[int], setting: Setting, parallel: ParallelConfig) -> float:
    """The share of the positions that the trainer computes on and that hold no token of a row."""
    rows = [TrainRow([0] * length, setting.prompt_tokens, 1.0, 1.0) for length in row_lengths]
    plan = schedule(row_lengths, parallel.dp, MICRO_BATCH_TOKENS, parallel.pp if parallel.vpp else 1)
    layout = Layout.of(parallel, packed=True)
    batches = [
        batch
        for replica in plan
        for batch in build_microbatches([[rows[i] for i in part] for part in replica], layout, torch.device("cpu"))
    ]
    return 1 - sum(row_lengths) / sum(batch.tokens.numel() for batch in batches)

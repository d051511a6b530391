"""Memory that Megatron's ranks take on CPUs, beside what the planner predicts of them.

    python tools/plan_resident.py --out runs/resident

Each case is the second update of a small model, its ranks in fresh processes. Measured is by how much the peak of
resident memory exceeds what the process held before the model was built; predicted are parameters, gradients,
optimiser, activations and logits, without what a GPU adds. Prints a table and writes measurements.jsonl and table.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.actor.policy import MegatronPolicy, PolicySpec
from megatron_cgrpo.config.architectures import QWEN3, QWEN3_MOE
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import Experts, ModelShape
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.trainer_memory import stage_memory
from megatron_cgrpo.plan.workload import Workload, workload
from megatron_cgrpo.types import TrainRow

ROW = 512
"""Tokens of each packed sequence."""

DENSE = ModelShape(QWEN3, 4, 4, 2, 64, 256, 1024, 8192, 4096)
ROUTED = ModelShape(QWEN3_MOE, 4, 4, 2, 64, 256, 1024, 8192, 4096, experts=Experts(8, 2, 256))


@dataclass(frozen=True)
class Case:
    """``tokens`` of a micro-batch, packed sequences of ``ROW``; each replica has two of them."""

    name: str
    shape: ModelShape = DENSE
    tokens: int = 1024
    parallel: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        dp = self.parallel.get("dp", 1)
        return Recipe.model_validate(
            {
                "model": {"implementation": "local", **self.model},
                "parallel": dict(self.parallel),
                "train": {"prompts_per_step": dp * self.tokens // ROW, "micro_batch_tokens": self.tokens},
                "algorithm": {"group_size": 2, "refinements": 0},
                "critic": {"kind": "none"},
                "rollout": {"max_prompt_tokens": ROW // 2, "max_response_tokens": ROW // 2},
            }
        )


CASES = (
    Case("one rank"),
    Case("twice the layers", replace(DENSE, layers=8)),
    Case("twice the tokens", tokens=2048),
    Case("twice the vocabulary", replace(DENSE, vocab=16384)),
    Case("full recomputation, twice the tokens", tokens=2048, model={"recompute": {"granularity": "full"}}),
    Case(
        "feed-forward recomputed, twice the tokens",
        tokens=2048,
        model={"recompute": {"granularity": "selective", "modules": ["mlp"]}},
    ),
    Case("tp=2", parallel={"tp": 2}),
    Case("tp=2, sequence parallel", parallel={"tp": 2, "sequence_parallel": True}),
    Case("pp=2", parallel={"pp": 2}),
    Case("dp=2, distributed optimiser", parallel={"dp": 2}),
    Case("experts", ROUTED),
    Case("experts, twice as many", replace(ROUTED, experts=Experts(16, 2, 256))),
)


def predicted_mib(case: Case, rank: int) -> float:
    recipe = case.recipe
    assume = Assumptions(prompt_fill=1.0, response_fill=0.999, expert_imbalance=1.0)
    work: Workload = workload(recipe, assume)
    stage = rank // (recipe.parallel.world_size // recipe.parallel.pp)
    return stage_memory(recipe, case.shape, work, assume, stage, gpu=False).total * 1024


def measured_mib(case: Case) -> list[float]:
    """Of each rank. Large tensors have pages of their own, which go back to the system at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    world = case.recipe.parallel.world_size
    with tempfile.TemporaryDirectory() as folder:
        meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        multiprocessing.spawn(_rank, (case, meeting.port, folder), nprocs=world)
        return [float((Path(folder) / str(rank)).read_text()) for rank in range(world)]


def _rank(rank: int, case: Case, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    recipe = case.recipe
    state = ParallelState.start(recipe.parallel, rank, Endpoint("127.0.0.1", port), seed=0)
    before = _status("VmRSS")
    policy = MegatronPolicy(PolicySpec(case.shape, recipe.model, recipe.parallel, recipe.optimizer, 1, 0), state)
    rows = [TrainRow([1] * ROW, prompt_length=1, advantage=1.0, weight=1e-4)] * (case.tokens // ROW)
    batches = build_microbatches([rows, rows], Layout.of(recipe.parallel, packed=True), state.device)
    policy.update(batches, objectives.supervised)  # the first makes the optimiser's moments
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    policy.update(batches, objectives.supervised)
    (Path(folder) / str(rank)).write_text(str(_status("VmHWM") - before))
    state.stop()


def _status(key: str) -> float:
    """MiB, of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def table(rows: list[dict[str, Any]]) -> str:
    """With how much more each rank takes than the first one: what libraries load in a first pass is in all of them."""
    lines = [
        "| case | rank | predicted MiB | measured MiB | ratio | predicted more | measured more |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        predicted, measured = row["predicted"], row["measured"]
        more = f"{predicted - rows[0]['predicted']:+.0f} | {measured - rows[0]['measured']:+.0f}"
        both = f"{predicted:.0f} | {measured:.0f} | {predicted / measured:.2f}"
        lines.append(f"| {row['case']} | {row['rank']} | {both} | {more} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", help="Names; without it all.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.cases and case.name not in options.cases:
            continue
        for rank, measured in enumerate(measured_mib(case)):
            rows.append({"case": case.name, "rank": rank, "predicted": predicted_mib(case, rank), "measured": measured})
        (options.out / "measurements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (options.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

"""What the ranks of the gradient tests run: policies that are measured, trained and exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from policy_cases import Parallel, exported, policy, update
from rank_cases import SPEC, training_rows
from torch import Tensor

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.parallel import ParallelState
from megatron_cgrpo.actor.policy import MegatronPolicy
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.packing import schedule
from megatron_cgrpo.types import Origin, TrainRow
from megatron_cgrpo.weights.hf_reader import HFCheckpoint

SOURCES = (Origin.ROLLOUT, Origin.REFINEMENT)


def rows_of(origin: Origin) -> list[TrainRow]:
    """The first two rows are in both sources, so that the gradients share a direction: random ones hardly do."""
    return [replace(row, origin=origin) for n, row in enumerate(training_rows()) if n < 2 or row.origin is origin]


def measured(trained: MegatronPolicy, parallel: Parallel, state: ParallelState) -> dict[str, float]:
    config, parts = ParallelConfig(**parallel), {}
    for origin in SOURCES:
        rows = rows_of(origin)
        plan = schedule([len(row.token_ids) for row in rows], config.dp, 40, config.pp if config.vpp else 1)
        shares = [[rows[index] for index in batch] for batch in plan[state.dp_rank]]
        parts[str(origin)] = build_microbatches(shares, Layout.of(config, packed=True), state.device)
    return trained.gradient_norms(parts, objectives.policy_gradient(SPEC))


def norms(
    rank: int, ports: list[int], model_dir: str, cases: list[tuple[Parallel, bool]]
) -> list[tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]]:
    """Per case: the norms, and rank 0's weights after two updates, measured around each and never."""
    found = []
    for port, (parallel, distributed) in zip(ports, cases, strict=False):
        with policy(model_dir, parallel, rank, port, distributed=distributed) as (trained, state):
            unmeasured = MegatronPolicy(trained._spec, state)
            for each in (trained, unmeasured):
                each.load(HFCheckpoint(Path(model_dir)).read)
            at_first = measured(trained, parallel, state)
            for number in range(2):
                update(trained, number, parallel, state)
                update(unmeasured, number, parallel, state)
                measured(trained, parallel, state)
            found.append((at_first, exported(trained), exported(unmeasured)))
    return found


def references(rank: int, ports: list[int], model_dir: str, cases: list[Parallel]) -> list[dict[str, Any]]:
    """Per case: rank 0's exports of policy and reference after an update."""
    found = []
    for port, parallel in zip(ports, cases, strict=False):
        with policy(model_dir, parallel, rank, port) as (trained, state):
            trained.load(HFCheckpoint(Path(model_dir)).read)
            try:
                trained.export(reference=True)
            except RuntimeError as error:
                refusal = str(error)
            trained.keep_reference()
            update(trained, 0, parallel, state)
            reference = {name: tensor.clone() for name, tensor in trained.export(reference=True)}
            found.append({"policy": exported(trained), "reference": reference, "refusal": refusal})
    return found

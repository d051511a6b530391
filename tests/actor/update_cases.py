"""What the ranks of the update tests run: the same updates in two ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from policy_cases import Parallel, exported, policy, update
from rank_cases import SPEC, training_rows
from torch import Tensor

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.microbatch import unpack_response_values
from megatron_cgrpo.data.packing import schedule
from megatron_cgrpo.weights.hf_reader import HFCheckpoint


def overlapped(rank: int, ports: list[int], model_dir: str, parallel: Parallel) -> list[dict[str, Tensor]]:
    """The weights after two updates, without and with overlap."""
    results = []
    for port, overlap in zip(ports, (False, True), strict=False):
        layout = parallel | {"overlap": {"gradients": overlap}}
        with policy(model_dir, layout, rank, port) as (trained, state):
            trained.load(HFCheckpoint(Path(model_dir)).read)
            for number in range(2):
                update(trained, number, layout, state)
            results.append(exported(trained))
    return results


def recomputed(rank: int, ports: list[int], model_dir: str, parallel: Parallel) -> list[dict[str, Tensor]]:
    """The weights after a first update, with the old policy's log-probabilities left out and computed."""
    results = []
    config = ParallelConfig(**parallel)
    rows = [replace(row, old_logprobs=None) for row in training_rows()]
    plan = schedule([len(row.token_ids) for row in rows], config.dp, 40)
    for port, compute in zip(ports, (False, True), strict=False):
        with policy(model_dir, parallel, rank, port) as (trained, state):
            trained.load(HFCheckpoint(Path(model_dir)).read)
            shares = [[rows[index] for index in batch] for batch in plan[state.dp_rank]]
            batches = build_microbatches(shares, Layout.of(config, packed=True), state.device)
            if compute:
                reports = trained.forward(batches, objectives.read_logprobs)
                shares = [
                    [
                        replace(row, old_logprobs=own)
                        for row, own in zip(share, unpack_response_values(report, share, batch), strict=True)
                    ]
                    for share, report, batch in zip(shares, reports, batches, strict=True)
                ]
                batches = build_microbatches(shares, Layout.of(config, packed=True), state.device)
            trained.update(batches, objectives.policy_gradient(SPEC))
            results.append(exported(trained))
    return results

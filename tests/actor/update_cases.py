"""What the ranks of the update tests run: the same updates in two ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from policy_cases import Parallel, batches, exported, policy, update
from rank_cases import SPEC, training_rows
from torch import Tensor

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor import policy as policy_module
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.model_weights import load_main_weights, named_parameters
from megatron_cgrpo.actor.optimizer import buffer_config
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.microbatch import unpack_response_values
from megatron_cgrpo.data.packing import schedule
from megatron_cgrpo.weights.hf_reader import HFCheckpoint


def overlapped(rank: int, ports: list[int], model_dir: str, parallel: Parallel) -> list[dict[str, Tensor]]:
    """The weights after two updates, and log-probabilities beside them: without overlap, and with each kind of it."""
    results = []
    kinds = [{}, {"gradients": True}, {"gradients": True, "parameters": True}]
    if "vpp" in parallel:
        kinds.append({"gradients": True, "parameters": True, "pipeline": True})
    # In one bucket each model would wait for everything at its first module.
    policy_module.buffer_config = lambda *options: replace(buffer_config(*options), bucket_size=2000)
    for port, overlap in zip(ports, kinds, strict=False):
        layout = parallel | {"overlap": overlap}
        with policy(model_dir, layout, rank, port) as (trained, state):
            trained.load(HFCheckpoint(Path(model_dir)).read)
            seen = {}
            for number in range(2):
                update(trained, number, layout, state)
                # Before anything else asks for the weights: what overlaps with forward passes comes with them alone.
                reports = trained.forward(batches(number, layout, state), objectives.read_logprobs)
                seen |= {f"{number}.{index}": report for index, report in enumerate(reports)}
            update(trained, 2, layout, state)
            results.append(seen | exported(trained))
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
            parts = build_microbatches(shares, Layout.of(config, packed=True), state.device)
            if compute:
                reports = trained.forward(parts, objectives.read_logprobs)
                shares = [
                    [
                        replace(row, old_logprobs=own)
                        for row, own in zip(share, unpack_response_values(report, share, batch), strict=True)
                    ]
                    for share, report, batch in zip(shares, reports, parts, strict=True)
                ]
                parts = build_microbatches(shares, Layout.of(config, packed=True), state.device)
            trained.update(parts, objectives.policy_gradient(SPEC))
            results.append(exported(trained))
    return results


def main_weights(rank: int, ports: list[int], model_dir: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Of a bfloat16 policy, per parameter of which this rank has a part: the optimiser's weights, from both sources."""
    with policy(model_dir, {"dp": 2}, rank, ports[0], ModelConfig(dtype="bfloat16")) as (trained, state):
        read = HFCheckpoint(Path(model_dir)).read
        trained.load(read)
        names = {parameter: name for name, parameter in named_parameters(trained._chunks)}
        own = {name: p.main_param for p, name in names.items() if getattr(p, "main_param", None) is not None}
        rounded = {name: main.clone() for name, main in own.items()}
        load_main_weights(trained._optimizer, trained._chunks, trained._spec.shape, read, state)
        return {name: (rounded[name], main.detach().clone()) for name, main in own.items()}

"""What the ranks of the checkpoint tests run: train, save, load in another layout, train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rank_cases import SPEC, training_rows
from torch import Tensor

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.actor.policy import MegatronPolicy, PolicySpec, UpdateResult
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.microbatch import MicroBatch
from megatron_cgrpo.data.packing import schedule
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.random_init import RandomWeights

Parallel = dict[str, Any]
FLOAT32 = ModelConfig()
SAVED_AFTER = 2


@dataclass(frozen=True)
class Trained:
    """``loaded`` and ``updated`` are exports before and after one more update; empty on ranks other than 0."""

    loaded: dict[str, Tensor]
    updated: dict[str, Tensor]
    lr: float
    random: Tensor


@contextmanager
def policy(
    model_dir: str, parallel: Parallel, rank: int, port: int, model: ModelConfig = FLOAT32, distributed: bool = True
) -> Iterator[tuple[MegatronPolicy, ParallelState]]:
    """A policy without weights."""
    config = ParallelConfig(**parallel)
    state = ParallelState.start(config, rank, Endpoint("127.0.0.1", port), seed=1)
    optimizer = OptimizerConfig(
        lr=3e-3, min_lr=1e-3, schedule="cosine", warmup_steps=2, weight_decay=0.1, distributed=distributed
    )
    shape = read_model_shape(Path(model_dir))
    try:
        yield MegatronPolicy(PolicySpec(shape, model, config, optimizer, total_updates=6, seed=1), state), state
    finally:
        state.stop()


def batches(number: int, parallel: Parallel, state: ParallelState) -> list[MicroBatch]:
    """This replica's part of update ``number``."""
    config = ParallelConfig(**parallel)
    rows = training_rows()[number : number + 5]
    plan = schedule([len(row.token_ids) for row in rows], config.dp, 40, config.pp if config.vpp else 1)
    shares = [[rows[index] for index in batch] for batch in plan[state.dp_rank]]
    return build_microbatches(shares, Layout.of(config, packed=True), state.device)


def update(trained: MegatronPolicy, number: int, parallel: Parallel, state: ParallelState) -> UpdateResult:
    return trained.update(batches(number, parallel, state), objectives.policy_gradient(SPEC))


def exported(trained: MegatronPolicy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained.export()}


def go_on(trained: MegatronPolicy, parallel: Parallel, state: ParallelState) -> Trained:
    loaded, random = exported(trained), torch.rand(4)
    result = update(trained, SAVED_AFTER, parallel, state)
    return Trained(loaded, exported(trained), result.lr, random)


def train_and_save(
    rank: int, port: int, model_dir: str, directory: Path, parallel: Parallel, updates: int = SAVED_AFTER
) -> Trained:
    """The uninterrupted run, saved after so many updates."""
    with policy(model_dir, parallel, rank, port) as (trained, state):
        trained.load(HFCheckpoint(Path(model_dir)).read)
        for number in range(updates):
            update(trained, number, parallel, state)
        torch.rand(rank + 1)  # so that the ranks' random states differ, and from the seed's
        trained.save(directory)
        return go_on(trained, parallel, state)


def resume(
    rank: int,
    port: int,
    model_dir: str,
    directory: Path,
    parallel: Parallel,
    same_layout: bool,
    save_to: Path | None = None,
) -> Trained:
    """A new process's way back: from other weights, so that nothing is right by chance."""
    with policy(model_dir, parallel, rank, port) as (trained, state):
        trained.load(RandomWeights(read_model_shape(Path(model_dir)), seed=9).read)
        trained.resume(directory, same_layout)
        if save_to is not None:
            trained.save(save_to)
        return go_on(trained, parallel, state)


def parameters_alone(
    rank: int, port: int, model_dir: str, directory: Path, parallel: Parallel, model: ModelConfig = FLOAT32
) -> dict[str, Tensor]:
    with policy(model_dir, parallel, rank, port, model) as (trained, _):
        trained.load(RandomWeights(read_model_shape(Path(model_dir)), seed=9).read)
        trained.load_parameters(directory)
        return exported(trained)


def converted(
    rank: int, ports: list[int], cases: list[tuple[Path, Parallel, ModelConfig]], refused: tuple[Path, Path]
) -> tuple[list[dict[str, Tensor]], str]:
    """What the ranks export of each checkpoint, and why one model refuses the weights of another."""
    exports = [
        parameters_alone(rank, port, str(directory), directory, parallel, model)
        for port, (directory, parallel, model) in zip(ports, cases, strict=False)
    ]
    architecture, weights = refused
    try:
        parameters_alone(rank, ports[len(cases)], str(architecture), weights, {"tp": 2})
    except ConfigError as error:
        return exports, str(error)
    return exports, "nothing was raised"


def two_ranks(rank: int, ports: list[int], model_dir: str, directories: list[Path]) -> dict[str, Any]:
    """``directories`` exist and are empty: for the checkpoints of the TP=2 policy, of the DP=2 policy, and of
    one that nothing has trained."""
    free, (first, second, untrained) = iter(ports), directories
    tp, dp = {"tp": 2}, {"dp": 2}
    return {
        "uninterrupted": train_and_save(rank, next(free), model_dir, first, tp),
        "tp": resume(rank, next(free), model_dir, first, tp, same_layout=True),
        "tp, as if moved": resume(rank, next(free), model_dir, first, tp, same_layout=False),
        "pp": resume(rank, next(free), model_dir, first, {"pp": 2}, same_layout=False),
        "vpp": resume(rank, next(free), model_dir, first, {"pp": 2, "vpp": 2}, same_layout=False),
        "dp": resume(rank, next(free), model_dir, first, dp, same_layout=False, save_to=second),
        "dp, then tp": resume(rank, next(free), model_dir, second, tp, same_layout=False),
        "cp": resume(rank, next(free), model_dir, first, {"cp": 2}, same_layout=False),
        "parameters": parameters_alone(rank, next(free), model_dir, first, {"pp": 2}),
        "untrained": train_and_save(rank, next(free), model_dir, untrained, dp, updates=0),
        "untrained, resumed": resume(rank, next(free), model_dir, untrained, dp, same_layout=True),
    }


def with_experts(rank: int, ports: list[int], model_dir: str, directories: list[Path]) -> dict[str, Any]:
    """``directories`` exist and are empty: for the checkpoints of a PP=2 and of an EP=2 policy."""
    free, (first, second) = iter(ports), directories
    tp, ep = {"tp": 2, "sequence_parallel": True}, {"dp": 2, "ep": 2}
    return {
        "uninterrupted": train_and_save(rank, next(free), model_dir, first, {"pp": 2}),
        "pp": resume(rank, next(free), model_dir, first, {"pp": 2}, same_layout=True),
        "dp": resume(rank, next(free), model_dir, first, {"dp": 2}, same_layout=False),
        "tp": resume(rank, next(free), model_dir, first, tp, same_layout=False),
        "ep": resume(rank, next(free), model_dir, first, ep, same_layout=False, save_to=second),
        "ep, then ep": resume(rank, next(free), model_dir, second, ep, same_layout=True),
        "ep, then tp": resume(rank, next(free), model_dir, second, tp | {"ep": 2, "etp": 1}, same_layout=False),
        "ep, then pp": resume(rank, next(free), model_dir, second, {"pp": 2}, same_layout=False),
    }


def one_rank(rank: int, ports: list[int], model_dir: str, directory: Path) -> dict[str, Any]:
    return {
        "one rank": resume(rank, ports[0], model_dir, directory, {}, same_layout=False),
        "reference": reference(rank, ports[1], model_dir),
        "not finite": not_finite(rank, ports[2], model_dir),
        "bfloat16": saved_and_resumed(rank, ports[3], model_dir, ModelConfig(dtype="bfloat16"), distributed=True),
        "not distributed": saved_and_resumed(rank, ports[4], model_dir, FLOAT32, distributed=False),
    }


def saved_and_resumed(rank: int, port: int, model_dir: str, model: ModelConfig, distributed: bool) -> list[Trained]:
    """The uninterrupted run and the resumed one, in one world."""
    with policy(model_dir, {}, rank, port, model, distributed) as (trained, state), TemporaryDirectory() as directory:
        trained.load(HFCheckpoint(Path(model_dir)).read)
        for number in range(SAVED_AFTER):
            update(trained, number, {}, state)
        trained.save(Path(directory))
        first = go_on(trained, {}, state)
        again = MegatronPolicy(trained._spec, state)
        again.resume(Path(directory), same_layout=True)
        return [first, go_on(again, {}, state)]


def reference(rank: int, port: int, model_dir: str) -> dict[str, list[Tensor]]:
    """Log-probabilities of the policy and of its reference, before and after an update."""
    with policy(model_dir, {}, rank, port) as (trained, state):
        read, batch = objectives.read_logprobs, batches(0, {}, state)
        trained.load(HFCheckpoint(Path(model_dir)).read)
        try:
            trained.forward(batch, read, reference=True)
        except RuntimeError as error:
            refusal = str(error)
        trained.keep_reference()
        found: dict[str, Any] = {"refusal": refusal}
        for moment in ("before", "after"):
            found[f"policy {moment}"] = trained.forward(batch, read)
            found[f"reference {moment}"] = trained.forward(batch, read, reference=True)
            update(trained, 0, {}, state)
        return found


def not_finite(rank: int, port: int, model_dir: str) -> str:
    """What is raised by an update whose gradient is not a number."""
    with policy(model_dir, {}, rank, port) as (trained, state):
        trained.load(HFCheckpoint(Path(model_dir)).read)

        def poisoned(logp: Tensor, entropy: Tensor, batch: MicroBatch) -> tuple[Tensor, None]:
            return (logp * torch.nan).sum(), None

        try:
            trained.update(batches(0, {}, state), poisoned)
        except FloatingPointError as error:
            return str(error)
        return "nothing was raised"

"""What the ranks of the layout tests run: one world of processes goes through many layouts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.forward import run_microbatches
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.actor.model import build_chunks
from megatron_cgrpo.actor.model_weights import WeightExport, load_weights, named_parameters
from megatron_cgrpo.actor.optimizer import buffer_config, wrap_for_training
from megatron_cgrpo.actor.parallel import Endpoint, ParallelState
from megatron_cgrpo.actor.router_losses import RouterLosses
from megatron_cgrpo.actor.routing_replay import RoutingReplay
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import read_model_shape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.data.packing import schedule
from megatron_cgrpo.types import Origin, Routes, TrainRow
from megatron_cgrpo.weights.families import model_weights
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.mapping import local_shard


@dataclass(frozen=True)
class Case:
    """A layout and a way to cut the mini-batch."""

    parallel: dict[str, Any] = field(default_factory=dict)
    packed: bool = True
    micro_batch_tokens: int = 60
    recompute: dict[str, Any] = field(default_factory=dict)
    moe: dict[str, Any] = field(default_factory=dict)
    replay: bool = False

    def config(self) -> ParallelConfig:
        return ParallelConfig(**self.parallel)


def training_rows(vocab: int = 61) -> list[TrainRow]:
    """Rows of both origins, with uneven lengths, advantages of both signs, and engine log-probabilities."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for index, (prompt, response) in enumerate([(3, 9), (5, 17), (2, 4), (7, 12), (4, 30), (3, 1), (6, 8)]):
        tokens = torch.randint(0, vocab, (prompt + response,), generator=generator).tolist()
        rows.append(
            TrainRow(
                token_ids=tokens,
                prompt_length=prompt,
                advantage=(-1) ** index * (0.3 + 0.1 * index),
                weight=1 / 81,
                origin=Origin.REFINEMENT if index % 3 == 2 else Origin.ROLLOUT,
                behaviour_logprobs=(-3 - torch.rand(response, generator=generator)).tolist(),
                old_logprobs=(-4 - torch.rand(response, generator=generator)).tolist(),
            )
        )
    return rows


def routed_rows() -> list[TrainRow]:
    """``training_rows`` of a model with 4 layers and 6 experts, 2 a token: rollouts know made-up experts of all tokens
    but the last."""
    generator = torch.Generator().manual_seed(6)
    rows = []
    for row in training_rows():
        if row.origin is Origin.ROLLOUT:
            experts = torch.rand(len(row.token_ids) - 1, 4, 6, generator=generator).argsort(-1)[..., :2]
            row = replace(row, routes=Routes(experts.to(torch.uint8).contiguous().numpy().tobytes(), 4, 2))
        rows.append(row)
    return rows


SPEC = LossSpec(entropy_coef=0.1, refinement_clip=False)


def gradients(rank: int, ports: list[int], model_dir: str, cases: list[Case]) -> list[dict[str, torch.Tensor]]:
    """Per case: this rank's gradient error against ``grads.pt`` (parameter -> relative error), and the loss."""
    results = []
    oracle = torch.load(Path(model_dir) / "grads.pt")
    for number, case in enumerate(cases):
        with _World(case, rank, ports[number]) as world:
            shape = read_model_shape(Path(model_dir))
            model = ModelConfig(logprob_chunk=16, recompute=case.recompute, moe=case.moe)
            chunks = build_chunks(shape, model, case.config(), world)
            load_weights(chunks, shape, HFCheckpoint(Path(model_dir)).read, world)
            buffers = buffer_config(OptimizerConfig(distributed=False), case.config().overlap, model)
            wrapped = wrap_for_training(chunks, buffers)
            for chunk in wrapped:
                chunk.train()
                chunk.zero_grad_buffer()
            batches, losses = _batches(case, world), RouterLosses(wrapped, model.moe)
            losses.begin(batches)
            split = case.config().sequence_parallel
            replays = {chunk: RoutingReplay(chunk, world.tp_group, split) for chunk in wrapped} if case.replay else {}
            objective = objectives.policy_gradient(SPEC)
            reports = run_microbatches(wrapped, batches, objective, train=True, replays=replays)
            router = losses.end()
            loss = sum(report.sums["loss.total"] for report in reports) if world.is_last_stage else torch.zeros(())
            loss = torch.as_tensor(loss, dtype=torch.float64)
            dist.all_reduce(loss, group=world.dp_group)
            weights = {weight.megatron: weight for weight in model_weights(shape)}
            errors = {}
            for name, parameter in named_parameters(wrapped):
                expected = local_shard(
                    weights[name], oracle.__getitem__, shape, *world.tensor_shard(weights[name].expert is not None)
                )
                errors[name] = ((parameter.main_grad - expected).norm() / expected.norm()).item()
            results.append({"errors": errors, "loss": loss.item() if world.is_last_stage else None, "router": router})
    return results


def logits(
    rank: int, ports: list[int], model_dirs: list[str], cases: list[Case]
) -> list[tuple[str, torch.Tensor | None, dict]]:
    """Per model and case: full logits [t, vocabulary] on the reporting rank, and the export on rank 0."""
    results = []
    for number, case in enumerate(cases):
        with _World(case, rank, ports[number]) as world:
            for directory in model_dirs:
                shape = read_model_shape(Path(directory))
                chunks = build_chunks(shape, ModelConfig(), case.config(), world)
                load_weights(chunks, shape, HFCheckpoint(Path(directory)).read, world)
                found = _forward_logits(chunks, case, world)
                export = {name: tensor.clone() for name, tensor in WeightExport(chunks, shape, world)}
                results.append((directory, found, export))
    return results


def sequence_outputs(
    rank: int, ports: list[int], model_dirs: list[str], tokens: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per model: logits [s, vocabulary] of ``tokens`` [1, s], and log-probabilities [s] of the token after each."""
    results = []
    with _World(Case(), rank, ports[0]) as world:
        for directory in model_dirs:
            shape = read_model_shape(Path(directory))
            [chunk] = build_chunks(shape, ModelConfig(logprob_chunk=64), Case().config(), world)
            load_weights([chunk], shape, HFCheckpoint(Path(directory)).read, world)
            positions = torch.arange(tokens.shape[1])[None]
            with torch.no_grad():
                found = chunk(tokens, positions, None)[0]
                logprobs, _ = chunk(tokens, positions, None, labels=tokens.roll(-1, dims=1))
            results.append((found, logprobs[0]))
    return results


def _forward_logits(chunks: list[Any], case: Case, world: ParallelState) -> torch.Tensor | None:
    """Through Megatron's schedule; the vocabulary shards joined."""
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func

    [batch] = build_microbatches([training_rows()], Layout.of(case.config(), True), world.device)
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )

    def step(data: Any, chunk: Any) -> Any:
        output = chunk(batch.tokens, batch.positions, None, packed_seq_params=packed)

        def report(value: torch.Tensor) -> Any:
            return value.new_zeros(()), torch.zeros((), dtype=torch.int), value

        return output, report

    with torch.no_grad():
        reports = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=[None] * len(chunks) if len(chunks) > 1 else None,
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=1,
            seq_length=batch.tokens.shape[1],
            micro_batch_size=1,
            forward_only=True,
        )
    if not world.is_last_stage:
        return None
    [shard] = reports
    shards = [torch.empty_like(shard) for _ in range(world.tp_size)]
    dist.all_gather(shards, shard.contiguous(), group=world.tp_group)
    return torch.cat(shards, dim=-1)[0] if world.tp_rank == 0 and world.dp_rank == 0 else None


def _batches(case: Case, world: ParallelState) -> list[Any]:
    rows = routed_rows() if case.replay else training_rows()
    layout = Layout.of(case.config(), case.packed, ModelConfig(moe=case.moe), case.micro_batch_tokens)
    lengths = [layout.row_length(row) for row in rows]
    if not case.packed:
        lengths = [max(lengths)] * len(lengths)
    config = case.config()
    plan = schedule(lengths, config.dp, case.micro_batch_tokens, config.pp if config.vpp else 1)
    shares = [[rows[index] for index in batch] for batch in plan[world.dp_rank]]
    return build_microbatches(shares, layout, world.device)


class _World:
    """A parallel state for the length of a block."""

    def __init__(self, case: Case, rank: int, port: int) -> None:
        self._state = ParallelState.start(case.config(), rank, Endpoint("127.0.0.1", port), seed=1)

    def __enter__(self) -> ParallelState:
        return self._state

    def __exit__(self, *error: object) -> None:
        self._state.stop()

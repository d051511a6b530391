"""The fused log-probability against a dense float64 softmax over the real vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_cgrpo.actor.logprob import linear_logprob

BATCH, LENGTH, HIDDEN = 2, 6, 5
TOKENS = BATCH * LENGTH


@dataclass(frozen=True)
class Case:
    """``vocab`` of ``rows * world`` rows are real."""

    vocab: int
    rows: int
    chunk: int
    sequence_parallel: bool = False
    dtype: torch.dtype = torch.float32
    temperature: float = 1.0


ONE_RANK = [Case(11, 11, chunk) for chunk in (1, 7, TOKENS, 1000)] + [Case(9, 12, 7), Case(9, 12, 7, temperature=0.6)]
TWO_RANKS = [
    *(Case(12, 6, chunk, parallel) for chunk in (1, 7, TOKENS) for parallel in (False, True)),
    Case(11, 6, 7),
    Case(6, 6, 7, True),  # the second shard is padding only
    Case(5, 6, 7),
    Case(11, 6, 7, True, temperature=1.7),
    Case(11, 6, 7, True, torch.bfloat16),
]


@dataclass(frozen=True)
class Values:
    logp: Tensor
    entropy: Tensor
    grad_hidden: Tensor
    grad_weight: Tensor


def inputs(case: Case, world: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden, whole weight, targets, and what the gradients of log-probability and entropy are weighted with."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(LENGTH, BATCH, HIDDEN, generator=generator)
    # Padded rows hold garbage: they must not count, whatever they are.
    weight = 2 * torch.randn(case.rows * world, HIDDEN, generator=generator)
    targets = torch.randint(0, case.vocab, (BATCH, LENGTH), generator=generator)
    weights = torch.randn(2, BATCH, LENGTH, generator=generator)
    return hidden.to(case.dtype), weight.to(case.dtype), targets, weights[0], weights[1]


def dense(case: Case, world: int) -> Values:
    hidden, weight, targets, logp_weight, entropy_weight = inputs(case, world)
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    scores = (hidden.transpose(0, 1) @ weight[: case.vocab].t() / case.temperature).log_softmax(-1)
    logp = scores.gather(-1, targets[..., None])[..., 0]
    entropy = -(scores.exp() * scores).sum(-1)
    (logp * logp_weight + entropy * entropy_weight).sum().backward()
    return Values(logp.detach(), entropy.detach(), hidden.grad, weight.grad)


def fused(case: Case, rank: int, world: int) -> Values:
    """What this rank computes; the gradient of its own part of ``hidden`` and of ``weight``."""
    hidden, weight, targets, logp_weight, entropy_weight = inputs(case, world)
    if case.sequence_parallel:
        hidden = hidden.chunk(world)[rank]
    hidden = hidden.clone().requires_grad_()
    shard = weight.chunk(world)[rank].clone().requires_grad_()
    logp, entropy = linear_logprob(
        hidden,
        shard,
        targets,
        vocab_size=case.vocab,
        group=dist.group.WORLD,
        sequence_parallel=case.sequence_parallel,
        chunk=case.chunk,
        temperature=case.temperature,
    )
    (logp * logp_weight + entropy * entropy_weight).sum().backward()
    return Values(logp.detach(), entropy.detach(), hidden.grad, shard.grad)


def two_rank_values(rank: int, ports: list[int], cases: list[Case]) -> list[Values]:
    dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", ports[0]), rank=rank, world_size=2)
    values = [fused(case, rank, 2) for case in cases]
    dist.destroy_process_group()
    return values


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def assert_equal(found: Values, expected: Values, dtype: torch.dtype) -> None:
    assert found.logp.dtype == found.entropy.dtype == torch.float32
    assert found.grad_hidden.dtype == found.grad_weight.dtype == dtype
    # In bfloat16 the logits themselves, up to 16 here, are rounded to 8 bits; the target's and the largest one's
    # errors of 2^-9 * 16 add up.
    absolute, relative = (1e-5, 1e-5) if dtype == torch.float32 else (2 * 16 * 2**-9, 0.02)
    for name in ("logp", "entropy"):
        assert (getattr(found, name) - getattr(expected, name)).abs().max() < absolute, name
    for name in ("grad_hidden", "grad_weight"):
        wanted = getattr(expected, name)
        assert (getattr(found, name) - wanted).norm() <= relative * wanted.norm(), name


@pytest.mark.parametrize("case", ONE_RANK, ids=str)
def test_one_rank_equals_the_dense_softmax(alone: None, case: Case) -> None:
    assert_equal(fused(case, 0, 1), dense(case, 1), case.dtype)


def test_two_ranks_equal_the_dense_softmax() -> None:
    ranks = run_ranks(two_rank_values, 2, TWO_RANKS)
    for index, case in enumerate(TWO_RANKS):
        whole = dense(case, 2)
        for rank in range(2):
            hidden = whole.grad_hidden.chunk(2)[rank] if case.sequence_parallel else whole.grad_hidden
            expected = Values(whole.logp, whole.entropy, hidden, whole.grad_weight.chunk(2)[rank])
            assert_equal(ranks[rank][index], expected, case.dtype)
        assert torch.equal(ranks[0][index].logp, ranks[1][index].logp), case
        assert torch.equal(ranks[0][index].entropy, ranks[1][index].entropy), case


def test_padded_rows_get_no_gradient(alone: None) -> None:
    found = fused(Case(9, 12, 7), 0, 1)
    assert torch.equal(found.grad_weight[9:], torch.zeros(3, HIDDEN))


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def test_logits_exist_for_one_chunk_at_a_time(alone: None) -> None:
    vocab, chunk = 200, 3
    assert chunk * vocab < min(TOKENS * vocab, vocab * HIDDEN), "else the weight's own size would hide the chunk's"
    with LargestTensor() as largest:
        fused(Case(vocab, vocab, chunk), 0, 1)
    assert largest.elements == vocab * HIDDEN
    with LargestTensor() as largest:
        fused(Case(vocab, vocab, TOKENS), 0, 1)
    assert largest.elements == TOKENS * vocab


class AliveTensors(TorchDispatchMode):
    """How many storages of results with so many elements were alive at once."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.alive: set[StorageWeakRef] = set()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.numel() == self.elements]
        self.alive |= {StorageWeakRef(leaf.untyped_storage()) for leaf in leaves}
        self.alive = {storage for storage in self.alive if not storage.expired()}
        self.most = max(self.most, len(self.alive))
        return result


def test_a_chunk_is_gone_before_the_next_one(alone: None) -> None:
    """As an objective without an entropy term goes backward: with three copies, as the planner counts."""
    for chunk in (3, TOKENS):
        hidden, weight, targets, logp_weight, _ = inputs(Case(200, 200, chunk), 1)
        for each in (hidden, weight):
            each.requires_grad_()
        with AliveTensors(chunk * 200) as alive:
            logp, _ = linear_logprob(
                hidden,
                weight,
                targets,
                vocab_size=200,
                group=dist.group.WORLD,
                sequence_parallel=False,
                chunk=chunk,
            )
            (logp * logp_weight).sum().backward()
        assert alive.most == 3

"""Log-probability and entropy of target tokens, fused with the LM head, over vocabulary-parallel shards.

Logits exist for one chunk of tokens at a time, in both passes: full-vocabulary logits or softmax are never stored.
Each rank reduces its vocabulary shard to four numbers a token (maximum, sum of exponentials, sum of exponential times
logit, target logit); one small all-gather combines them. The backward pass recomputes a chunk's logits and forms
dlogits = g_logp (onehot - p) - g_entropy p (log p + H).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    sequence_parallel: bool,
    chunk: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """hidden [s (/tp under sequence parallelism), b, h], weight [padded vocabulary / tp, h], targets [b, s] int64.

    Returns log-probabilities (nats) of the targets and entropies of the full distribution, that of logits divided by
    ``temperature``; both are [b, s] float32 and identical on every rank of ``group``. Rows of ``weight`` beyond
    ``vocab_size`` (padding) take no probability.
    """
    if sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, group=group)
    else:
        hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
    batch, length = targets.shape
    flat_targets = targets.t().reshape(-1)
    logp, entropy = _LinearLogprob.apply(
        hidden.flatten(0, 1), weight, flat_targets, vocab_size, group, chunk, temperature
    )
    return logp.view(length, batch).t(), entropy.view(length, batch).t()


def _logits(hidden: Tensor, weight: Tensor, real_rows: int, temperature: float) -> Tensor:
    """float32 logits [n, rows] of this rank's vocabulary shard over the temperature; padded rows are -inf."""
    logits = (hidden @ weight.t()).float().div_(temperature)
    logits[:, real_rows:] = -torch.inf
    return logits


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        group: dist.ProcessGroup,
        chunk: int,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        tokens, rows = hidden.shape[0], weight.shape[0]
        first_row = group.rank() * rows
        real_rows = min(max(vocab_size - first_row, 0), rows)
        local = targets - first_row
        owned = (local >= 0) & (local < real_rows)
        local = local.clamp(0, rows - 1)
        maximum, exp_sum, exp_logit_sum, target_logit = stats = hidden.new_zeros(4, tokens, dtype=torch.float32)
        for start in range(0, tokens, chunk):
            part = slice(start, min(start + chunk, tokens))
            logits = _logits(hidden[part], weight, real_rows, temperature)
            # A shard made of padding only has no finite logit: its maximum must not be -inf (inf - inf below).
            maximum[part] = logits.amax(-1).clamp_min(torch.finfo(torch.float32).min)
            target_logit[part] = torch.where(owned[part], logits.gather(-1, local[part, None])[:, 0], 0.0)
            exponential = (logits - maximum[part, None]).exp_()
            exp_sum[part] = exponential.sum(-1)
            logits[:, real_rows:] = 0.0
            exp_logit_sum[part] = torch.linalg.vecdot(exponential, logits)
            del logits, exponential  # before the next chunk has its own
        maximum, exp_sum, exp_logit_sum, target_logit = _combine(stats, group)
        log_normaliser = maximum + exp_sum.log()
        entropy = log_normaliser - exp_logit_sum / exp_sum
        ctx.save_for_backward(hidden, weight, local, owned, log_normaliser, entropy)
        ctx.real_rows, ctx.chunk, ctx.temperature = real_rows, chunk, temperature
        return target_logit - log_normaliser, entropy

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, local, owned, log_normaliser, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        with_entropy = bool(grad_entropy.any())
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, min(start + ctx.chunk, hidden.shape[0]))
            logp = _logits(hidden[part], weight, ctx.real_rows, ctx.temperature) - log_normaliser[part, None]
            probability = logp.exp()
            grad_logits = probability * -grad_logp[part, None]
            if with_entropy:
                logp[:, ctx.real_rows :] = 0.0
                grad_logits -= probability * (logp + entropy[part, None]) * grad_entropy[part, None]
            grad_logits.scatter_add_(1, local[part, None], torch.where(owned[part], grad_logp[part], 0.0)[:, None])
            grad_logits = grad_logits.div_(ctx.temperature).to(weight.dtype)
            grad_hidden[part] = grad_logits @ weight
            grad_weight += grad_logits.t() @ hidden[part]
            del logp, probability, grad_logits  # before the next chunk has its own
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None


def _combine(stats: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Joins the ranks' (maximum, exp_sum, exp_logit_sum, target_logit), each [tokens], over the vocabulary."""
    if group.size() == 1:
        maximum, exp_sum, exp_logit_sum, target_logit = stats
        return maximum, exp_sum, exp_logit_sum, target_logit
    gathered = stats.new_empty(group.size(), *stats.shape)
    dist.all_gather_into_tensor(gathered.flatten(0, 1), stats, group=group)
    maxima, exp_sums, exp_logit_sums, target_logits = gathered.unbind(1)
    maximum = maxima.amax(0)
    scale = (maxima - maximum).exp()
    return maximum, (exp_sums * scale).sum(0), (exp_logit_sums * scale).sum(0), target_logits.sum(0)

"""The tensors of one micro-batch, packed or padded, from training rows.

Per-token values are aligned with *targets*: what belongs to token ``t + 1`` of a sequence stands at position ``t``,
where the model predicts it. Both layouts hold the same values at the same (row, position), and zeros everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from megatron_cgrpo.data.routes import gather_routes
from megatron_cgrpo.types import Origin, TrainRow


@dataclass(frozen=True)
class MicroBatch:
    """Shapes are [1, T] packed, [B, S] padded.

    ``tokens``, ``positions`` (from 0 in each row), ``targets`` (the row's next token; 0 at its last position) and
    ``sequence_index`` (the row's number in this micro-batch) are int64; ``refined`` is bool; the others are float32.
    ``weight`` is zero except where the target is a response token. ``cu_seqlens`` int32 [segments + 1] and
    ``max_seqlen`` (tokens) delimit packed segments: padding at a row's end is part of its segment, a tail of padding a
    segment of its own. A padded layout has no ``cu_seqlens`` and pads on the right, where a causal model needs no mask.
    The optional log-probabilities are None where the rows have none, and so are ``routes`` [b, s, layers, experts a
    token], see ``gather_routes``. ``context_order`` [s] is ``context_split``'s; None without context
    parallelism.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    sequence_index: Tensor
    weight: Tensor
    advantage: Tensor
    refined: Tensor
    behaviour_logp: Tensor | None
    old_logp: Tensor | None
    reference_logp: Tensor | None
    cu_seqlens: Tensor | None
    max_seqlen: int
    routes: Tensor | None = None
    context_order: Tensor | None = None


def pack(
    rows: Sequence[TrainRow], *, pad_to_multiple_of: int = 1, pad_to: int = 0, pad_rows_to_multiple_of: int = 1
) -> MicroBatch:
    """Concatenate rows into [1, T], with T a multiple of ``pad_to_multiple_of`` (sequence parallelism: TP) and at least
    ``pad_to`` (pipelines that need equal micro-batches).

    The tail that this takes is one more segment of zero tokens, so attention of the rows is unchanged. No rows at all
    give a micro-batch of only such a tail. Every segment has a multiple of ``pad_rows_to_multiple_of`` tokens (context
    parallelism: 2 CP), which must divide ``pad_to_multiple_of`` and ``pad_to``: zero tokens at the end of a row, which
    no token of it attends to. Raises ``ValueError`` for inconsistent rows.
    """
    lengths = [round_up(len(row.token_ids), pad_rows_to_multiple_of) for row in rows]
    tail = round_up(max(sum(lengths), pad_to, 1), pad_to_multiple_of) - sum(lengths)
    segments = torch.tensor([*lengths, tail] if tail else lengths)
    ends = segments.cumsum(0)
    index = torch.repeat_interleave(torch.arange(len(segments)), segments)
    positions = torch.arange(len(index)) - (ends - segments)[index]
    cu_seqlens = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    return _build(rows, positions[None], index[None], cu_seqlens, int(segments.max()))


def pad(rows: Sequence[TrainRow], *, pad_to_multiple_of: int = 1, pad_to: int = 0, batch_size: int = 0) -> MicroBatch:
    """Rows of [B, S], padded on the right; S is the longest row rounded up to ``pad_to_multiple_of``, at least
    ``pad_to``, and B at least ``batch_size`` (dummy rows of zero tokens) and 1. Raises ``ValueError`` for
    inconsistent rows."""
    longest = max((len(row.token_ids) for row in rows), default=1)
    shape = (max(len(rows), batch_size, 1), round_up(max(longest, pad_to), pad_to_multiple_of))
    positions = torch.arange(shape[1]).expand(shape).contiguous()
    index = torch.arange(shape[0])[:, None].expand(shape).contiguous()
    return _build(rows, positions, index, None, shape[1])


def unpack_response_values(values: Tensor, rows: Sequence[TrainRow], batch: MicroBatch) -> list[list[float]]:
    """Per row, the ``response_length`` values (e.g. log-probabilities) of its response tokens.

    ``values`` has the shape of ``batch.tokens`` and is aligned with the targets; ``batch`` was built from ``rows``.
    """
    if batch.cu_seqlens is None:
        starts = [number * batch.max_seqlen for number in range(len(rows))]
    else:
        starts = batch.cu_seqlens.tolist()
    flat = values.detach().flatten().tolist()
    result = []
    for row, start in zip(rows, starts, strict=False):
        first = start + row.prompt_length - 1
        result.append(flat[first : first + row.response_length])
    return result


def _build(
    rows: Sequence[TrainRow], positions: Tensor, index: Tensor, cu_seqlens: Tensor | None, max_seqlen: int
) -> MicroBatch:
    """Fill every field by boolean masks: row-major order of a mask is the order of the rows' concatenated values."""
    _check(rows)
    dummies = int(index.max()) + 1 - len(rows)
    length = torch.tensor([len(row.token_ids) for row in rows] + [0] * dummies)[index]
    prompt = torch.tensor([row.prompt_length for row in rows] + [1] * dummies)[index]
    responds = (positions >= prompt - 1) & (positions < length - 1)

    flat = _concatenate([row.token_ids for row in rows], np.int64)
    valid = positions < length
    tokens, targets = torch.zeros_like(positions), torch.zeros_like(positions)
    tokens[valid] = flat
    targets[positions < length - 1] = flat[positions[valid] > 0]

    def per_row(values: list[float]) -> Tensor:
        return torch.tensor(values + [0.0] * dummies, dtype=torch.float32)[index] * responds

    def per_token(name: str, values: list[list[float] | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        if len(present) not in (0, len(rows)):
            raise ValueError(f"{name}: given for {len(present)} of {len(rows)} rows; give it for all rows or for none")
        if rows and not present:
            return None
        result = torch.zeros(positions.shape, dtype=torch.float32)
        result[responds] = _concatenate(present, np.float32)
        return result

    return MicroBatch(
        tokens=tokens,
        positions=positions,
        targets=targets,
        sequence_index=index,
        weight=per_row([row.weight for row in rows]),
        advantage=per_row([row.advantage for row in rows]),
        refined=per_row([float(row.origin is Origin.REFINEMENT) for row in rows]).bool(),
        behaviour_logp=per_token("behaviour_logprobs", [row.behaviour_logprobs or None for row in rows]),
        old_logp=per_token("old_logprobs", [row.old_logprobs for row in rows]),
        reference_logp=per_token("reference_logprobs", [row.reference_logprobs for row in rows]),
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        routes=gather_routes(rows, valid),
    )


def _check(rows: Sequence[TrainRow]) -> None:
    for number, row in enumerate(rows):
        if not 1 <= row.prompt_length < len(row.token_ids):
            raise ValueError(
                f"row {number}: prompt_length={row.prompt_length} of {len(row.token_ids)} tokens; "
                "a training row needs at least one prompt token and one response token"
            )
        for name, values in (
            ("behaviour_logprobs", row.behaviour_logprobs or None),
            ("old_logprobs", row.old_logprobs),
            ("reference_logprobs", row.reference_logprobs),
        ):
            if values is not None and len(values) != row.response_length:
                raise ValueError(
                    f"row {number}: {name} has {len(values)} entries for {row.response_length} response tokens"
                )
        if row.routes is not None and row.routes.tokens > len(row.token_ids):
            raise ValueError(f"row {number}: routes of {row.routes.tokens} tokens for {len(row.token_ids)}")


def _concatenate(values: Sequence[Sequence[float]], dtype: type[np.int64] | type[np.float32]) -> Tensor:
    # Several times faster than torch.tensor on a list of this size.
    return torch.from_numpy(np.fromiter(chain.from_iterable(values), dtype, count=sum(map(len, values))))


def round_up(value: int, multiple_of: int) -> int:
    """The smallest multiple of ``multiple_of`` that is not below ``value``."""
    return -(-value // multiple_of) * multiple_of

"""What the ranks of the context-parallel tests run: log-probabilities read the way the trainer reads them."""

from __future__ import annotations

from pathlib import Path

from policy_cases import policy
from rank_cases import Case, training_rows

from megatron_cgrpo.actor import objectives
from megatron_cgrpo.actor.microbatches import Layout, build_microbatches
from megatron_cgrpo.data.microbatch import unpack_response_values
from megatron_cgrpo.data.packing import schedule
from megatron_cgrpo.weights.hf_reader import HFCheckpoint


def response_logprobs(
    rank: int, ports: list[int], model_dir: str, cases: list[Case]
) -> list[dict[int, list[float]] | None]:
    """Per case: of each row of this replica the log-probabilities of its response; None on ranks that do not report."""
    results = []
    rows = training_rows()
    for port, case in zip(ports, cases, strict=False):
        with policy(model_dir, case.parallel, rank, port) as (read, state):
            read.load(HFCheckpoint(Path(model_dir)).read)
            layout = Layout.of(case.config(), case.packed)
            [plan] = schedule([layout.row_length(row) for row in rows], 1, case.micro_batch_tokens)
            shares = [[rows[index] for index in batch] for batch in plan]
            batches = build_microbatches(shares, layout, state.device)
            reports = read.forward(batches, objectives.read_logprobs)
            found = {}
            for indices, share, report, batch in zip(plan, shares, reports, batches, strict=True):
                found |= dict(zip(indices, unpack_response_values(report, share, batch), strict=True))
            results.append(found if state.reports else None)
    return results

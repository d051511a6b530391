"""Each trainer rank and the engine in a network namespace of its own: what they tell each other crosses real sockets.

These cross: Ray's control plane and its objects (rows, log-probabilities, completions, the control calls of a weight
push), the meeting of the ranks at their store, and their collectives. The weights themselves do not: without GPUs they
go through files in shared memory, which namespaces of the network do not separate; ``nccl`` needs GPUs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from network_nodes import network_nodes
from training_runs import MARK, Files, Run

from megatron_cgrpo.observe.metrics import read_metrics

HIDDEN_BYTES = 64 * 4
"""Of one token: the sandbox's hidden states in float32."""


def test_ranks_and_engine_train_together_across_a_network(
    folder: Path, cache: Path, uninterrupted: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, str(folder / "network"))
    with network_nodes(monkeypatch, 3) as namespaces:
        before = [namespace.sent_bytes for namespace in namespaces]
        run = Run(folder, cache, "network")
        run.finish()
        sent = [namespace.sent_bytes - count for namespace, count in zip(namespaces, before, strict=True)]
    assert run.comparable_metrics() == uninterrupted.comparable_metrics()
    tokens = sum(line.get("tokens.update", 0) for line in read_metrics(run.directory / "metrics.jsonl"))
    # Each of the two ranks sends the other a partial sum of every token's hidden state, in every layer, both ways.
    assert sorted(sent)[-2] > 4 * tokens * HIDDEN_BYTES, sent

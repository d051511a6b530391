"""Ranks and engines on nodes of their own: training with weight sync between them, and a node that is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import ENGINE, RANK, check_gone, check_prompts, living
from ray_nodes import Nodes, ray_nodes
from training_runs import MARK, SMALL, STEPS, Run

ONE_ENGINE = ["rollout.engines=1", "checkpoint.every=2"]


@pytest.mark.parametrize("lost", [RANK, ENGINE], ids=["a rank's node", "an engine's node"])
def test_a_run_over_several_nodes_survives_the_loss_of_one(
    folder: Path, cache: Path, uninterrupted: Run, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Each process needs a node of its own, and one node is spare. The result is that of one machine, bit by bit."""
    name = f"nodes_{lost.replace(':', '_')}"
    monkeypatch.setenv(MARK, str(folder / name))
    with ray_nodes(monkeypatch, 1, 1, 1, 1) as nodes:
        run = Run(folder, cache, name, *ONE_ENGINE)
        run.wait_for_step(1)
        where = occupied(nodes, run)
        assert len(where[RANK]) == 2 and len(where[ENGINE]) == 1 and len({*where[RANK], *where[ENGINE]}) == 3
        nodes.lose(where[lost][0])
        run.finish()
        check_gone(run, RANK, ENGINE)
        assert run.comparable_metrics() == uninterrupted.comparable_metrics()
        check_prompts(run, SMALL, STEPS)


def occupied(nodes: Nodes, run: Run) -> dict[str, list[int]]:
    return {title: [nodes.of(process) for process in living(run, title)] for title in (RANK, ENGINE)}

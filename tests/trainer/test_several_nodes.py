"""Ranks and engines on Ray nodes of their own, all on this machine: they train together, and nodes are lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import ENGINE, RANK, check_gone, check_prompts, living, successors
from ray_nodes import Nodes, ray_nodes
from training_runs import MARK, SMALL, STEPS, Files, Run


def test_a_run_over_several_nodes_survives_the_loss_of_any(
    folder: Path, cache: Path, uninterrupted: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process needs a node of its own: a rank's is lost, then an engine's. The result is that of one machine."""
    monkeypatch.setenv(MARK, str(folder / "nodes"))
    with ray_nodes(monkeypatch, 1, 1, 1, 1, 1) as nodes:
        run = Run(folder, cache, "nodes", "checkpoint.every=2")
        run.wait_for_step(1)
        where, ranks = occupied(nodes, run), living(run, RANK)
        assert len(where[RANK]) == 2 and len(where[ENGINE]) == 1 and len({*where[RANK], *where[ENGINE]}) == 3
        nodes.lose(where[RANK][0])
        successors(run, RANK, ranks)
        run.wait_for_step(run.last_step() + 1)  # the restart has taken back what no checkpoint covered
        nodes.lose(occupied(nodes, run)[ENGINE][0])
        run.finish()
        check_gone(run, RANK, ENGINE)
        assert run.comparable_metrics() == uninterrupted.comparable_metrics()
        check_prompts(run, SMALL, STEPS)


def occupied(nodes: Nodes, run: Run) -> dict[str, list[int]]:
    return {title: [nodes.of(process) for process in living(run, title)] for title in (RANK, ENGINE)}

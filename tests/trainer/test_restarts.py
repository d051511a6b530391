"""A run gets over the loss of its processes by itself, and trains what it would have trained without."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import psutil
import pytest
from faults import CORE, ENGINE, RANK, check_gone, check_prompts, living, successors
from processes import runs
from training_runs import SMALL, STEPS, Files, Run

from megatron_cgrpo.actor.calls import TrainerDied
from megatron_cgrpo.launch.cluster import RELEASE_S
from megatron_cgrpo.rollout.protocol import EngineDied
from megatron_cgrpo.trainer.restarts import Restarts

FAULTY = ["checkpoint.every=2", "rollout.progress_timeout_s=20", "train.progress_timeout_s=60"]


def test_a_run_whose_ranks_are_killed_and_frozen_goes_on_and_trains_the_same(
    folder: Path, cache: Path, uninterrupted: Files
) -> None:
    """One after the other: what the first restart has brought up is lost again."""
    run = Run(folder, cache, "ranks_lost", *FAULTY)
    run.wait_for_step(1)
    ranks = living(run, RANK)
    ranks[0].kill()
    again = successors(run, RANK, ranks)
    run.wait_for_step(run.last_step() + 1)  # the restart has taken back what no checkpoint covered
    again[0].send_signal(signal.SIGSTOP)
    check_recovered(run, uninterrupted, ranks[0], again[0])


@pytest.mark.parametrize(
    ("title", "fault"),
    [(ENGINE, signal.SIGKILL), (CORE, signal.SIGKILL), (CORE, signal.SIGSTOP)],
    ids=["engine killed", "engine core killed", "engine core frozen"],
)
def test_a_run_that_loses_one_of_two_engines_goes_on_and_trains_the_same(
    folder: Path,
    cache: Path,
    uninterrupted: Files,
    title: str,
    fault: signal.Signals,
    request: pytest.FixtureRequest,
) -> None:
    name = request.node.callspec.id.replace(" ", "_")
    run = Run(folder, cache, name, "rollout.engines=2", *FAULTY)
    run.wait_for_step(1)
    victim = living(run, title)[0]
    victim.send_signal(fault)
    check_recovered(run, uninterrupted, victim)


def check_recovered(run: Run, uninterrupted: Files, *victims: psutil.Process) -> None:
    run.finish()
    check_gone(run, RANK, ENGINE, CORE)
    assert run.session() == []
    assert not any(runs(victim) for victim in victims)
    assert run.comparable_metrics() == uninterrupted.comparable_metrics()
    check_prompts(run, SMALL, STEPS)


def test_restarts_are_counted_from_the_farthest_step(caplog: pytest.LogCaptureFixture) -> None:
    restarts = Restarts(2, start_timeout_s=77.0)
    restarts.came_up()
    lost = TrainerDied("trainer rank 1 died during update: gone")
    assert restarts.patience_s == RELEASE_S
    with caplog.at_level(logging.WARNING):
        for last_step in (5, 5, 7, 7):
            restarts.spend(lost, last_step, saved=4)
            assert restarts.patience_s == 77.0
        for last_step in (4, 7):  # it never gets beyond step 7 again
            with pytest.raises(TrainerDied, match="rank 1 died"):
                restarts.spend(lost, last_step, saved=4)
    assert [record.getMessage() for record in caplog.records] == [
        "after step 5: trainer rank 1 died during update: gone; restart 1 of 2 from step 4",
        "after step 5: trainer rank 1 died during update: gone; restart 2 of 2 from step 4",
        "after step 7: trainer rank 1 died during update: gone; restart 1 of 2 from step 4",
        "after step 7: trainer rank 1 died during update: gone; restart 2 of 2 from step 4",
        "run.restarts=2: none is left since step 7",
        "run.restarts=2: none is left since step 7",
    ]


def test_what_never_came_up_is_not_started_again() -> None:
    restarts = Restarts(2, start_timeout_s=1.0)
    with pytest.raises(EngineDied, match="gone"):
        restarts.spend(EngineDied("gone"), 0, saved=0)


def test_without_restarts_the_first_loss_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    restarts = Restarts(0, start_timeout_s=1.0)
    restarts.came_up()
    with pytest.raises(EngineDied, match="gone"):
        restarts.spend(EngineDied("gone"), 3, saved=2)
    assert caplog.records == []

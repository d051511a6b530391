"""Ranks that fail: on a full disk, by dying, and by not starting."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from processes import left, running, titled
from rank_cases import SPEC, training_rows
from received_weights import Receiver
from small_disk import fill, small_disk

from megatron_cgrpo.actor.calls import TrainerDied, TrainerStuck
from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.actor.policy import PolicySpec
from megatron_cgrpo.config.errors import CheckpointNotWritten
from megatron_cgrpo.config.model import ModelConfig
from megatron_cgrpo.config.model_shape import QWEN2, ModelShape
from megatron_cgrpo.config.optimizer import OptimizerConfig
from megatron_cgrpo.config.parallel import ParallelConfig
from megatron_cgrpo.launch.cluster import ray_cluster

SHAPE = ModelShape(QWEN2, 2, 2, 2, 32, 64, 96, vocab=128, max_positions=512)


def processes() -> list[psutil.Process]:
    """Of all ranks."""
    return titled(psutil.Process().children(recursive=True), "ray::Worker")


def start(ranks: int, **options: float) -> ActorGroup:
    spec = PolicySpec(SHAPE, ModelConfig(), ParallelConfig(tp=ranks), OptimizerConfig(lr=1e-2), 4, seed=1)
    return ActorGroup(spec, packed=True, micro_batch_tokens=60, threads=1, gpu=False, **options)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_cluster(2):
        yield


@pytest.fixture
def group() -> Iterator[ActorGroup]:
    started = start(2)
    started.initialise(seed=3)
    started.update(training_rows(), SPEC)  # an optimiser without state cannot be saved
    yield started
    started.stop()


def test_ranks_that_meet_a_full_disk_train_on_or_are_given_up(group: ActorGroup, tmp_path: Path) -> None:
    """Whichever rank it hits, and whatever it was writing: nobody waits for ever."""
    (tmp_path / "room").mkdir()
    group.save(tmp_path / "room")
    size = sum(path.stat().st_size for path in (tmp_path / "room").iterdir())
    with small_disk(tmp_path / "disk", 16) as disk:
        (disk / "half").mkdir()
        filler = fill(disk, leave_bytes=size // 2)
        with pytest.raises(CheckpointNotWritten, match="could not write"):
            group.save(disk / "half")
        assert math.isfinite(group.update(training_rows(), SPEC).grad_norm)
        filler.unlink()
        (disk / "none").mkdir()
        fill(disk)
        with pytest.raises((CheckpointNotWritten, TrainerDied), match="could not write"):
            group.save(disk / "none")


def test_a_dead_rank_is_named_and_nobody_waits_for_it(group: ActorGroup) -> None:
    processes()[1].kill()
    with pytest.raises(TrainerDied, match=r"^trainer rank \d died during update: "):
        group.update(training_rows(), SPEC)
    with pytest.raises(TrainerDied, match="after a failure"):
        group.update(training_rows(), SPEC)


def test_a_frozen_rank_is_given_up_and_leaves_its_place(group: ActorGroup) -> None:
    group.stop()
    stuck = start(2, progress_timeout_s=40.0)
    stuck.initialise(seed=3)
    stuck.update(training_rows(), SPEC)
    ranks = processes()
    ranks[1].send_signal(signal.SIGSTOP)
    with pytest.raises(TrainerStuck, match=r"^trainer rank\(s\) .*did not finish update within train.progress_timeout"):
        stuck.update(training_rows(), SPEC)
    with pytest.raises(TrainerDied, match="after a failure"):
        stuck.update(training_rows(), SPEC)
    assert left(lambda: running(ranks)) == [], "their ports and devices are still taken"
    stuck.stop()
    start(2).stop()


def test_a_rank_that_freezes_idle_is_not_waited_for_when_it_is_stopped(
    group: ActorGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_cgrpo.actor.group.STOP_S", 5.0)
    ranks = processes()
    ranks[0].send_signal(signal.SIGSTOP)
    group.stop()
    assert left(lambda: running(ranks)) == []


def test_a_first_rank_that_is_dead_when_it_is_asked_alone_is_a_lost_trainer(group: ActorGroup, tmp_path: Path) -> None:
    for process in processes():
        process.kill()
    with pytest.raises(TrainerDied, match="^trainer rank 0 died during free_endpoint: "):
        group.connect("file", Receiver(tmp_path), 1, "float32")


def test_ranks_that_find_no_place_are_given_up(group: ActorGroup) -> None:
    with pytest.raises(TrainerDied, match=r"1 trainer rank\(s\) did not start within rollout.start_timeout_s=1: raise"):
        start(1, start_timeout_s=1.0)


def test_ranks_that_die_idle_are_no_error_when_they_are_stopped_and_leave_their_places(group: ActorGroup) -> None:
    for process in processes():
        process.kill()
    group.stop()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline, "the dead ranks' places are still taken"
        time.sleep(0.1)

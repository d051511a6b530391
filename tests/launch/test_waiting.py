"""Waits of the start-up, on a Ray and a clock that nobody waits for: they end when they are told to, and in time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.launch import cluster, placement, waiting
from megatron_cgrpo.launch.cluster import check_capacity
from megatron_cgrpo.launch.layout import Layout
from megatron_cgrpo.launch.placement import DevicesNotFound, reserved
from megatron_cgrpo.launch.waiting import results


class Stopped(Exception):
    pass


class StandInRay:
    """Calls are numbers: call ``n`` returns ``answers[n]``, or raises it, ``n`` seconds after the start."""

    exceptions = ray.exceptions

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[int, Any] | None = None) -> None:
        self.now, self.answers = 0.0, answers or {}
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        for module in (waiting, cluster, placement):
            monkeypatch.setattr(module, "time", clock)
            monkeypatch.setattr(module, "ray", self)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def cluster_resources(self) -> dict[str, float]:
        """Of nodes that are for ranks and engines alike."""
        return {}

    def wait(self, calls: Sequence[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        first = min(calls)
        if first not in self.answers or first > self.now + timeout:
            self.now += timeout
            return [], list(calls)
        self.now = max(self.now, first)
        return [first], [call for call in calls if call != first]

    def get(self, calls: Sequence[int]) -> list[Any]:
        for call in calls:
            if isinstance(self.answers[call], Exception):
                raise self.answers[call]
        return [self.answers[call] for call in calls]

    def stop_after(self, seconds: float) -> Any:
        def poll() -> None:
            if self.now >= seconds:
                raise Stopped

        return poll


def test_results_come_in_the_order_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    StandInRay(monkeypatch, {3: "c", 1: "a", 2: "b"})
    assert results([3, 1, 2], 10) == ["c", "a", "b"]


def test_the_first_failure_ends_the_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch, {50: "late", 2: ValueError("broken")})
    with pytest.raises(ValueError, match="broken"):
        results([50, 2], 100)
    assert stub.now == 2


def test_a_wait_ends_in_time_or_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch, {1: "a"})
    with pytest.raises(GetTimeoutError, match="1 of 2 calls have not returned after 30 s"):
        results([1, 2], 30)
    assert 30 <= stub.now <= 30 + 2 * waiting.POLL_S
    stub.now = 0
    with pytest.raises(Stopped):
        results([1, 2], 30, stub.stop_after(5))
    assert stub.now <= 5 + 2 * waiting.POLL_S


def test_a_cluster_that_is_too_small_is_not_waited_for_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch)
    stub.available_resources = dict  # type: ignore[attr-defined]
    with pytest.raises(Stopped):
        check_capacity(1, cuda=False, patience_s=600, poll=stub.stop_after(5))
    assert stub.now < 6


@contextmanager
def group_of(stub: StandInRay, monkeypatch: pytest.MonkeyPatch, ready_at: float) -> Any:
    """A placement group that is there after so many seconds."""

    def wait(seconds: int) -> bool:
        stub.now += seconds
        return stub.now >= ready_at

    removed: list[Any] = []
    group = SimpleNamespace(wait=wait)
    monkeypatch.setattr(placement, "placement_group", lambda bundles, strategy: group)
    monkeypatch.setattr(placement, "remove_placement_group", removed.append)
    monkeypatch.setattr(placement, "_in_bundle", lambda group, bundle: {})
    yield
    assert removed == [group]


def test_devices_are_waited_for_until_a_signal_or_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch)
    layout = Layout(ranks=1, engines=1, tensor_parallel=1)
    with (
        group_of(stub, monkeypatch, 1e9),
        pytest.raises(Stopped),
        reserved(layout, False, 600, stub.stop_after(5)),
    ):
        pass
    assert stub.now <= 6
    stub.now = 0
    with group_of(stub, monkeypatch, 1e9), pytest.raises(ConfigError, match="after 30 s"), reserved(layout, False, 30):
        pass
    assert stub.now <= 31
    stub.now = 0
    with group_of(stub, monkeypatch, 20), reserved(layout, False, 30) as placed:
        assert len(placed.ranks) == len(placed.engines) == 1


def test_a_node_that_does_not_name_its_gpus_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch)
    probe = SimpleNamespace(remote=lambda: 7)
    stub.remote = lambda function: SimpleNamespace(options=lambda **_: probe)  # type: ignore[attr-defined]
    layout = Layout(ranks=2, engines=1, tensor_parallel=2, colocated=True)
    with (
        group_of(stub, monkeypatch, 0),
        pytest.raises(DevicesNotFound, match=r"rollout.start_timeout_s=30: .*1 of 1 calls"),
        reserved(layout, True, 30),
    ):
        pass
    stub.answers[7] = ["4", "6"]
    with group_of(stub, monkeypatch, 0), reserved(layout, True, 30) as placed:
        assert placed.engines[0].environment["CUDA_VISIBLE_DEVICES"] == "4,6"

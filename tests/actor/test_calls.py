"""What is made of ranks that reply, fail, fall silent, or are not waited for any more; no time is spent."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from megatron_cgrpo.actor import calls
from megatron_cgrpo.actor.calls import FAILURE_GRACE_S, TrainerDied, TrainerStuck, outcome
from megatron_cgrpo.launch.waiting import undisturbed

ALL = {"a": 0, "b": 1, "c": 2}


class StandInRay:
    """A call is answered at the second that ``answers`` gives, with a value or an error; the others never are."""

    exceptions = ray.exceptions

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: tuple[float, Any]) -> None:
        self.now, self.answers = 0.0, answers
        monkeypatch.setattr(calls, "ray", self)
        monkeypatch.setattr(calls, "time", SimpleNamespace(monotonic=lambda: self.now))

    def wait(self, pending: Sequence[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        self.now += timeout
        done = [call for call in pending if call in self.answers and self.answers[call][0] <= self.now][:1]
        return done, [call for call in pending if call not in done]

    def get(self, call: str) -> Any:
        answer = self.answers[call][1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def failed() -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("update", "remote traceback", OSError("no space left"))


def test_every_rank_is_waited_for_as_long_as_one_replies_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    StandInRay(monkeypatch, a=(90, "x"), b=(180, "y"), c=(270, "z"))
    assert outcome(ALL, "update", 100, undisturbed).replies == {0: "x", 1: "y", 2: "z"}


def test_silence_is_a_stuck_rank_and_those_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch, b=(30, "y"))
    with pytest.raises(
        TrainerStuck, match=r"rank\(s\) 0, 2 did not finish update within train.progress_timeout_s=100:"
    ):
        outcome(ALL, "update", 100, undisturbed)
    assert 130 <= stub.now < 131


def test_without_a_limit_any_reply_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    StandInRay(monkeypatch, a=(7_200, "x"))
    assert outcome({"a": 0}, "update", None, undisturbed).replies == {0: "x"}


def test_after_a_failure_the_others_get_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch, b=(5, failed()), a=(5 + FAILURE_GRACE_S / 2, "x"))
    found = outcome(ALL, "save", 1000, undisturbed)
    assert found.replies == {0: "x"} and stub.now < 6 + 2 * FAILURE_GRACE_S
    assert isinstance(found.errors[1], OSError) and "no space left" in str(found.errors[1])


def test_a_dead_rank_ends_the_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch, c=(5, ray.exceptions.ActorDiedError()))
    with pytest.raises(TrainerDied, match="^trainer rank 2 died during push: "):
        outcome(ALL, "push", None, undisturbed)
    assert stub.now < 6


def test_whoever_polls_can_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StandInRay(monkeypatch)

    def poll() -> None:
        if stub.now >= 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        outcome(ALL, "start", None, poll)
    assert stub.now < 6

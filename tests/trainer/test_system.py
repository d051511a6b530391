"""How the start of a system ends early; engines and ranks are stand-ins that would start for ever."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_cgrpo.actor.calls import TrainerDied
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.launch.waiting import Poll
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.trainer import system
from megatron_cgrpo.trainer.signals import StopRequested, StopSignal
from megatron_cgrpo.trainer.system import start_system

RECIPE = load_recipe(Path(__file__).parents[2] / "examples" / "sandbox.yaml", [])


class Starts:
    """``begun`` is set, and ``ended`` counts, the engines' starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.ended = threading.Event(), 0
        monkeypatch.setattr(system, "check_capacity", lambda *_: None)
        monkeypatch.setattr(system, "reserved", self.reserved)
        monkeypatch.setattr(system, "engine_spec", lambda *_: SimpleNamespace())
        monkeypatch.setattr(system, "start_engines", self.start_engines)

    @contextmanager
    def reserved(self, *_: Any) -> Iterator[Any]:
        yield SimpleNamespace(ranks=[], engines=[], critic_engines=[])

    def start_engines(self, *_: Any, poll: Poll) -> EnginePool:
        self.begun.set()
        try:
            while True:
                poll()
                time.sleep(0.001)
        finally:
            self.ended += 1


def test_engines_are_not_waited_for_where_the_ranks_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)

    def fail(*_: Any) -> None:
        starts.begun.wait()
        raise TrainerDied("it did not start")

    monkeypatch.setattr(system, "_start_actor", fail)
    with (
        StopSignal() as stop,
        pytest.raises(TrainerDied, match="did not start"),
        start_system(RECIPE, Path("/unused"), stop),
    ):
        pass
    assert starts.ended == 1


@pytest.mark.parametrize("waiting_for", ["ranks", "engines"])
def test_a_signal_ends_the_start(monkeypatch: pytest.MonkeyPatch, waiting_for: str) -> None:
    starts = Starts(monkeypatch)
    stopped: list[bool] = []

    def start_ranks(*arguments: Any) -> Any:
        starts.begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        while waiting_for == "ranks":
            arguments[-1].check()
        return SimpleNamespace(load_base=lambda *_, **__: None, stop=lambda: stopped.append(True))

    monkeypatch.setattr(system, "_start_actor", start_ranks)
    with (
        StopSignal() as stop,
        pytest.raises(StopRequested, match="SIGTERM"),
        start_system(RECIPE, Path("/unused"), stop),
    ):
        pass
    assert starts.ended == 1 and stopped == ([] if waiting_for == "ranks" else [True])

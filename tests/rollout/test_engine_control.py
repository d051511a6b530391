"""What an engine is told, and when it serves: updates, failures, sleep. The calls are recorded instead of made: vLLM's
sleep needs a GPU, and its updates are in test_vllm_engine.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from megatron_cgrpo.rollout.engine_control import EngineControl
from megatron_cgrpo.rollout.protocol import EngineNotJoined, EngineNotReady
from megatron_cgrpo.rollout.weight_names import IncompleteWeights

NAMES = {"a", "b"}


class Recorder:
    """Stands for vLLM: lists what it is asked for; ``fails`` names the call that raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: str | None = None

    def _called(self, name: str, *details: object) -> None:
        self.calls.append(" ".join([name, *map(str, details)]))
        if name == self.fails:
            raise ConnectionError(name)

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self._called("pause", mode, clear_cache)

    async def resume_generation(self) -> None:
        self._called("resume")

    async def init_weight_transfer_engine(self, request: Any) -> None:
        self._called("join", request)

    async def shutdown_weight_transfer_engine(self) -> None:
        self._called("leave")

    async def start_weight_update(self) -> None:
        self._called("start")

    async def update_weights(self, request: Any) -> None:
        self._called("update", request)

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._called("finish", weight_version)

    async def sleep(self, level: int) -> None:
        self._called("sleep", level)

    async def wake_up(self, tags: list[str]) -> bool:
        self._called("wake", *tags)
        return True


async def push(control: EngineControl, version: int = 1, names: set[str] = NAMES) -> None:
    await control.start_update()
    await control.update(sorted(names), "weights")
    await control.finish_update(version, NAMES)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_push_freezes_loads_stamps_and_goes_on() -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=False, frees_memory=True)
    with pytest.raises(EngineNotReady, match="none were pushed"):
        asyncio.run(control.admitted())
    asyncio.run(push(control, 7))
    assert llm.calls == ["pause keep True", "start", "update weights", "finish 7", "resume"]
    asyncio.run(control.admitted())


def test_requests_wait_for_an_update_and_are_unblocked_by_its_end_or_failure() -> None:
    async def run() -> None:
        llm = Recorder()
        control = EngineControl(llm, serving=False, frees_memory=True)
        await push(control)
        await control.start_update()
        waiting = [asyncio.create_task(control.admitted()) for _ in range(2)]
        await settled()
        assert not any(task.done() for task in waiting)
        control.check_open()  # running requests are frozen, not refused
        await control.update(["a", "b"], "weights")
        await control.finish_update(2, NAMES)
        await asyncio.gather(*waiting)

        await control.start_update()
        waiting = [asyncio.create_task(control.admitted()) for _ in range(2)]
        await settled()
        llm.fails = "update"
        with pytest.raises(ConnectionError):
            await control.update(["a"], "weights")
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, EngineNotReady)
        with pytest.raises(EngineNotReady, match="the last push failed"):
            control.check_open()
        llm.fails = None
        await push(control)
        await control.admitted()

    asyncio.run(run())


@pytest.mark.parametrize("call", ["pause", "start", "finish", "resume"])
def test_whatever_fails_the_engine_is_closed_until_a_complete_push(call: str) -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=True, frees_memory=False)
    llm.fails = call
    with pytest.raises(ConnectionError):
        asyncio.run(push(control))
    assert control.state == "empty"
    llm.fails = None
    asyncio.run(push(control))
    assert control.state == "serving"


def test_an_incomplete_push_is_refused_by_name() -> None:
    control = EngineControl(Recorder(), serving=True, frees_memory=False)
    with pytest.raises(IncompleteWeights, match="missing b"):
        asyncio.run(push(control, names={"a"}))
    assert control.state == "empty"
    with pytest.raises(RuntimeError, match="start the update first"):
        asyncio.run(control.finish_update(1, NAMES))
    with pytest.raises(RuntimeError, match="start the update first"):
        asyncio.run(control.update(["a"], "weights"))


def test_an_abandoned_update_is_closed_by_the_next_one() -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=True, frees_memory=False)
    asyncio.run(control.start_update())
    llm.calls.clear()
    llm.fails = "finish"  # as where the worker has closed it itself
    asyncio.run(control.start_update())
    llm.fails = None
    asyncio.run(control.update(["a", "b"], "weights"))
    asyncio.run(control.finish_update(3, NAMES))
    assert llm.calls == ["finish None", "pause keep True", "start", "update weights", "finish 3", "resume"]
    assert control.state == "serving"


def test_a_sleeping_engine_wakes_with_the_push_weights_first_and_its_cache_last() -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=True, frees_memory=True)
    asyncio.run(control.sleep())
    asyncio.run(control.sleep())
    with pytest.raises(EngineNotReady, match="sleeps: push weights"):
        asyncio.run(control.admitted())
    asyncio.run(push(control, 4))
    assert llm.calls == [
        "sleep 2",
        "wake weights",
        "pause keep True",
        "start",
        "update weights",
        "finish 4",
        "wake kv_cache",
        "resume",
    ]
    assert control.state == "serving"


def test_what_woke_in_a_push_that_failed_is_not_woken_again() -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=True, frees_memory=True)
    asyncio.run(control.sleep())
    llm.fails = "update"
    with pytest.raises(ConnectionError):
        asyncio.run(push(control))
    llm.fails = None
    asyncio.run(push(control, 5))
    assert [call for call in llm.calls if call.startswith("wake")] == ["wake weights", "wake kv_cache"]
    assert llm.calls[-2:] == ["wake kv_cache", "resume"]


def test_sleep_does_not_tear_an_update() -> None:
    control = EngineControl(Recorder(), serving=True, frees_memory=True)
    asyncio.run(control.start_update())
    with pytest.raises(RuntimeError, match="finish the update first"):
        asyncio.run(control.sleep())


def test_on_a_cpu_sleep_frees_nothing_and_still_closes_the_engine() -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=True, frees_memory=False)
    asyncio.run(control.sleep())
    assert llm.calls == [] and control.state == "asleep"
    asyncio.run(push(control))
    assert not any(call.startswith("wake") for call in llm.calls)


def test_an_engine_takes_no_weights_before_it_has_joined_their_transfer() -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=False, frees_memory=True, must_join=True)
    with pytest.raises(EngineNotJoined, match="started again"):
        asyncio.run(control.start_update())
    assert llm.calls == [], "nothing was begun that would have to be ended"
    asyncio.run(control.join("group"))
    asyncio.run(push(control))
    assert llm.calls[:2] == ["join group", "pause keep True"]
    asyncio.run(control.admitted())


def test_a_transfer_that_is_opened_anew_is_left_and_joined_and_an_open_update_is_closed_before() -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=False, frees_memory=True, must_join=True)
    asyncio.run(control.join("first"))
    asyncio.run(push(control))
    asyncio.run(control.start_update())  # another engine did not
    llm.calls.clear()
    asyncio.run(control.join("second"))
    assert llm.calls == ["finish None", "leave", "join second"]
    asyncio.run(push(control, 2))
    assert llm.calls[3:] == ["pause keep True", "start", "update weights", "finish 2", "resume"]
    asyncio.run(control.admitted())


def test_who_could_not_join_serves_nothing_and_may_try_again() -> None:
    llm = Recorder()
    control = EngineControl(llm, serving=False, frees_memory=True, must_join=True)
    asyncio.run(control.join("first"))
    asyncio.run(push(control))
    llm.fails = "join"
    with pytest.raises(ConnectionError):
        asyncio.run(control.join("second"))
    with pytest.raises(EngineNotReady):
        asyncio.run(control.admitted())
    with pytest.raises(EngineNotJoined):
        asyncio.run(control.start_update())
    llm.fails = None
    llm.calls.clear()
    asyncio.run(control.join("third"))
    assert llm.calls == ["join third"], "the communicator is gone already"

"""Real signals to this process."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from megatron_cgrpo.trainer.signals import StopRequested, StopSignal

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


async def interrupted(number: int, log: list[str]) -> None:
    """Work that never ends by itself."""
    try:
        send(number)
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        log.append("cleaned up")
        raise


@pytest.mark.parametrize("number", NUMBERS)
def test_a_collection_is_cancelled_and_cleans_up(number: int) -> None:
    log: list[str] = []
    with StopSignal() as stop, pytest.raises(StopRequested) as error:
        stop.run(interrupted(number, log))
    assert error.value.signal == number
    assert signal.Signals(number).name in str(error.value)
    assert log == ["cleaned up"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_between_collections_is_seen_at_the_next_check(number: int) -> None:
    with StopSignal() as stop:
        stop.check()
        send(number)
        with pytest.raises(StopRequested) as error:
            stop.check()
    assert error.value.signal == number


def test_a_signal_before_a_collection_stops_it_before_it_does_anything() -> None:
    log: list[str] = []

    async def work() -> None:
        log.append("began")

    with StopSignal() as stop:
        send(signal.SIGTERM)
        with pytest.raises(StopRequested):
            stop.run(work())
    assert log == []


def test_the_second_signal_stops_at_once() -> None:
    with StopSignal():
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_results_and_errors_pass_through() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def fail() -> None:
        raise ValueError("inside")

    with StopSignal() as stop:
        assert stop.run(answer()) == 42
        with pytest.raises(ValueError, match="inside"):
            stop.run(fail())


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignal():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with pytest.raises(ZeroDivisionError), StopSignal():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in NUMBERS] == before

"""What every answer domain offers: a verdict on one response, awaited or in bulk."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import NamedTuple, Self

from megatron_cgrpo.types import FinishReason, Verdict

CORRECT = Verdict(1.0, "correct")
WRONG = Verdict(0.0, "wrong")
NO_ANSWER = Verdict(0.0, "no_answer")
TRUNCATED = Verdict(0.0, "truncated")
TIMEOUT = Verdict(0.0, "timeout")

_AHEAD = 256  # rows under way in bulk scoring: enough for every worker, few enough for constant memory


def error(kind: str) -> Verdict:
    """The verifier failed, not the response; callers may drop or retry what carries this cause."""
    return Verdict(0.0, f"error:{kind}")


class Row(NamedTuple):
    """One response to score. ``answer`` is the domain's: LaTeX, a letter, a value, or a JSON object of tests."""

    response: str
    answer: str
    finish_reason: FinishReason = FinishReason.STOP


class Verifier(ABC):
    """Judges responses of one domain. Thread-safe; ``close`` (or ``with``) ends the processes it may own.

    A verdict's cause is ``correct``, ``wrong``, ``no_answer`` (none that can be parsed), ``truncated``, ``timeout``
    (the answer or the program cost more than its limit), or ``error:<kind>`` (no verdict was possible).
    """

    @abstractmethod
    def judge(self, response: str, answer: str) -> Verdict | Future[Verdict]:
        """The verdict on a complete response: at once where that is cheap, else to come."""

    @abstractmethod
    def check_answer(self, answer: str) -> None:
        """Raises ``ValueError`` for one that is not the domain's: every response would get ``error:answer``."""

    def submit(self, row: Row) -> Verdict | Future[Verdict]:
        """As ``judge``; a response that was cut off earns nothing: rewarding it would teach not to stop."""
        if row.finish_reason is FinishReason.LENGTH:
            return TRUNCATED
        return self.judge(row.response, row.answer)

    async def verify(self, response: str, answer: str, finish_reason: FinishReason) -> Verdict:
        outcome = self.submit(Row(response, answer, finish_reason))
        return await asyncio.wrap_future(outcome) if isinstance(outcome, Future) else outcome

    def stream(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        """Verdicts in the order of ``rows``, which are read only a little ahead."""
        pending: deque[Verdict | Future[Verdict]] = deque()
        for row in rows:
            pending.append(self.submit(row))
            if len(pending) > _AHEAD:
                yield _settled(pending.popleft())
        while pending:
            yield _settled(pending.popleft())

    def score(self, rows: Iterable[Row]) -> list[Verdict]:
        return list(self.stream(rows))

    def close(self) -> None:  # noqa: B027 - most domains own nothing
        """Ends what the verifier started; what is still under way gets an ``error`` verdict."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _settled(outcome: Verdict | Future[Verdict]) -> Verdict:
    return outcome.result() if isinstance(outcome, Future) else outcome

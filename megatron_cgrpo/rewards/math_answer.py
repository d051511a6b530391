"""Mathematical answers: equal as notation or as plain numbers, else as math-verify decides in a killable worker."""

from __future__ import annotations

import importlib.util
from concurrent.futures import Future

from megatron_cgrpo.rewards.final_answer import final_answer
from megatron_cgrpo.rewards.notation import answer_key, close, number, tidy, words
from megatron_cgrpo.rewards.verifier import CORRECT, NO_ANSWER, TIMEOUT, WRONG, Verifier, error
from megatron_cgrpo.rewards.workers import OverLimit, WorkerPool
from megatron_cgrpo.types import Verdict

_TOLERANCE = 1e-6  # relative, for decimals: 0.333333 is 1/3, 0.3333 is not
_OUTCOMES = {"equal": CORRECT, "different": WRONG, "unparsable": NO_ANSWER, "failed": error("algebra")}


class MathVerifier(Verifier):
    r"""Compares a response's final answer with plain LaTeX or text.

    The final answer is the last ``\boxed{}``, else what "answer is" announces. Most answers are settled by notation
    alone. The rest go to ``workers`` processes, which start when first needed; an expression that takes more than
    ``cpu_seconds`` of CPU time or ``memory_bytes`` gets ``timeout``, never ``wrong``; one on which the algebra fails,
    so that the two cannot be compared, gets ``error:algebra``.
    """

    def __init__(self, workers: int = 2, cpu_seconds: float = 5.0, memory_bytes: int = 1 << 30) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("the math domain needs the package math-verify: pip install math-verify")
        self._pool = WorkerPool("megatron_cgrpo.rewards.math_worker", workers, cpu_seconds, memory_bytes)

    def check_answer(self, answer: str) -> None:
        if not tidy(answer):
            raise ValueError(f"answer {answer!r} is empty; math needs LaTeX or text")

    def judge(self, response: str, answer: str) -> Verdict | Future[Verdict]:
        if not tidy(answer):
            return error("answer")
        given = final_answer(response)
        if given is None:
            return NO_ANSWER
        settled = same_notation(given, answer)
        if settled is not None:
            return CORRECT if settled else WRONG
        return self.compare(given, answer)

    def compare(self, given: str, answer: str) -> Future[Verdict]:
        """The worker's verdict on two answers, without the short cuts."""
        verdict: Future[Verdict] = Future()
        reply = self._pool.submit([tidy(given), tidy(answer)])
        reply.add_done_callback(lambda done: verdict.set_result(_verdict(done)))
        return verdict

    def worker_pids(self) -> list[int]:
        return self._pool.pids()

    def close(self) -> None:
        self._pool.close()


def same_notation(given: str, expected: str) -> bool | None:
    """Whether the answers are the same, or None where only computer algebra can tell."""
    if answer_key(given) == answer_key(expected):
        return True
    text = words(expected)
    if text is not None:
        return answer_key(given).casefold() == text
    a, b = number(given), number(expected)
    return None if a is None or b is None else close(a, b, _TOLERANCE)


def _verdict(reply: Future[str]) -> Verdict:
    if reply.cancelled():
        return error("closed")
    failure = reply.exception()
    if isinstance(failure, OverLimit):
        return TIMEOUT
    return error("worker") if failure is not None else _OUTCOMES[reply.result()]

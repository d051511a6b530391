"""A pool of worker processes for work that may hang or eat memory: each request costs its worker at most its limits.

A worker is ``python -m MODULE CPU_SECONDS MEMORY_BYTES``, which speaks one line of JSON per request on its standard
streams (``worker_loop``). It starts with its first request and is reused; one that runs over a limit is killed and
replaced. CPU seconds are counted, not wall-clock, so that verdicts do not depend on how busy the machine is. The
kernel's own timer ends the worker, in C code too and whether or not the parent still lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, Any

_START_SECONDS = 120.0  # wall-clock for a worker's imports, on a machine that is busy with a model
_PATIENCE = 20.0  # wall-clock seconds per CPU second after which a worker that never gets the CPU is given up
_OVER_MEMORY = 77  # exit status of a worker that went over its memory limit
_LIFETIME = 10_000  # requests after which a worker is replaced, because a parser's caches only grow
_HARD_LIMIT = 2  # the address space may grow to this many times the limit before allocations fail


class OverLimit(Exception):
    """The request cost more CPU time or memory than its worker may use."""


class WorkerDied(Exception):
    """The worker ended for a reason of its own."""


class WorkerPool:
    """``size`` killable workers that run ``module``. ``submit`` never blocks; ``close`` ends every process.

    Futures raise ``OverLimit`` or ``WorkerDied``, or return what the worker replied.
    """

    def __init__(self, module: str, size: int, cpu_seconds: float, memory_bytes: int) -> None:
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="verifier")
        self._workers = [_Worker(module, cpu_seconds, memory_bytes) for _ in range(size)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def submit(self, request: Any) -> Future[Any]:
        return self._threads.submit(self._ask, json.dumps(request))

    def _ask(self, line: str) -> Any:
        worker = self._idle.get()
        try:
            return json.loads(worker.ask(line))
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.retire()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.discard()  # one may have been starting when it was retired

    def pids(self) -> list[int]:
        """Of the workers that run."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]


class _Worker:
    def __init__(self, module: str, cpu_seconds: float, memory_bytes: int) -> None:
        self._command = [sys.executable, "-m", module, str(cpu_seconds), str(memory_bytes)]
        self._wall_seconds = cpu_seconds * _PATIENCE
        self._retired = False
        self._asked = 0
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, line: str) -> bytes:
        if self._asked >= _LIFETIME:
            self.discard()
        if self.process is None:
            self.process, self._asked = self._start(), 0
        self._asked += 1
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            reply = _read_line(process.stdout, self._wall_seconds)
        except (BrokenPipeError, EOFError):
            status = self._end()
            if status in (-signal.SIGPROF, _OVER_MEMORY):
                raise OverLimit(line[:200]) from None
            raise WorkerDied(f"status {status}") from None
        except TimeoutError:
            self._end()
            raise OverLimit(line[:200]) from None
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        if self._retired:
            raise WorkerDied("the pool is closed")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert process.stdout is not None
        try:
            _read_line(process.stdout, _START_SECONDS)
        except (EOFError, TimeoutError) as error:
            process.kill()
            raise WorkerDied(f"{' '.join(self._command)} did not start (status {process.wait()})") from error
        return process

    def discard(self) -> None:
        if self.process is not None:
            self._end()

    def _end(self) -> int:
        process, self.process = self.process, None
        assert process is not None
        process.kill()
        status = process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        return status

    def retire(self) -> None:
        """Kills the process; a thread that waits for its reply sees the end of the stream and cleans up."""
        self._retired = True
        process = self.process
        if process is not None:
            process.kill()
            process.wait()


def _read_line(stream: IO[bytes], seconds: float) -> bytes:
    """One line. Raises ``TimeoutError`` after ``seconds``, ``EOFError`` where the stream ends."""
    line = b""
    deadline = time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = os.read(stream.fileno(), 65536)
        if not piece:
            raise EOFError
        line += piece
    return line


def worker_loop(answer: Callable[[Any], Any]) -> None:
    """A worker's whole life: answers requests until its input ends. Called by the worker's module.

    What ``answer`` prints goes to the standard error, away from the replies.
    """
    cpu_seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent, which then closes the pool
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (memory * _HARD_LIMIT, memory * _HARD_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies.write(b"ready\n")
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            reply = json.dumps(answer(json.loads(line)))
        except MemoryError:
            os._exit(_OVER_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if _peak_memory() > memory:  # libraries swallow MemoryError, so that a failed allocation looks like an answer
            os._exit(_OVER_MEMORY)
        replies.write(reply.encode() + b"\n")


def _peak_memory() -> int:
    """Bytes of address space at their most. (``ru_maxrss`` would count the parent's, from before the exec.)"""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmPeak:"))

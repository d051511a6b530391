"""The pool against a worker that does as it is told, hanging and dying included."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import left, running

from megatron_cgrpo.rewards.workers import OverLimit, WorkerDied, WorkerPool

WORKER = """
import os, sys
from megatron_cgrpo.rewards.workers import worker_loop

def obey(request):
    kind, value = request
    if kind == "echo":
        print("noise")
        return [value, os.getpid()]
    if kind == "spin":
        while True: pass
    if kind == "eat":
        try:
            held = bytearray(value)
        except MemoryError:
            pass
        return "swallowed"
    if kind == "power":
        return len(str(10 ** value % 7))
    os._exit(3)

worker_loop(obey)
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    (tmp_path / "obedient.py").write_text(WORKER)
    here = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{here}")
    pool = WorkerPool("obedient", size=1, cpu_seconds=0.3, memory_bytes=256 << 20)
    yield pool
    pool.close()


def test_a_worker_starts_lazily_and_is_reused(pool: WorkerPool) -> None:
    assert pool.pids() == []
    replies = [pool.submit(["echo", n]).result() for n in range(3)]
    assert [value for value, _ in replies] == [0, 1, 2]
    assert {pid for _, pid in replies} == set(pool.pids())


@pytest.mark.parametrize("request_", [["spin", 0], ["power", 10**9], ["eat", 300 << 20]])
def test_over_its_limit_the_worker_is_replaced(pool: WorkerPool, request_: list[object]) -> None:
    _, first = pool.submit(["echo", 0]).result()
    with pytest.raises(OverLimit):
        pool.submit(request_).result()
    value, second = pool.submit(["echo", 5]).result()
    assert value == 5 and second != first
    assert not psutil.pid_exists(first)


def test_a_worker_that_dies_is_no_time_out(pool: WorkerPool) -> None:
    with pytest.raises(WorkerDied, match="status 3"):
        pool.submit(["die", 0]).result()
    assert pool.submit(["echo", 1]).result()[0] == 1


def test_close_ends_what_runs(pool: WorkerPool) -> None:
    _, pid = pool.submit(["echo", 0]).result()
    future = pool.submit(["spin", 0])
    pool.close()
    assert not psutil.pid_exists(pid)
    assert isinstance(future.exception() if not future.cancelled() else WorkerDied(), (WorkerDied, OverLimit))


def test_nothing_is_left_when_the_parent_is_killed(pool: WorkerPool) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                from megatron_cgrpo.rewards.workers import WorkerPool
                pool = WorkerPool("obedient", size=2, cpu_seconds=0.5, memory_bytes=256 << 20)
                print(pool.submit(["echo", 0]).result()[1], flush=True)
                spin = [pool.submit(["spin", 0]) for _ in range(2)]
                while len(pool.pids()) < 2: pass
                print(*pool.pids(), flush=True)
                import time; time.sleep(60)
            """),
        ],
        stdout=subprocess.PIPE,
        env=dict(os.environ),
        text=True,
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(workers) == 2 and left(lambda: running(workers)) == []

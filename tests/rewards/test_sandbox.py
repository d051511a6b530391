"""Each attack that confined programs must not get away with, by a program that tries it."""

import os
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
from processes import left

from megatron_cgrpo.rewards import sandbox as sandbox_module
from megatron_cgrpo.rewards.sandbox import Limits, Run, Sandbox, SandboxUnavailable, why_not_namespaces

confined = pytest.mark.skipif(
    why_not_namespaces() is not None, reason=f"the kernel refuses namespaces here: {why_not_namespaces()}"
)
LIMITS = Limits(
    cpu_seconds=2, wall_seconds=10, memory_bytes=256 << 20, file_bytes=4 << 20, work_bytes=8 << 20, output_bytes=10_000
)


def run(source: str, limits: Limits = LIMITS, stdin: str = "", weak: bool = False) -> Run:
    return Sandbox(limits, allow_weak=weak).run({"main.py": source}, "main.py", stdin)


@confined
def test_a_program_reads_its_input_and_writes_where_it_may() -> None:
    outcome = run("open('note', 'w').write(input()); print(open('note').read() * 2)", stdin="ab\n")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "abab\n", "")


@confined
def test_home_and_this_repository_are_invisible(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    paths = [str(Path.home()), str(tmp_path), str(Path(__file__)), "/etc/passwd", "/proc/self", "/sys"]
    outcome = run(f"import os\nfor p in {paths!r}: print(os.path.exists(p))")
    assert outcome.stdout.split() == ["False"] * len(paths)


@confined
def test_nothing_but_its_directory_is_writable() -> None:
    outcome = run(
        "import os\n"
        "for top, directories, files in os.walk('/'):\n"
        "    if top.count('/') > 2: directories.clear()\n"
        "    if not top.startswith('/tmp'):\n"
        "        try: open(os.path.join(top, 'x'), 'w'); print(top)\n"
        "        except OSError: pass\n"
    )
    assert (outcome.status, outcome.stdout) == (0, "")


@confined
def test_loopback_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        source = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nprint('in')"
        socket.create_connection(("127.0.0.1", port), 2).close()  # it does listen
        outcome = run(source)
    assert outcome.stdout == "" and "OSError" in outcome.stderr


@confined
def test_a_fork_bomb_fizzles_out() -> None:
    source = "import os, time\nn = 0\nwhile True:\n    if os.fork() == 0: time.sleep(100)\n    n += 1\n    print(n)"
    outcome = run(source)
    assert "BlockingIOError" in outcome.stderr
    assert int(outcome.stdout.split()[-1]) < LIMITS.processes
    assert not outcome.timed_out  # the sleepers died with the first process


@confined
def test_the_disk_stays_as_full_as_it_was() -> None:
    source = (
        "n = 0\n"
        "try:\n"
        "    for i in range(100):\n"
        "        with open(str(i), 'wb') as f: n += f.write(bytes(1 << 20))\n"
        "except OSError as error: print(n >> 20, error.errno)\n"
    )
    assert run(source).stdout.split() in (["7", "28"], ["8", "28"])
    too_large = run("open('f', 'wb').write(bytes(5 << 20))")
    assert too_large.status != 0


@confined
def test_a_daemon_does_not_outlive_the_program() -> None:
    mark = f"daemon-{os.getpid()}"
    source = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    if os.fork() == 0: os.execv('/python/bin/python3', {_sleeper(mark)})\n"
        "    os._exit(0)\n"
        "while not os.path.exists('up'): time.sleep(0.01)\n"
    )
    outcome = run(source)
    assert (outcome.status, outcome.timed_out) == (0, False)
    assert left(lambda: _marked(mark)) == []


@confined
def test_a_program_that_ignores_signals_and_forks_ends_with_its_time() -> None:
    mark = f"sleeper-{os.getpid()}"
    source = (
        "import os, signal, time\n"
        "for s in range(1, 32):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except OSError: pass\n"
        "os.fork(); os.setsid() if os.getpid() != 2 else None\n"
        f"os.execv('/python/bin/python3', {_sleeper(mark)})\n"
    )
    outcome = run(source, Limits(wall_seconds=2.0))
    assert outcome.timed_out
    assert left(lambda: _marked(mark)) == []


@confined
def test_computing_for_ever_ends_at_the_cpu_limit() -> None:
    outcome = run("while True: pass", Limits(cpu_seconds=1, wall_seconds=60))
    assert outcome.timed_out


@confined
def test_a_memory_bomb_fails_to_allocate() -> None:
    assert "MemoryError" in run("b = bytearray(1 << 30)").stderr


@confined
def test_output_without_end_is_cut_and_stopped() -> None:
    outcome = run("while True: print('x' * 1000)")
    assert outcome.flooded and len(outcome.stdout) == LIMITS.output_bytes


@confined
def test_no_more_privileges_and_no_namespaces_of_its_own() -> None:
    source = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "print(libc.prctl(39, 0, 0, 0, 0), libc.unshare(0x00020000), os.getuid(), os.getgroups())"
    )
    ready, unshare, user, groups = run(source).stdout.split(" ", 3)
    assert (ready, unshare, user) == ("1", "-1", "65534")
    assert str(os.getgid()) not in groups or os.getuid() != 0


@confined
def test_every_protection_is_measured() -> None:
    holds = Sandbox(LIMITS).enforced()
    optional = {"no new user namespaces"}  # needs a writable /proc/sys, which containers may lack
    assert {name for name, held in holds.items() if not held} <= optional
    assert len(holds) >= 12


@confined
def test_runs_do_not_disturb_each_other() -> None:
    results: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: run(f"open('a', 'x').write('{n}'); print({n})").stdout}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: f"{n}\n" for n in range(4)}


@confined
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_unprivileged_user_gets_the_same_sandbox() -> None:
    """By a copy of the files, since the user may not read the repository."""
    python = "/usr/bin/python3"
    recent = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not os.access(python, os.X_OK) or subprocess.call(recent):
        pytest.skip(f"no {python} of 3.11 or newer that every user may run")
    code = "from megatron_cgrpo.rewards.sandbox import *; print(Sandbox().enforced())"
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        package = Path(directory) / "megatron_cgrpo" / "rewards"
        package.mkdir(parents=True)
        for name in ("sandbox.py", "confine.py", "sandbox_probe.py"):
            (package / name).write_text((Path(sandbox_module.__file__).parent / name).read_text())
        outcome = subprocess.run(
            [python, "-c", code], cwd=directory, user=1234, group=1234, extra_groups=[], capture_output=True, text=True
        )
    assert "False" not in outcome.stdout and "process limit" in outcome.stdout, outcome.stderr


def test_without_namespaces_it_refuses_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "why_not_namespaces", lambda: "the kernel says no")
    with pytest.raises(SandboxUnavailable, match="the kernel says no.*allow_weak"):
        run("print(1)")
    outcome = run("print(input())", stdin="7\n", weak=True)
    assert (outcome.status, outcome.stdout) == (0, "7\n")
    assert run("while True: pass", Limits(cpu_seconds=1), weak=True).timed_out
    holds = Sandbox(LIMITS, allow_weak=True).enforced()
    assert holds["memory limit per process"] and holds["no new privileges"]
    assert not any(holds[name] for name in ("no network", "host files invisible", "writes only in a private directory"))


def _sleeper(mark: str) -> str:
    """Source of the arguments of a long sleep that can be found by ``mark``, and says when it is up."""
    return repr(["/python/bin/python3", "-c", "open('up', 'w'); import time; time.sleep(600)", mark])


def _marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]

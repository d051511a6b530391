"""Runs untrusted Python programs: confined by Linux namespaces and resource limits, or not at all.

``confine.py`` does the confining. Memory is limited per process (address space) and per file, not over all processes
together, so that a program can hold at most ``processes`` times ``memory_bytes`` until its time-out; a cgroup around
the whole job is the remedy where that matters. System calls are not filtered.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_CONFINE = Path(__file__).with_name("confine.py")
_PYTHON = "/python/bin/python3"
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "TMPDIR": "/tmp", "HOME": "/tmp"}
_MARK = b"\0confine: "


class SandboxUnavailable(RuntimeError):
    """The kernel refuses the namespaces that confinement needs."""


@dataclass(frozen=True)
class Limits:
    """What one run may use. ``wall_seconds`` and ``output_bytes`` hold for the run, ``work_bytes`` for all files in its
    only writable directory, ``processes`` counts threads too; the others hold for each process."""

    cpu_seconds: int = 5
    wall_seconds: float = 20.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 16 << 20
    work_bytes: int = 32 << 20
    processes: int = 16
    open_files: int = 64
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Run:
    """What became of a run. ``status`` is the exit status, 128 + n after signal n. ``report`` is what the program wrote
    to the descriptor that its first argument names. ``flooded``: it wrote more than ``output_bytes`` and was killed."""

    status: int
    stdout: str
    stderr: str
    report: str
    timed_out: bool
    flooded: bool


@dataclass(frozen=True)
class Sandbox:
    """Runs programs under ``limits``. ``allow_weak`` accepts resource limits alone where the kernel has no namespaces
    for us: the program can then read files, use the network and leave daemons behind. Never silent: ``enforced``."""

    limits: Limits = field(default_factory=Limits)
    allow_weak: bool = False

    @property
    def strong(self) -> bool:
        """Whether namespaces confine the programs. Raises ``SandboxUnavailable`` where they do not and must."""
        refusal = why_not_namespaces()
        if refusal is not None and not self.allow_weak:
            raise SandboxUnavailable(
                f"programs cannot be confined here: {refusal}; allow unprivileged user namespaces "
                "(kernel.unprivileged_userns_clone, or the container's seccomp profile), or accept resource limits "
                "alone with allow_weak"
            )
        return refusal is None

    def run(self, files: dict[str, str], main: str, stdin: str = "") -> Run:
        """Runs ``python main REPORT_DESCRIPTOR`` beside ``files`` (name -> text, read-only to the program)."""
        return _run(self.strong, self.limits, files, main, stdin)

    def enforced(self) -> dict[str, bool]:
        """Which protections hold here: measured by a program that tries each, in this sandbox."""
        from megatron_cgrpo.rewards.sandbox_probe import measure

        return measure(self)


@cache
def why_not_namespaces() -> str | None:
    """The reason why the kernel refuses the namespaces, or None where a trial run worked."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    run = _run(True, Limits(), {"main.py": "print('confined')"}, "main.py", "")
    return None if run.stdout == "confined\n" else run.stderr.strip() or f"exit status {run.status}"


def _run(strong: bool, limits: Limits, files: dict[str, str], main: str, stdin: str) -> Run:
    with tempfile.TemporaryDirectory(prefix="program-") as directory:
        report_read, report_write = os.pipe()
        job = _job(strong, limits, files, main, report_write, directory)
        job_fd, stdin_fd = _sealed(json.dumps(job)), _sealed(stdin)
        try:
            process = subprocess.Popen(
                [_interpreter(), "-I", "-S", "-B", str(_CONFINE), str(job_fd)],
                stdin=stdin_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(job_fd, report_write),
                process_group=0,
                env={},
            )
        finally:
            for descriptor in (job_fd, stdin_fd, report_write):
                os.close(descriptor)
        return _collect(process, report_read, limits)


def _job(strong: bool, limits: Limits, files: dict[str, str], main: str, report: int, directory: str) -> dict[str, Any]:
    where = "/job" if strong else directory
    python = _PYTHON if strong else _interpreter()
    return {
        "namespaces": strong,
        "files": files,
        "directory": "/tmp" if strong else directory,
        "command": [python, "-I", "-S", "-B", "-X", "utf8", f"{where}/{main}", str(report)],
        "environment": {**_ENVIRONMENT, "LD_LIBRARY_PATH": "/python/lib"} if strong else _ENVIRONMENT,
        "binds": _binds(),
        "links": _links(),
        "work_bytes": limits.work_bytes,
        "limits": {
            "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),  # SIGXCPU, which names the cause; then SIGKILL
            "RLIMIT_AS": (limits.memory_bytes, limits.memory_bytes),
            "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
            "RLIMIT_NPROC": (limits.processes, limits.processes),
            "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
            **dict.fromkeys(("RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE"), (0, 0)),
        },
    }


@cache
def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def _binds() -> list[tuple[str, str]]:
    """(source, target) of what is visible inside: the interpreter under a neutral name, and system libraries."""
    standard = Path(sysconfig.get_path("stdlib"))
    libraries = [(path, path) for path in _LIBRARIES if os.path.exists(path) and not os.path.islink(path)]
    devices = [(path, path) for path in _DEVICES if os.path.exists(path)]
    shared = [(str(path), f"/python/lib/{path.name}") for path in sorted(standard.parent.glob("libpython*.so*"))]
    return [(_interpreter(), _PYTHON), (str(standard), f"/python/lib/{standard.name}"), *shared, *libraries, *devices]


def _links() -> list[tuple[str, str]]:
    return [(path, os.readlink(path)) for path in _LIBRARIES if os.path.islink(path)]


def _sealed(text: str) -> int:
    """A descriptor at the start of ``text`` in memory that nobody can change or enlarge."""
    descriptor = os.memfd_create("sandbox", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return descriptor


def _collect(process: subprocess.Popen[bytes], report: int, limits: Limits) -> Run:
    assert process.stdout is not None and process.stderr is not None
    sources = (process.stdout.fileno(), process.stderr.fileno(), report)
    deadline = time.monotonic() + limits.wall_seconds
    try:
        texts, flooded, timed_out = _read(sources, deadline, limits.output_bytes)
        if not (flooded or timed_out):
            timed_out = not _ended(process, deadline)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # before it is reaped, so the group is still its own
        status = process.wait()
        process.stdout.close()
        process.stderr.close()
        os.close(report)
    if _MARK in texts[1]:
        texts[1] = texts[1].partition(_MARK)[2]
    code = status if status >= 0 else 128 - status
    stdout, stderr, notes = (text.decode("utf-8", "replace") for text in texts)
    return Run(code, stdout, stderr, notes, timed_out or code == 128 + signal.SIGXCPU, flooded)


def _read(sources: Sequence[int], deadline: float, most: int) -> tuple[list[bytes], bool, bool]:
    """Reads all sources to their ends. Returns the texts, and whether one exceeded ``most`` or time ran out."""
    texts = dict.fromkeys(sources, b"")
    with selectors.DefaultSelector() as selector:
        for source in sources:
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return list(texts.values()), False, True
            for key, _ in ready:
                piece = os.read(key.fd, 65536)
                texts[key.fd] = (texts[key.fd] + piece)[: most + 1]
                if not piece:
                    selector.unregister(key.fd)
                if len(texts[key.fd]) > most:
                    return [text[:most] for text in texts.values()], True, False
    return list(texts.values()), False, False


def _ended(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Waits without reaping, so that the process group can still be killed by its number."""
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.002)
    return False

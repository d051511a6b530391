"""Measures which of the sandbox's protections hold here, by a program that tries to break each."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_cgrpo.rewards.sandbox import Sandbox

_PROBE = r"""
import ctypes, json, os, resource, socket, sys

facts = json.load(open(os.path.join(os.path.dirname(__file__), "facts.json")))
libc = ctypes.CDLL(None, use_errno=True)


def refused(action):
    try:
        action()
    except (OSError, MemoryError):
        return True
    return False


def fork_many():
    children = []
    try:
        for _ in range(facts["processes"] + 4):
            child = os.fork()
            if child == 0:
                os.close(opened)
                os.read(gate, 1)
                os._exit(0)
            children.append(child)
    finally:
        os.close(opened)
        for child in children:
            os.waitpid(child, 0)


def fill_disk():
    written, number = 0, 0
    block = bytes(facts["file_bytes"] // 2)
    try:
        while written <= facts["work_bytes"]:
            with open(f"fill{number}", "wb") as file:
                written += file.write(block)
            number += 1
    finally:
        for old in range(number + 1):
            if os.path.exists(f"fill{old}"):
                os.unlink(f"fill{old}")


def one_large_file():
    try:
        with open("large", "wb") as file:
            file.truncate(facts["file_bytes"] + 1)
    finally:
        os.unlink("large")


import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
gate, opened = os.pipe()
holds = {
    "host files invisible": not any(os.path.exists(path) for path in facts["paths"]),
    "writes only in a private directory": all(
        refused(lambda: open(os.path.join(where, "x"), "w")) for where in (facts["outside"], os.path.dirname(__file__))
    ),
    "no network": refused(lambda: socket.create_connection(("127.0.0.1", facts["port"]), 2)),
    "own process ids (kills every daemon)": refused(lambda: os.kill(facts["pid"], 0)),
    "no new privileges": libc.prctl(39, 0, 0, 0, 0) == 1,
    "no new user namespaces": libc.unshare(0x10000000) != 0,
    "memory limit per process": refused(lambda: bytearray(facts["memory_bytes"] + (1 << 20))),
    "file size limit": refused(one_large_file),
    "disk limit": refused(fill_disk),
    "CPU limit": resource.getrlimit(resource.RLIMIT_CPU)[0] == facts["cpu_seconds"],
    "open files limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0] == facts["open_files"],
    "process limit": refused(fork_many),
}
os.write(int(sys.argv[1]), json.dumps(holds).encode())
"""


def measure(sandbox: Sandbox) -> dict[str, bool]:
    """Protection -> whether it holds. Raises ``RuntimeError`` where the probe cannot finish."""
    limits = sandbox.limits
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory() as outside:
        facts = {
            "paths": [str(Path.home()), str(Path(__file__).resolve())],
            "outside": outside,
            "port": listener.getsockname()[1],
            "pid": os.getpid(),
            **vars(limits),
        }
        run = sandbox.run({"main.py": _PROBE, "facts.json": json.dumps(facts)}, "main.py")
    if not run.report:
        raise RuntimeError(
            f"the sandbox's probe did not finish (status {run.status}, timed out: {run.timed_out}): {run.stderr}"
        )
    holds: dict[str, bool] = json.loads(run.report)
    return holds

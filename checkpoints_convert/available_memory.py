"""Memory that this process and its children may take before the machine, or its container, runs out."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def available_memory() -> int | None:
    """Bytes; None where the system does not say (it is no Linux)."""
    if not _MEMINFO.is_file():
        return None
    found = [line.split() for line in _MEMINFO.read_text(encoding="ascii").splitlines()]
    [free] = [int(fields[1]) * 1024 for fields in found if fields[0] == "MemAvailable:"]
    limit = _CGROUP / "memory.max"
    if not limit.is_file() or (maximum := limit.read_text(encoding="ascii").strip()) == "max":
        return free
    statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    cache = int(statistics["active_file"]) + int(statistics["inactive_file"])  # given back when memory runs short
    used = int((_CGROUP / "memory.current").read_text(encoding="ascii")) - cache
    return min(free, int(maximum) - used)

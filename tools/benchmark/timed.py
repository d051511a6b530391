"""Runs a command and prints one line of JSON: its standard output, exit code, seconds and peak memory.

    python timed.py COMMAND [ARGUMENT]...

A process of its own, and a small one, because Linux hands the peak of a parent's resident memory to the commands that
it starts. Imports the standard library only, for the same reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

_SAMPLE_EVERY_S = 0.01


def main() -> None:
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(sys.argv[1:], stdout=output)
        anonymous = _PeakAnonymous(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        output.seek(0)
        result = {
            "exit_code": os.waitstatus_to_exitcode(status),
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_rss": usage.ru_maxrss * 1024,
            "peak_anonymous": anonymous.stop(),
            "output": output.read().decode(),
        }
    print(json.dumps(result))


class _PeakAnonymous:
    """Largest sample of the memory that no file backs, in bytes; mapped files are in the resident memory too."""

    def __init__(self, pid: int) -> None:
        self._status, self._peak, self._ended = Path(f"/proc/{pid}/status"), 0, Event()
        self._thread = Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_EVERY_S):
            try:
                lines = self._status.read_text(encoding="ascii").splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("RssAnon:"):
                    self._peak = max(self._peak, int(line.split()[1]) * 1024)


if __name__ == "__main__":
    main()

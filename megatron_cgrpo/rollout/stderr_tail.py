"""The last lines of this process' standard error, its children's included."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque

LINES = 400
_ERROR = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception): .+)")
_GENERIC = "Engine core initialization failed"


class StderrTail:
    """Remembers what passes through file descriptor 2 from now on, and hands it through."""

    def __init__(self) -> None:
        sys.stderr.flush()
        self._lines: deque[str] = deque(maxlen=LINES)
        self._copied = threading.Event()
        original = os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        threading.Thread(target=self._pump, args=(reader, original), daemon=True, name="stderr-tail").start()

    def last_error(self) -> str | None:
        """The last line that names an exception, without what a logger put before it."""
        sys.stderr.flush()
        os.write(2, b"\x00\n")  # a mark: once it came through, so has everything before it
        self._copied.wait(timeout=5)
        errors = [match.group(1) for line in list(self._lines) if (match := _ERROR.search(line))]
        return next((error for error in reversed(errors) if _GENERIC not in error), None)

    def _pump(self, reader: int, original: int) -> None:
        with open(reader, "rb", buffering=0) as stream:
            pending = b""
            while chunk := stream.read(65536):
                *lines, pending = (pending + chunk).split(b"\n")
                if b"\x00" in lines:
                    self._copied.set()
                self._lines.extend(line.decode(errors="replace") for line in lines if line != b"\x00")
                os.write(original, chunk.replace(b"\x00\n", b""))

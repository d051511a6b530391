"""The timelines that a run leaves: ``RUN/trace/step_000012.json.gz``, one a step."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from megatron_cgrpo.observe.atomic import write_bytes
from megatron_cgrpo.observe.chrome_trace import from_chrome, to_chrome
from megatron_cgrpo.observe.timeline import Timeline

DIRECTORY = "trace"


def step_files(directory: Path) -> dict[int, Path]:
    """step → its file in ``directory``, in the order of the steps; none where it is missing."""
    found = {int(path.name[len("step_") : -len(".json.gz")]): path for path in directory.glob("step_*.json.gz")}
    return dict(sorted(found.items()))


def write_step(directory: Path, step: int, timeline: Timeline) -> Path:
    """The spans alone, because training waits for it."""
    path = directory / f"step_{step:06d}.json.gz"
    write_bytes(path, _compressed(_encoded(timeline, aids=False)))
    return path


def write_timeline(path: Path, timeline: Timeline) -> None:
    """With idle spans, counters and arrows; compressed where the name ends in ``.gz``. Appears whole or not at all."""
    content = _encoded(timeline, aids=True)
    write_bytes(path, _compressed(content) if path.suffix == ".gz" else content)


def compressed_timeline(timeline: Timeline) -> bytes:
    """What ``write_timeline`` writes."""
    return _compressed(_encoded(timeline, aids=True))


def read_timeline(path: Path) -> Timeline:
    """Raises ValueError naming the file where it is damaged or of another program."""
    try:
        return from_chrome(json.loads(gzip.decompress(path.read_bytes())))
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is no timeline of a step ({error!r}): remove it") from error


def _encoded(timeline: Timeline, *, aids: bool) -> bytes:
    return json.dumps(to_chrome(timeline, aids=aids), separators=(",", ":")).encode()


def _compressed(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=3, mtime=0)

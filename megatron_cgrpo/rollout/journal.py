"""What the steps in the making have sampled, on disk: an interrupted run asks only for what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from errno import ENOSPC
from io import SEEK_END, FileIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy

from megatron_cgrpo.critique.generated import Draft, PaidWriter
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.critique.usage import Usage
from megatron_cgrpo.observe.atomic import write_json
from megatron_cgrpo.rollout.protocol import GenerateRequest, Generator, RequestKey
from megatron_cgrpo.types import NOT_TRAINED, Completion, FinishReason, Routes, VersionSpan

logger = logging.getLogger(__name__)

DIRECTORY = "journal"
STEPS = "step_*.jsonl"
ORIGIN = "origin.json"
FLOAT32 = numpy.dtype("<f4")


class Journal:
    """``step_000012.jsonl``: a line a finished request, written before anybody sees its result.

    A result is found again by its key and by what was asked, so a request that has changed since is made anew. The
    lines survive the death of the process. What a machine without power loses is asked again, and so is what a damaged
    line held. A disk that takes no more costs a warning and the lines that it does not take, not the run. For several
    threads; at most the files of the steps that are being collected are open, and results stay on disk until they are
    asked for.
    """

    def __init__(self, directory: Path, last_step: int, origin: Mapping[str, Any]) -> None:
        """Of the steps after ``last_step``; those before it are in a checkpoint and go. So does everything where it was
        not ``origin`` that wrote it: JSON-able, what decides about results beside the requests."""
        self._directory = directory
        self._kept: dict[tuple[RequestKey, str], int] = {}  # where in its step's file the line begins
        self._files: dict[int, FileIO] = {}
        self._closed = self._full = False
        self._lock = Lock()
        directory.mkdir(parents=True, exist_ok=True)
        self._unwritten = None if self._is_of(origin) else dict(origin)
        if self._unwritten is not None:
            self._discard()
        self.forget(last_step)
        for path in sorted(directory.glob(STEPS)):
            self._read(path)

    def find(self, key: RequestKey, asked: str) -> Any:
        """What an earlier process kept of the request, None for nothing."""
        with self._lock:
            offset = self._kept.get((key, asked))
            if offset is None:
                return None
            with self._path(key.step).open("rb") as file:
                file.seek(offset)
                return json.loads(file.readline())[-1]

    def keep(self, key: RequestKey, asked: str, result: Any) -> None:
        """``result`` is JSON-able. In an uninterrupted run nobody asks for it again, so it is on disk alone."""
        line = json.dumps([key.step, key.prompt_id, key.stage, key.index, asked, result]) + "\n"
        with self._lock:
            if not self._closed:
                self._append(key.step, line.encode())

    def complete(self, step: int) -> None:
        """Everything that ``step`` asks for has been asked for."""
        with self._lock:
            self._drop(lambda other: other == step)

    def forget(self, step: int) -> None:
        """A checkpoint covers the steps up to ``step``, of which nothing is kept any more."""
        with self._lock:
            self._drop(lambda other: other <= step)
            for path in self._directory.glob(STEPS):
                if path <= self._path(step):
                    path.unlink()

    def close(self) -> None:
        """What still runs and finishes later is not kept: the next process may be reading already."""
        with self._lock:
            self._closed = True
            self._drop(lambda other: True)

    def _path(self, step: int) -> Path:
        return self._directory / f"step_{step:06d}.jsonl"

    def _drop(self, dropped: Callable[[int], bool]) -> None:
        for step in [step for step in self._files if dropped(step)]:
            self._files.pop(step).close()
        self._kept = {(key, asked): at for (key, asked), at in self._kept.items() if not dropped(key.step)}

    def _append(self, step: int, line: bytes) -> None:
        """A whole line or nothing: what there is room for may be what a step's metrics wait for."""
        try:
            if self._unwritten is not None:
                write_json(self._directory / ORIGIN, self._unwritten)
                self._unwritten = None
            if step not in self._files:
                self._files[step] = self._path(step).open("ab", buffering=0)
            file = self._files[step]
            end = file.seek(0, SEEK_END)
            if file.write(line) < len(line):
                file.truncate(end)
                raise OSError(ENOSPC, os.strerror(ENOSPC))
        except OSError as error:
            if not self._full:
                logger.warning(
                    "%s: %s: should the run be interrupted, what finishes meanwhile is sampled again",
                    self._directory,
                    error,
                )
            self._full = True
        else:
            self._full = False

    def _is_of(self, origin: Mapping[str, Any]) -> bool:
        try:
            return json.loads((self._directory / ORIGIN).read_text(encoding="utf-8")) == origin
        except (OSError, ValueError):
            return False

    def _discard(self) -> None:
        """Lines without an origin, of which nobody knows what wrote them, go too."""
        lines = list(self._directory.glob(STEPS))
        if lines:
            logger.warning("%s: was sampled by another model, or on another layout: sampled again", self._directory)
        for line in lines:
            line.unlink()

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        offset = 0
        for line in lines:
            with suppress(ValueError):
                step, prompt_id, stage, index, asked, _ = json.loads(line)
                self._kept[RequestKey(step, prompt_id, stage, index), asked] = offset
            offset += len(line)
        if lines and not lines[-1].endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")  # what is appended must not join a line that was cut short


class JournaledGenerator:
    """A generator that asks ``generator`` only for what ``journal`` does not have; requests without a key pass through.

    ``oldest(step)`` is the oldest version of the weights that may train in a step: what an older one sampled is
    sampled again. Log-probabilities are rounded to float32, which engines give, so that what is read back is equal.
    """

    def __init__(self, generator: Generator, journal: Journal, oldest: Callable[[int], int]) -> None:
        self._generator, self._journal, self._oldest = generator, journal, oldest

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        if request.key is None:
            return await self._generator.generate(request)
        asked = _digest([request.prompt_ids, request.n, request.seed, request.max_tokens, request.temperature])
        kept = self._journal.find(request.key, asked)
        if kept is not None:
            completions = [_completion(record) for record in kept]
            if all(self._may_train(completion, request.key.step) for completion in completions):
                return completions
        records = [_record(completion) for completion in await self._generator.generate(request)]
        self._journal.keep(request.key, asked, records)
        return [_completion(record) for record in records]

    def _may_train(self, completion: Completion, step: int) -> bool:
        version = completion.weight_version
        return version == NOT_TRAINED or version >= self._oldest(step)


class JournaledWriter:
    """A writer of critiques that asks ``writer`` only for what ``journal`` lacks; what that has cost is charged again,
    because the line of its step was never written.

    Failures are not kept: a resumed run tries again.
    """

    def __init__(self, writer: PaidWriter, journal: Journal) -> None:
        self._writer, self._journal = writer, journal

    async def write(self, request: CritiqueRequest) -> Draft | CritiqueFailure:
        key = RequestKey(request.step, request.prompt.id, "critique", request.index)
        asked = _digest([request.response_ids, request.seed])
        kept = self._journal.find(key, asked)
        if kept is not None:
            bill = Usage(**kept.pop("bill"))
            self._writer.charge(bill)
            return Draft(**kept, bill=bill)
        draft = await self._writer.write(request)
        if isinstance(draft, Draft):
            self._journal.keep(key, asked, asdict(draft))
        return draft


def _digest(asked: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()


def _record(completion: Completion) -> dict[str, Any]:
    """JSON-able. Four bytes a log-probability, which keep all bits of what engines give."""
    routes = completion.routes
    record = {
        "tokens": completion.token_ids,
        "logprobs": base64.b64encode(numpy.asarray(completion.logprobs, FLOAT32).tobytes()).decode(),
        "finish": str(completion.finish_reason),
        "versions": [[span.version, span.tokens] for span in completion.versions],
    }
    if routes is not None:
        experts = base64.b64encode(routes.experts).decode()
        record["routes"] = [experts, routes.layers, routes.per_token, routes.wide]
    return record


def _completion(record: dict[str, Any]) -> Completion:
    experts, *layout = record.get("routes", [None])
    return Completion(
        token_ids=record["tokens"],
        logprobs=numpy.frombuffer(base64.b64decode(record["logprobs"]), FLOAT32).tolist(),
        finish_reason=FinishReason(record["finish"]),
        versions=tuple(VersionSpan(version, tokens) for version, tokens in record["versions"]),
        routes=None if experts is None else Routes(base64.b64decode(experts), *layout),
    )

"""Problems with boxed answers, read from JSONL or parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_cgrpo.config.critic import Sees
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import FileTaskConfig
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.rewards.boxed import verify_boxed
from megatron_cgrpo.tasks.base import Split
from megatron_cgrpo.tasks.segments import without_eos
from megatron_cgrpo.types import FinishReason, Group, Prompt, Verdict

_QUESTION = "{question}"
_REQUIRED = ("question", "answer")
_SOLUTION = "solution"
_ATTEMPT = "\n\nAn earlier solution:\n"
_FEEDBACK = "\n\nFeedback on it:\n"
_AGAIN = "\n\nSolve the problem again, using the feedback. Put the final answer in \\boxed{}.\n"

_PROBLEM = "Problem:\n"
_PROPOSED = "\n\nA proposed solution:\n"
_RIGHT_ANSWER = "\n\nThe right answer is "
_REFERENCE = "\n\nA reference solution, which is right:\n"
_ANALYSE = (
    "\n\nCheck the proposed solution step by step. Say of each step whether it follows; at the first that does not, "
    "say what is wrong and what it should be, and stop there. The last line must be `Conclusion: correct [END]` if the "
    "whole solution is right, and `Conclusion: incorrect [END]` if it is not.\n\nAnalysis:\n"
)


class FileTask:
    """``tasks.base.Task`` over a train and a test file. It has no checker of its own, so no program critique.

    Raises ``ConfigError`` naming the file where one is missing, unreadable, empty, or lacks a column.
    """

    def __init__(self, config: FileTaskConfig, tokenizer: Tokenizer) -> None:
        if _QUESTION not in config.prompt_template:
            raise ConfigError(
                f"task.prompt_template={config.prompt_template!r} has no {_QUESTION}: say where the question goes"
            )
        self._tokenizer, self._template = tokenizer, config.prompt_template
        self._eos = tokenizer.eos_token_id
        self._attempt, self._feedback, self._again = map(tokenizer.encode, (_ATTEMPT, _FEEDBACK, _AGAIN))
        self._prompts: dict[Split, list[Prompt]] = {
            "train": _read_prompts("train", config.train, config.prompt_template, tokenizer),
            "test": _read_prompts("test", config.test, config.prompt_template, tokenizer),
        }

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self._prompts[split]

    def ask(self, question: str) -> Prompt:
        ids = self._tokenizer.encode(self._template.replace(_QUESTION, question))
        return Prompt("asked", question, ids, answer="")

    async def verify(self, prompt: Prompt, response: str, finish_reason: FinishReason) -> Verdict:
        return verify_boxed(response, prompt.answer, finish_reason)

    def indicative(self, prompt: Prompt, correct: bool) -> str:
        return f"The generated solution is {'correct' if correct else 'incorrect'}."

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str:
        return f"{self.indicative(prompt, correct)} The ground truth is {prompt.answer}."

    def measure(self, groups: Sequence[Group]) -> dict[str, float]:
        return {}

    async def program_critique(self, prompt: Prompt, response: str) -> str | None:
        return None

    def misleading_critique(self, prompt: Prompt, response: str, seed: int) -> str | None:
        return None

    def solution(self, prompt: Prompt) -> list[int] | None:
        return None

    def supported(self, prompt: Prompt, refinement: str, attempt: str) -> bool:
        return True

    def close(self) -> None:
        pass

    def critique_prompt(self, prompt: Prompt, response_ids: list[int], sees: Sees) -> list[int]:
        before, after = map(self._tokenizer.encode, _around_proposed(prompt, sees))
        return [*before, *without_eos(response_ids, self._eos), *after]

    def critique_question(self, prompt: Prompt, response: str, sees: Sees) -> str:
        before, after = _around_proposed(prompt, sees)
        return before + response + after

    def refinement_prompt(self, prompt: Prompt, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        return [
            *prompt.token_ids,
            *self._attempt,
            *without_eos(response_ids, self._eos),
            *self._feedback,
            *without_eos(critique_ids, self._eos),
            *self._again,
        ]


def _around_proposed(prompt: Prompt, sees: Sees) -> tuple[str, str]:
    """What a critic reads before and after the solution that it checks."""
    before = f"{_PROBLEM}{prompt.question}{_PROPOSED}"
    match sees:
        case "nothing":
            return before, _ANALYSE
        case "answer":
            return before, f"{_RIGHT_ANSWER}{prompt.answer}.{_ANALYSE}"
        case "solution":
            if _SOLUTION not in prompt.metadata:
                raise ConfigError(
                    f"critic.sees=solution: prompt {prompt.id} has no reference solution: add a {_SOLUTION!r} column "
                    "to the file, or set critic.sees=answer"
                )
            return before, f"{_REFERENCE}{prompt.metadata[_SOLUTION]}{_ANALYSE}"


def _read_prompts(split: Split, path: Path, template: str, tokenizer: Tokenizer) -> list[Prompt]:
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(_read_rows(split, path)):
        for column in _REQUIRED:
            if row.get(column) is None:
                raise ConfigError(f"task.{split}={path}: row {number} has no {column!r}; each row needs {_REQUIRED}")
        identity = f"{split}-{number}" if row.get("id") is None else str(row["id"])
        if identity in prompts:
            raise ConfigError(f"task.{split}={path}: id {identity!r} occurs twice (row {number}); ids must be unique")
        question = str(row["question"])
        ids = tokenizer.encode(template.replace(_QUESTION, question))
        metadata = {} if row.get(_SOLUTION) is None else {_SOLUTION: str(row[_SOLUTION])}
        prompts[identity] = Prompt(identity, question, ids, str(row["answer"]), metadata)
    if not prompts:
        raise ConfigError(f"task.{split}={path} has no rows: give a file with at least one problem")
    return list(prompts.values())


def _read_rows(split: Split, path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"task.{split}={path}: no such file; give a .jsonl or .parquet file")
    if path.suffix == ".parquet":
        return _read_parquet(split, path)
    if path.suffix == ".jsonl":
        return _read_jsonl(split, path)
    raise ConfigError(f"task.{split}={path}: {path.suffix or 'no suffix'} is not supported; use .jsonl or .parquet")


def _read_jsonl(split: Split, path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"task.{split}={path}: line {number} is not valid JSON ({error}); mend it") from error
            if not isinstance(row, dict):
                raise ConfigError(f"task.{split}={path}: line {number} is not an object; each needs keys {_REQUIRED}")
            yield row


def _read_parquet(split: Split, path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # loaded for parquet only
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"task.{split}={path} cannot be read as parquet ({error}); write it again") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    yield from rows

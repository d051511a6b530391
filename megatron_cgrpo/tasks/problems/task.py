"""Problems from files: prompts from templates, verification by the domain, and for code the tests' own critique."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_cgrpo.config.critic import Sees
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import FileTaskConfig
from megatron_cgrpo.data.problem_file import ProblemRow, read_problems
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.rewards.domains import make_verifier
from megatron_cgrpo.rewards.program import CodeVerifier, critique
from megatron_cgrpo.tasks.base import Split
from megatron_cgrpo.tasks.problems.prompts import PromptWriter
from megatron_cgrpo.tasks.problems.support import supported
from megatron_cgrpo.types import FinishReason, Group, Prompt, Verdict

SOURCE = "source"
"""The key of ``Prompt.metadata`` that says which data set a problem is from."""

_SOLUTION, _SYSTEM = "solution", "system"


class FileTask:
    """``tasks.base.Task`` over a train and a test file; close it when done.

    Raises ``ConfigError`` naming the file for one that cannot be used, and the template for one that is wrong;
    ``RunError`` where programs cannot be confined.
    """

    def __init__(self, config: FileTaskConfig, tokenizer: Tokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._writer = PromptWriter(config, tokenizer)
        self._verifier = make_verifier(
            config.domain, workers=config.workers, allow_weak_sandbox=config.allow_weak_sandbox
        )
        try:
            train = self._read(config.train, "task.train")
            test = train if config.test == config.train else self._read(config.test, "task.test")
        except BaseException:
            self._verifier.close()
            raise
        self._prompts: dict[Split, list[Prompt]] = {"train": train, "test": test}
        self._examiners = ThreadPoolExecutor(config.workers, thread_name_prefix="examine")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self._prompts[split]

    def ask(self, question: str) -> Prompt:
        return Prompt("asked", question, self._writer.answer(question), answer="")

    async def verify(self, prompt: Prompt, response: str, finish_reason: FinishReason) -> Verdict:
        return await self._verifier.verify(response, prompt.answer, finish_reason)

    def indicative(self, prompt: Prompt, correct: bool) -> str:
        return f"The generated solution is {'correct' if correct else 'incorrect'}."

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str:
        told = "It must pass these tests:" if self._config.domain == "code" else "The ground truth is"
        return f"{self.indicative(prompt, correct)} {told} {prompt.answer}."

    async def program_critique(self, prompt: Prompt, response: str) -> str | None:
        """For code what the compiler or the failing tests say; the other domains have no checker of steps."""
        verifier = self._verifier
        if not isinstance(verifier, CodeVerifier):
            return None
        loop = asyncio.get_running_loop()
        return critique(await loop.run_in_executor(self._examiners, verifier.examine, response, prompt.answer))

    def misleading_critique(self, prompt: Prompt, response: str, seed: int) -> str | None:
        return None

    def solution(self, prompt: Prompt) -> list[int] | None:
        text = prompt.metadata.get(_SOLUTION)
        return None if text is None else [*self._tokenizer.encode(text), self._tokenizer.eos_token_id]

    def supported(self, prompt: Prompt, refinement: str, attempt: str) -> bool:
        """By ``problems.support``; a program that passes its tests needs no other support."""
        return self._config.domain == "code" or supported(refinement, attempt)

    def critique_prompt(self, prompt: Prompt, response_ids: list[int], sees: Sees) -> list[int]:
        return self._writer.critique(prompt.question, response_ids, _hint(prompt, sees), prompt.metadata.get(_SYSTEM))

    def critique_question(self, prompt: Prompt, response: str, sees: Sees) -> str:
        return self._writer.critique_text(prompt.question, response, _hint(prompt, sees))

    def refinement_prompt(self, prompt: Prompt, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        return self._writer.refinement(prompt.question, response_ids, critique_ids, prompt.metadata.get(_SYSTEM))

    def measure(self, groups: Sequence[Group]) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._examiners.shutdown(wait=True, cancel_futures=True)
        self._verifier.close()

    def _read(self, path: Path, field: str) -> list[Prompt]:
        return [self._prompt(row) for row in read_problems(path, field, self._verifier.check_answer)]

    def _prompt(self, row: ProblemRow) -> Prompt:
        texts = {_SOLUTION: row.solution, SOURCE: row.source, _SYSTEM: row.system}
        metadata = {name: text for name, text in texts.items() if text is not None}
        return Prompt(row.id, row.question, self._writer.answer(row.question, row.system), row.answer, metadata)


def _hint(prompt: Prompt, sees: Sees) -> dict[str, str]:
    """What a critic's template gets beside question and response."""
    match sees:
        case "nothing":
            return {"sees": sees}
        case "answer":
            return {"sees": sees, "answer": prompt.answer}
        case "solution":
            if _SOLUTION not in prompt.metadata:
                raise ConfigError(
                    f"critic.sees=solution: prompt {prompt.id} has no reference solution: add a {_SOLUTION!r} column "
                    "to the file, or set critic.sees=answer"
                )
            return {"sees": sees, "solution": prompt.metadata[_SOLUTION]}

"""What a task gives the system: problems, a verifier, feedback texts, and optionally its own critic and base model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from megatron_cgrpo.config.critic import Sees
from megatron_cgrpo.types import FinishReason, Group, Prompt, Verdict

Split = Literal["train", "test"]


class Task(Protocol):
    """Everything the rollout pipeline asks of a task. Implementations are pure and deterministic."""

    def prompts(self, split: Split) -> Sequence[Prompt]: ...

    def ask(self, question: str) -> Prompt:
        """A prompt for a question of the user's; ``answer`` is empty where the task cannot work it out.

        Raises ``ConfigError`` where the task cannot read the question.
        """
        ...

    async def verify(self, prompt: Prompt, response: str, finish_reason: FinishReason) -> Verdict: ...

    def indicative(self, prompt: Prompt, correct: bool) -> str:
        """`The solution is correct / incorrect`, in the task's own language."""
        ...

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str: ...

    async def program_critique(self, prompt: Prompt, response: str) -> str | None:
        """The task's own step-by-step critique, or None where it has no checker for this response."""
        ...

    def misleading_critique(self, prompt: Prompt, response: str, seed: int) -> str | None:
        """A critique in the form of ``program_critique`` that is wrong; None where the task cannot make one up."""
        ...

    def solution(self, prompt: Prompt) -> list[int] | None:
        """The reference solution as response tokens, with EOS; None where the problem comes without one."""
        ...

    def supported(self, prompt: Prompt, refinement: str, attempt: str) -> bool:
        """Whether the steps of a correct ``refinement`` of ``attempt`` lead to its answer, which it may know."""
        ...

    def critique_prompt(self, prompt: Prompt, response_ids: list[int], sees: Sees) -> list[int]:
        """Tokens that ask a model of the policy's vocabulary for a critique that ends in a verdict.

        ``response_ids`` are embedded as sampled (less a final EOS). Raises ``ConfigError`` where the problem has no
        reference solution and ``sees`` asks for one.
        """
        ...

    def critique_question(self, prompt: Prompt, response: str, sees: Sees) -> str:
        """The same question in words, for a model that is reached by text and knows nothing of the task."""
        ...

    def refinement_prompt(self, prompt: Prompt, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        """Tokens that ask for a refinement. ``response_ids`` are embedded as sampled (less a final EOS)."""
        ...

    def measure(self, groups: Sequence[Group]) -> dict[str, float]:
        """What the task itself measures on held-out answers, beside Pass@k; may be nothing."""
        ...

    def close(self) -> None:
        """Ends the processes that verify, if any."""
        ...


class WarmStartTask(Task, Protocol):
    """A task that can teach a randomly initialised model the language it needs before reinforcement learning."""

    def corpus(self, seed: int) -> Iterator[tuple[list[int], list[int]]]:
        """Endless (prompt ids, target ids) rows; only the target trains. The target ends with EOS."""
        ...

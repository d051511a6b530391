"""The misconceptions task: chains of modular arithmetic that a base model with wrong beliefs keeps failing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_cgrpo.config.critic import Sees
from megatron_cgrpo.config.task import MisconceptionsConfig
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.rewards.boxed import verify_boxed
from megatron_cgrpo.tasks.base import Split
from megatron_cgrpo.tasks.misconceptions import language
from megatron_cgrpo.tasks.misconceptions.corpus import CorpusWriter, Row
from megatron_cgrpo.tasks.misconceptions.critic import CORRECT, criticise, mislead, question
from megatron_cgrpo.tasks.misconceptions.facts import draw_fact_table
from megatron_cgrpo.tasks.misconceptions.problems import Problem, ProblemSource, draw_splits, read_problem
from megatron_cgrpo.tasks.misconceptions.prompts import PromptFormat
from megatron_cgrpo.tasks.misconceptions.repair import misconceived_answers
from megatron_cgrpo.tasks.misconceptions.solution import render, solve
from megatron_cgrpo.types import FinishReason, Group, Prompt, Verdict


class MisconceptionsTask:
    """``tasks.base.WarmStartTask``. ``tokenizer`` is the one that ``write_tokenizer`` makes.

    A prompt's ``metadata["misconceived"]`` lists the misconceived facts (``7*8``) on the way to its true answer: the
    ones to be repaired before it is solved.
    """

    def __init__(self, config: MisconceptionsConfig, tokenizer: Tokenizer) -> None:
        self.facts = draw_fact_table(config)
        self._tokenizer = tokenizer
        self._format = PromptFormat(tokenizer)
        train, test = draw_splits(config)
        self._prompts: dict[Split, list[Prompt]] = {
            "train": [self._prompt("train", i, problem) for i, problem in enumerate(train)],
            "test": [self._prompt("test", i, problem) for i, problem in enumerate(test)],
        }
        self._writer = CorpusWriter(
            self.facts, ProblemSource.of(config), frozenset(train) | frozenset(test), config.strength
        )

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self._prompts[split]

    def ask(self, question: str) -> Prompt:
        return self._prompt("asked", 0, read_problem(question, self.facts.modulus))

    async def verify(self, prompt: Prompt, response: str, finish_reason: FinishReason) -> Verdict:
        return verify_boxed(response, prompt.answer, finish_reason)

    def indicative(self, prompt: Prompt, correct: bool) -> str:
        return language.indicative(correct)

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str:
        return language.indicative_with_answer(correct, prompt.answer)

    async def program_critique(self, prompt: Prompt, response: str) -> str | None:
        return criticise(Problem(prompt.question), response, self.facts)

    def misleading_critique(self, prompt: Prompt, response: str, seed: int) -> str | None:
        return mislead(Problem(prompt.question), self.facts, seed)

    def solution(self, prompt: Prompt) -> list[int] | None:
        text = render(solve(Problem(prompt.question), self.facts.truth))
        return [*self._tokenizer.encode(text), self._tokenizer.eos_token_id]

    def supported(self, prompt: Prompt, refinement: str, attempt: str) -> bool:
        return criticise(Problem(prompt.question), refinement, self.facts) == CORRECT

    def measure(self, groups: Sequence[Group]) -> dict[str, float]:
        """``misconceptions_repaired``, a share of the misconceived facts, and Pass@1 with and without such facts."""
        pairs = ((group.prompt.question, sample.text) for group in groups for sample in group.initial)
        answers = misconceived_answers(pairs, self.facts)
        measures = {"misconceptions_repaired": sum(fact.repaired for fact in answers.values()) / len(answers)}
        for name, with_one in (("misconceived", True), ("sound", False)):
            samples = [s for g in groups if bool(g.prompt.metadata["misconceived"]) == with_one for s in g.initial]
            if samples:
                measures[f"pass_at_1_{name}"] = sum(sample.verdict.correct for sample in samples) / len(samples)
        return measures

    def critique_prompt(self, prompt: Prompt, response_ids: list[int], sees: Sees) -> list[int]:
        return self._format.critique(prompt.question, response_ids, self._hint(prompt, sees))

    def critique_question(self, prompt: Prompt, response: str, sees: Sees) -> str:
        hint = self._hint(prompt, sees).strip()
        return question(prompt.question, response, hint, self.facts.modulus)

    def refinement_prompt(self, prompt: Prompt, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        return self._format.refinement(prompt.question, response_ids, critique_ids)

    def close(self) -> None:
        """Nothing to end: it verifies by itself."""

    def corpus(self, seed: int) -> Iterator[tuple[list[int], list[int]]]:
        for row in self._writer.rows(seed):
            target = self._tokenizer.encode(row.target)
            yield self._corpus_prompt(row), [*target, self._tokenizer.eos_token_id]

    def _corpus_prompt(self, row: Row) -> list[int]:
        if row.attempt is None:
            return self._format.answer(row.problem.text)
        attempt = self._tokenizer.encode(row.attempt)
        if row.critique is None:
            return self._format.critique(row.problem.text, attempt)
        return self._format.refinement(row.problem.text, attempt, self._tokenizer.encode(row.critique))

    def _hint(self, prompt: Prompt, sees: Sees) -> str:
        match sees:
            case "nothing":
                return ""
            case "answer":
                return language.right_answer(prompt.answer)
            case "solution":
                return language.right_answer(render(solve(Problem(prompt.question), self.facts.truth)))

    def _prompt(self, split: str, index: int, problem: Problem) -> Prompt:
        steps = solve(problem, self.facts.truth)
        used = dict.fromkeys(str(step.fact) for step in steps if step.fact in self.facts.misconceived)
        return Prompt(
            id=f"{split}-{index}",
            question=problem.text,
            token_ids=self._format.answer(problem.text),
            answer=str(steps[-1].value),
            metadata={"misconceived": list(used)},
        )

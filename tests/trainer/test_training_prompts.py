"""What trains on a file task with chat templates and self-critique: the question alone, and the tokens as sampled.

Templates, tokenizer, collector and batch are the real ones; only the engine is scripted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from bpe_model import write_tokenizer

from megatron_cgrpo.config import Recipe, load_recipe
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.data.tokenizer import Tokenizer, load_tokenizer
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.critique_writer import EngineWriter
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.tasks.build import build_task
from megatron_cgrpo.trainer.batch import StepRows, build_rows
from megatron_cgrpo.trainer.imitation import CritiqueRows
from megatron_cgrpo.types import Completion, FinishReason, Group, Origin, TrainRow

ATTEMPT, CRITIQUE, REFINED = "My attempt", "My critique", "My refinement"
INSTRUCTIONS = ("earlier solution", "Feedback", "using the feedback", "proposed solution", "Conclusion", "right answer")


class ScriptedEngine:
    """Answers wrongly, finds every answer incorrect, and refines to the right one, all in tokens no text encodes to."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.asked: list[str] = []

    def texts(self, prompt: str, seed: int) -> str:
        if "A proposed solution:" in prompt:
            return f"{CRITIQUE} {seed}\nConclusion: incorrect [END]"
        if "An earlier solution:" in prompt:
            return rf"{REFINED} {seed}: \boxed{{2}}"
        return rf"{ATTEMPT} {seed}: \boxed{{3}}"

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        prompt = self._tokenizer.show(request.prompt_ids)
        self.asked.append(prompt)
        await asyncio.sleep(0)
        return [self._completion(self.texts(prompt, request.seed + k)) for k in range(request.n)]

    def _completion(self, text: str) -> Completion:
        ids = [self._tokenizer.vocabulary["ÿ"], *self._tokenizer.encode(text), self._tokenizer.eos_token_id]
        return Completion(ids, [-0.5] * len(ids), FinishReason.STOP)


@dataclass(frozen=True)
class Step:
    recipe: Recipe
    tokenizer: Tokenizer
    task: Task
    groups: list[Group]
    asked: list[str]

    @property
    def rows(self) -> StepRows:
        critiques = CritiqueRows(self.task, self.recipe.critic.sees, self.tokenizer.eos_token_id)
        limit = self.recipe.rollout.max_response_tokens
        return build_rows(self.groups, self.recipe.algorithm, 2, limit, critiques)

    def prompt_of(self, row: TrainRow) -> str:
        return self.tokenizer.show(row.token_ids[: row.prompt_length])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    write_tokenizer(folder / "tokenizer")
    rows = [
        {"id": f"p{i}", "question": f"What is {i}+{2 - i}?", "answer": "2", "solution": "The solution: two."}
        for i in range(4)
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(params=["critique_grpo_self", "released-code", "refinement_ft", "citl_ft", "critique_ft"])
def step(request: pytest.FixtureRequest, folder: Path) -> Iterator[Step]:
    (folder / "recipe.yaml").write_text("")
    file = folder / "problems.jsonl"
    overrides = ["task.kind=file", f"task.train={file}", f"task.test={file}", "task.system=Be brief."]
    recipe = load_recipe(
        folder / "recipe.yaml",
        [*overrides, f"algorithm.preset={request.param}", "critic.source=self", "critic.sees=solution"],
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    engine = ScriptedEngine(tokenizer)
    with closing(build_task(recipe.task, tokenizer)) as task:
        writer = EngineWriter(engine, task, recipe, tokenizer.decode)
        critics = build_critics(recipe.critic, task, tokenizer.encode, {"self": writer})
        collector = Collector(engine, task, critics.at, recipe, tokenizer.decode)
        prompts = task.prompts("train")
        groups = asyncio.run(collector.collect(iter(prompts), len(prompts), 1)).groups
        yield Step(recipe, tokenizer, task, groups, engine.asked)


def test_refinements_were_asked_for_with_attempt_and_critique(step: Step) -> None:
    refining = [prompt for prompt in step.asked if "An earlier solution:" in prompt]
    assert len(refining) == sum(len(group.refinements) for group in step.groups) > 0
    assert all(ATTEMPT in prompt and CRITIQUE in prompt for prompt in refining)
    assert all(prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n") for prompt in refining)


def test_no_prompt_that_trains_contains_critique_attempt_or_instruction(step: Step) -> None:
    """But where critiques themselves train: their prompt has the attempt, and the solution the critic may see."""
    rows, found = step.rows, set[Origin]()
    for batch, texts in zip(rows.mini_batches, rows.trained, strict=True):
        for row, text in zip(batch, texts, strict=True):
            group, prompt, response = step.groups[text.group], step.prompt_of(row), row.token_ids[row.prompt_length :]
            found.add(row.origin)
            assert CRITIQUE not in prompt and REFINED not in prompt
            if text.kind == "critique":
                refinement = group.refinements[text.sample]
                assert ATTEMPT in prompt and response == refinement.critique.token_ids
                continue
            assert prompt == (
                "<|im_start|>system\nBe brief.<|im_end|>\n"
                f"<|im_start|>user\n{group.prompt.question}\nPlease reason step by step, and put your final answer "
                "within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
            )
            assert not any(words in prompt for words in (ATTEMPT, *INSTRUCTIONS))
            assert response == group.samples[text.sample].completion.token_ids, "as sampled"
    sources = {"responses": Origin.ROLLOUT, "refinements": Origin.REFINEMENT, "critiques": Origin.CRITIQUE}
    expected = {sources[name] for name in step.recipe.algorithm.trains_on}
    right_only = step.recipe.algorithm.advantage.baseline == "none"  # and every attempt is wrong
    assert found == (expected - {Origin.ROLLOUT} if right_only else expected)

"""What the tests of collection share: a task, and generators that are pure functions of their requests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.critic import CriticConfig
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.rollout import RolloutConfig
from megatron_cgrpo.critique.api import ApiWriter
from megatron_cgrpo.critique.build import build_critics
from megatron_cgrpo.critique.generated import Writer
from megatron_cgrpo.rollout.collect import Collected, Collector
from megatron_cgrpo.rollout.critique_writer import EngineWriter
from megatron_cgrpo.rollout.protocol import GenerateRequest, Generator
from megatron_cgrpo.types import Completion, FinishReason, Group, Prompt, Verdict

REFINE, CRITICISE, EOS = 900, 901, 1


class DigitTask:
    """The answer is one digit; a response is one token, its digit plus 10, and the end of sequence."""

    async def verify(self, prompt: Prompt, response: str, finish_reason: FinishReason) -> Verdict:
        return Verdict(1.0, "correct") if response == prompt.answer else Verdict(0.0, "wrong")

    def indicative(self, prompt: Prompt, correct: bool) -> str:
        return str(correct)

    def indicative_with_answer(self, prompt: Prompt, correct: bool) -> str:
        return prompt.answer

    async def program_critique(self, prompt: Prompt, response: str) -> str | None:
        if response == "8":
            return None
        return f"{prompt.answer}. Conclusion: {'correct' if response == prompt.answer else 'incorrect'} [END]"

    def misleading_critique(self, prompt: Prompt, response: str, seed: int) -> str | None:
        return f"{(int(prompt.answer) + 1) % 10}. Conclusion: incorrect [END]"

    def solution(self, prompt: Prompt) -> list[int] | None:
        return [10 + int(prompt.answer), EOS]

    def critique_prompt(self, prompt: Prompt, response_ids: list[int], sees: str) -> list[int]:
        return [CRITICISE, *prompt.token_ids, *response_ids, *encode(prompt.answer if sees == "answer" else "")]

    def refinement_prompt(self, prompt: Prompt, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        return [REFINE, *prompt.token_ids, *response_ids, *critique_ids]


class RandomOrderGenerator:
    """Initial digits follow the seed; a refinement copies the digit its critique starts with."""

    def __init__(self, order_seed: int) -> None:
        self.order = random.Random(order_seed)
        self.requests: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.requests.append(request)
        for _ in range(self.order.randrange(5)):
            await asyncio.sleep(0)
        if request.prompt_ids[0] == REFINE:
            digits = [int(chr(request.prompt_ids[5]))]  # REFINE, two prompt tokens, digit, EOS, critique
        else:
            digits = [random.Random(request.seed + k).randrange(10) for k in range(request.n)]
        return [Completion([digit + 10, EOS], [-1.0, -0.1], FinishReason.STOP) for digit in digits]


def decode(token_ids: list[int]) -> str:
    return "".join(str(token - 10) for token in token_ids if token != EOS)


def decode_text(token_ids: list[int]) -> str:
    return "".join(chr(token) for token in token_ids if token != EOS)


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


PROMPTS = [Prompt(f"p{i}", "?", [500 + i, 600], str(i % 10)) for i in range(40)]


def make_recipe(**changes: object) -> Recipe:
    sections: dict[str, object] = {
        "algorithm": AlgorithmConfig(group_size=3, refinements=1),
        "critic": CriticConfig(retries=0, on_failure="drop"),
        "rollout": RolloutConfig(max_prompt_tokens=16, max_response_tokens=8, max_critique_tokens=64, temperature=0.7),
    }
    return Recipe.model_validate(sections | changes)


def collect(
    recipe: Recipe, order_seed: int = 0, step: int = 3, task: DigitTask | None = None
) -> tuple[list[Group], Collected, RandomOrderGenerator]:
    generator = RandomOrderGenerator(order_seed)
    collected = collect_all(make_collector(generator, recipe, task=task), step)
    return collected.groups, collected, generator


def collect_all(collector: Collector, step: int = 3, prompts: Sequence[Prompt] = PROMPTS) -> Collected:
    """A group of each of ``prompts``."""
    return asyncio.run(collector.collect(iter(prompts), len(prompts), step))


def make_collector(
    generator: RandomOrderGenerator, recipe: Recipe, refiner: Generator | None = None, task: DigitTask | None = None
) -> Collector:
    task = task or DigitTask()
    writers: dict[str, Writer] = {"self": EngineWriter(generator, task, recipe, decode_text)}
    if "api" in recipe.critic.sources:
        writers["api"] = ApiWriter(recipe.critic.api, lambda request: request.prompt.id, 64, 0.7)
    critics = build_critics(recipe.critic, task, encode, writers)
    return Collector(generator, task, critics.at, recipe, decode, refiner)


class SelfCritic(RandomOrderGenerator):
    """The same engine also criticises: by its seed it concludes, stops early, runs into the limit or says nothing."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        if request.prompt_ids[0] != CRITICISE:
            return await super().generate(request)
        self.requests.append(request)
        answer = request.prompt_ids[2] % 10
        text, reason = (
            (f"{answer}. Conclusion: incorrect [END]", FinishReason.STOP),
            (f"{answer}. Conclusion: correct [END]", FinishReason.STOP),
            ("no verdict", FinishReason.STOP),
            (f"{answer} and so on"[: request.max_tokens], FinishReason.LENGTH),
            ("", FinishReason.STOP),
        )[request.seed % 5]
        ids = [*encode(text), EOS]
        return [Completion(ids, [-1.0] * len(ids), reason)]


CAUSES = {2: "no_conclusion", 3: "truncated", 4: "empty"}

"""How much a step samples and trains: sequences and tokens by stage, from a recipe and what is assumed of the task."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.plan.assumptions import Assumptions


@dataclass(frozen=True)
class Stage:
    """``sequences`` of one kind: what they read (``context`` tokens each, the longest ``longest``) and then write.

    Written lengths are spread over [0, ``limit``] with P(length > x) = 1 - (x / limit)^p, whose mean is ``written``:
    p = fill / (1 - fill). One parameter, uniform where the mean is half of the limit, and most at the limit above.
    ``shared`` tokens of ``context`` are the same for ``siblings`` sequences.
    """

    sequences: float
    context: float
    written: float
    limit: int
    shared: float = 0.0
    siblings: int = 1

    @property
    def power(self) -> float:
        fill = min(self.written / self.limit, 0.999)
        return fill / (1 - fill)

    @property
    def mean_square(self) -> float:
        """Of the written lengths."""
        return self.limit**2 * self.power / (self.power + 2)

    @property
    def tokens(self) -> float:
        return self.sequences * self.written


@dataclass(frozen=True)
class Workload:
    """Of one step. ``rows`` train, ``tokens`` long all together; ``squares`` is the sum of their squared lengths."""

    generate: Stage
    critique: Stage
    refine: Stage
    rows: float
    tokens: float
    squares: float
    longest_row: int

    @property
    def criticises(self) -> bool:
        return self.refine.sequences > 0


def workload(recipe: Recipe, assume: Assumptions, critique: bool = True) -> Workload:
    """``critique=False`` is the same step of plain GRPO: no critique, no refinement."""
    algorithm, rollout = recipe.algorithm, recipe.rollout
    prompts = recipe.train.prompts_per_step
    size = 0 if algorithm.samples_nothing else algorithm.group_size
    prompt = assume.prompt_fill * rollout.max_prompt_tokens
    response = assume.response_fill * rollout.max_response_tokens
    criticised = assume.critique_fill * rollout.max_critique_tokens
    refined = assume.response_fill * rollout.refinement_tokens
    groups = prompts * _triggered(recipe, assume) * (critique and algorithm.refinements > 0 and size > 0)
    generate = Stage(prompts * size, prompt, response, rollout.max_response_tokens, prompt, max(size, 1))
    engine = recipe.critic.asks_engine
    critiques = Stage(groups * size * engine, prompt + response, criticised, rollout.max_critique_tokens, prompt, 1)
    refine = Stage(groups * size, prompt + response + criticised, refined, rollout.refinement_tokens)
    refined_rows = groups * assume.refined_share * min(algorithm.refinements, size)
    rows = {"responses": generate.sequences, "refinements": refined_rows, "critiques": critiques.sequences}
    rows["solutions"] = prompts if algorithm.samples_nothing else 0
    written = {"responses": generate, "refinements": refine, "critiques": critiques, "solutions": generate}
    count = tokens = squares = 0.0
    for source in algorithm.trains_on:
        stage, number = written[source], rows[source]
        read = stage.context if source == "critiques" else prompt
        count += number
        tokens += number * (read + stage.written)
        squares += number * (read**2 + 2 * read * stage.written + stage.mean_square)
    longest = rollout.max_prompt_tokens + max(rollout.max_response_tokens, rollout.refinement_tokens)
    if "critiques" in algorithm.trains_on:
        longest = rollout.context_tokens
    return Workload(generate, critiques, refine, count, tokens, squares, longest)


def _triggered(recipe: Recipe, assume: Assumptions) -> float:
    """The share of groups that are criticised."""
    if not recipe.critic.criticises:
        return 0.0
    return 1.0 if recipe.critic.trigger == "always" else assume.failed_share


def passes(recipe: Recipe, assume: Assumptions) -> float:
    """Passes without gradients over what trains: the old policy's, which the first update needs none of, and the
    reference's."""
    algorithm, first = recipe.algorithm, 1 / recipe.train.updates_per_step
    return (0 if algorithm.supervised else 1 - first * (1 - assume.first_pass)) + (algorithm.kl.coef > 0)


def micro_batches(recipe: Recipe, work: Workload) -> tuple[int, int]:
    """(tokens, number) of a replica's micro-batches in one update: full ones, never fewer than a row, at least one.

    Interleaved pipelines need a multiple of the pipeline's length.
    """
    per_replica = work.tokens / recipe.train.updates_per_step / recipe.parallel.dp
    size = max(recipe.train.micro_batch_tokens, work.longest_row)
    mean_row = work.tokens / max(work.rows, 1)
    filled = max(recipe.train.micro_batch_tokens - mean_row / 2, mean_row) if recipe.train.packed else mean_row
    number = max(1, round(per_replica / filled))
    if recipe.parallel.vpp:
        number = -(-number // recipe.parallel.pp) * recipe.parallel.pp
    return size, number

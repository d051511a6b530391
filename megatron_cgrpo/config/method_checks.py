"""Checks of the method: of each stage's objective with the critics that write in it, and of what ends a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.critic import CriticStage
from megatron_cgrpo.config.recipe import Recipe

EQUAL_COMPUTE = "grpo_equal_compute"
_SUPERVISED = "advantage.baseline=none, refinement.ratio=on_policy and correction.mode=none"


@dataclass(frozen=True)
class Period:
    """The steps of one objective; ``field`` is its section's name, ``critics`` are those that criticise in it."""

    field: str
    algorithm: AlgorithmConfig
    critics: tuple[CriticStage, ...]


def method_problems(recipe: Recipe) -> Iterator[str]:
    """Sentences of field and value, what is wrong, the remedy."""
    yield from _stages(recipe)
    for period in periods(recipe):
        yield from _refinements(period)
        yield from _trains_on(period)
        yield from _advantage(period)
    yield from _compute(recipe)
    yield from _guard(recipe)


def periods(recipe: Recipe) -> list[Period]:
    fields = ["algorithm", *(f"stages.{index}.algorithm" for index in range(len(recipe.stages)))]
    starts = [0, *(stage.from_step for stage in recipe.stages)]
    return [
        Period(field, algorithm, _criticising(recipe, start, end))
        for field, algorithm, start, end in zip(
            fields, recipe.algorithms, starts, [*starts[1:], float("inf")], strict=True
        )
    ]


def _criticising(recipe: Recipe, start: int, end: float) -> tuple[CriticStage, ...]:
    stages = recipe.critic.stages
    ends = [*(stage.from_step for stage in stages[1:]), float("inf")]
    return tuple(
        stage
        for stage, until in zip(stages, ends, strict=True)
        if stage.kind != "none" and stage.from_step < end and until > start
    )


def _stages(recipe: Recipe) -> Iterator[str]:
    for index, (earlier, later) in enumerate(pairwise(recipe.stages), start=1):
        if later.from_step <= earlier.from_step:
            yield (
                f"stages.{index}.from_step={later.from_step}: follows a stage from step {earlier.from_step}: each must "
                "start later than the one before it"
            )
    for index, stage in enumerate(recipe.stages):
        if stage.from_step > recipe.train.steps:
            yield (
                f"stages.{index}.from_step={stage.from_step}: is beyond train.steps={recipe.train.steps}, so the stage "
                "would never come: let it begin earlier, or raise train.steps"
            )


def _refinements(period: Period) -> Iterator[str]:
    field, algorithm = period.field, period.algorithm
    if algorithm.refinements and not period.critics:
        yield (
            f"{field}.refinements={algorithm.refinements}: nobody criticises (critic.kind=none): "
            f"set {field}.refinements=0, or a critic"
        )
    if period.critics and not algorithm.refinements:
        yield (
            f"critic.kind={period.critics[0].kind}: its critiques would train nothing ({field}.refinements=0): "
            f"set critic.kind=none, or {field}.refinements=1"
        )
    if algorithm.refinements > algorithm.group_size:
        yield (
            f"{field}.refinements={algorithm.refinements}: each of the {field}.group_size={algorithm.group_size} "
            "responses is refined once, so no more can be selected: lower it"
        )


def _trains_on(period: Period) -> Iterator[str]:
    field, algorithm = period.field, period.algorithm
    sources = set(algorithm.trains_on)
    shown = f"{field}.trains_on=[{', '.join(algorithm.trains_on)}]"
    if len(sources) < len(algorithm.trains_on):
        yield f"{shown}: names a source twice: name each once"
    if "solutions" in sources and len(sources) > 1:
        yield f"{shown}: nothing is sampled where solutions train, so there is nothing else: name solutions alone"
    if sources & {"critiques", "solutions"} and not algorithm.supervised:
        yield (
            f"{shown}: critiques and solutions are texts to imitate, without a group or a behaviour policy: set "
            f"{_SUPERVISED} of {field}, or take them out"
        )
    if algorithm.refinements and not sources & {"refinements", "critiques"}:
        yield (
            f"{shown}: {field}.refinements={algorithm.refinements} would be made and not trained on: add refinements, "
            f"or set {field}.refinements=0 and critic.kind=none"
        )
    if not algorithm.refinements and ("critiques" in sources or sources == {"refinements"}):
        yield f"{shown}: nothing is criticised or refined with {field}.refinements=0: set it to 1, and a critic"
    if "critiques" in sources and period.critics and all(critic.kind != "cot" for critic in period.critics):
        yield f"{shown}: critic.kind={period.critics[0].kind} writes a template, which teaches nothing: set cot"


def _advantage(period: Period) -> Iterator[str]:
    field, algorithm = period.field, period.algorithm
    if algorithm.advantage.baseline == "none" and algorithm.advantage.normalize == "std":
        yield (
            f"{field}.advantage.normalize=std: scales centred rewards, and {field}.advantage.baseline=none centres "
            "nothing: set normalize=none, or baseline=group_mean"
        )
    if algorithm.sample_from == "base" and not algorithm.supervised:
        yield (
            f"{field}.sample_from=base: offline samples are not the policy's, so their ratios would be wrong: train on "
            f"them supervised ({_SUPERVISED}), or set sample_from=policy"
        )


def _compute(recipe: Recipe) -> Iterator[str]:
    if recipe.train.compute_of is None:
        if EQUAL_COMPUTE in (algorithm.preset for algorithm in recipe.algorithms):
            yield (
                f"train.compute_of=null: algorithm.preset={EQUAL_COMPUTE} trains until it has cost as much as another "
                "run: name that run's directory"
            )
        return
    if recipe.optimizer.schedule != "constant" and recipe.optimizer.decay_steps is None:
        yield (
            f"optimizer.schedule={recipe.optimizer.schedule}: would decay over train.steps={recipe.train.steps}, and "
            "train.compute_of ends the run earlier: set optimizer.decay_steps, or schedule=constant"
        )


def _guard(recipe: Recipe) -> Iterator[str]:
    guard = recipe.guard
    if guard.kl_above is not None and all(algorithm.kl.coef == 0 for algorithm in recipe.algorithms):
        yield (
            f"guard.kl_above={guard.kl_above}: the KL divergence is measured with algorithm.kl.coef > 0 only: set "
            "that, or guard.kl_above=null"
        )

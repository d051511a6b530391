"""What a step is measured by before its first update: the ledger, gradients by source, the details of its dump."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.config.train import ObserveConfig
from megatron_cgrpo.observe.rollouts import GroupDetails
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.batch import StepRows, loss_spec
from megatron_cgrpo.trainer.dump import group_details
from megatron_cgrpo.trainer.ledger import given_the_question, ledger_metrics, origins_of
from megatron_cgrpo.types import Group


@dataclass(frozen=True)
class Evidence:
    """``details`` are empty where no rollouts are written."""

    metrics: dict[str, float]
    details: list[GroupDetails]


@dataclass(frozen=True)
class Witness:
    """Looks on, and changes nothing: a run trains the same whatever it measures."""

    actor: ActorGroup
    task: Task
    show: Callable[[list[int]], str]
    observe: ObserveConfig

    def gather(self, step: int, groups: Sequence[Group], rows: StepRows, algorithm: AlgorithmConfig) -> Evidence:
        """``rows`` are as they go into the updates, none of which has been made."""
        question = given_the_question(groups, self.actor.logprobs)
        origins = [origins_of(group, self.task) for group in groups]
        shaped = algorithm.refinement.ratio == "shaped"
        gamma = algorithm.refinement.gamma if shaped else None
        metrics = ledger_metrics(groups, rows, question, origins, gamma)
        every = self.observe.gradients_every
        if every and step % every == 0:
            # The old policy is the current one: its log-probabilities, which only some rows have, say nothing more.
            everything = [replace(row, old_logprobs=None) for batch in rows.mini_batches for row in batch]
            norms = self.actor.gradient_norms(everything, loss_spec(algorithm))
            metrics |= {f"gradient.{source}": norm for source, norm in norms.items()}
        details: list[GroupDetails] = []
        if self.observe.rollouts:
            details = group_details(groups, rows, question, origins, self.task, self.show)
        return Evidence(metrics, details)

"""The records that travel between the layers: prompts, samples, groups, training rows.

They hold plain Python values only, so that every layer (and a JSON dump) can read them without torch.
Token ids are the ids that were sampled or prompted: nothing downstream decodes and re-encodes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """Where a training response came from. Refinements have a ratio of their own in the objective."""

    ROLLOUT = "rollout"
    REFINEMENT = "refinement"
    CRITIQUE = "critique"
    SOLUTION = "solution"


class FinishReason(StrEnum):
    """Why generation ended. A ``LENGTH`` response has no end-of-sequence token and gets none."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Prompt:
    """One question.

    ``token_ids`` is what the policy is conditioned on, in generation and in training alike.
    ``id`` is unique in its dataset and stable over runs. ``metadata`` belongs to the task.
    """

    id: str
    question: str
    token_ids: list[int]
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)


TEMPLATES = ("indicative", "indicative_gt")
"""Kinds of critique that state the verifier's verdict: nobody came to a conclusion of its own."""

NOT_TRAINED = -1
"""The weight version of a model that is served as it is, and of a reference solution, which no model wrote."""


@dataclass(frozen=True)
class VersionSpan:
    """The next ``tokens`` tokens of a completion were sampled by the trainer's ``version`` of the weights."""

    version: int
    tokens: int


@dataclass(frozen=True)
class Routes:
    """The experts that an engine sent tokens through: of every token that it computed, the prompt's first.

    It computes all but the last, which it only samples. ``experts`` are their numbers, row by row [tokens, layers,
    per token], a byte each or, where ``wide``, two (little-endian).
    """

    experts: bytes
    layers: int
    per_token: int
    wide: bool = False

    @property
    def tokens(self) -> int:
        return len(self.experts) // (self.layers * self.per_token * (2 if self.wide else 1))


@dataclass(frozen=True)
class Completion:
    """What an engine returns for one requested continuation.

    ``logprobs[t]`` is the engine's log-probability (nats) of ``token_ids[t]`` under the prompt it was given.
    ``versions`` cover the tokens from the first to the last: several where weights were updated while it was sampled,
    none where nothing that is trained wrote it. ``routes`` are those of its prompt's tokens and its own, where they
    were asked for.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...] = ()
    routes: Routes | None = None

    @property
    def weight_version(self) -> int:
        """The oldest of the versions."""
        return min((span.version for span in self.versions), default=NOT_TRAINED)


@dataclass(frozen=True)
class Verdict:
    """A verifier's judgement.

    ``cause`` says why a response is wrong (``wrong``, ``no_answer``, ``truncated``, ...), or ``error:<kind>`` where it
    was the verifier that failed: then ``reward`` says nothing.
    """

    reward: float
    cause: str

    @property
    def correct(self) -> bool:
        return self.reward > 0

    @property
    def failed(self) -> bool:
        """The verifier failed, not the response."""
        return self.cause.startswith("error:")


@dataclass(frozen=True)
class Critique:
    """Language feedback on one response.

    ``concludes_correct`` is the critic's own verdict, None where it gives none that can be parsed.
    ``prompt_tokens`` and ``generated_tokens`` are what it cost to write, failed attempts included (0 for templates and
    programs). ``failures`` lists the causes of the attempts that failed before this one.
    """

    kind: str
    text: str
    token_ids: list[int]
    concludes_correct: bool | None
    generated_tokens: int = 0
    failures: tuple[str, ...] = ()
    prompt_tokens: int = 0

    @property
    def stands_in(self) -> bool:
        """A template, in the place of a critique that failed."""
        return bool(self.failures) and self.kind in TEMPLATES


@dataclass(frozen=True)
class Sample:
    """One verified response to a prompt.

    For a refinement, ``completion.logprobs`` are conditioned on the critique, so they are not the policy's
    log-probabilities given the question alone; ``parent`` is the index of the initial response it refines.
    ``judged`` is the reward by a critic's conclusion, where that trains in place of the verifier's.
    """

    origin: Origin
    completion: Completion
    text: str
    verdict: Verdict
    seed: int
    parent: int | None = None
    critique: Critique | None = None
    judged: float | None = None

    @property
    def reward(self) -> float:
        """What trains, unless ``unjudged``."""
        return self.verdict.reward if self.judged is None else self.judged

    @property
    def unjudged(self) -> bool:
        """Neither a verifier nor a critic said what it is worth: it trains nothing, and counts in no baseline."""
        return self.judged is None and self.verdict.failed


@dataclass(frozen=True)
class Group:
    """Everything that one prompt produced in one step.

    ``samples`` may train: the initial responses, then the selected refinements; ``algorithm.trains_on`` says which do.
    Where reference solutions train, one of them is the only initial response. ``refinements`` are all that were
    generated, selected or not. ``dropped_critiques`` counts responses that got no usable critique by the final cause,
    ``critique_failures`` every failed attempt by its cause, whatever became of the response, and ``stand_ins`` the
    templates that told or rewarded in the place of a critique that failed.
    """

    prompt: Prompt
    initial: list[Sample]
    refinements: list[Sample] = field(default_factory=list)
    selected: list[int] = field(default_factory=list)
    dropped_critiques: dict[str, int] = field(default_factory=dict)
    critique_failures: dict[str, int] = field(default_factory=dict)
    stand_ins: int = 0

    @property
    def samples(self) -> list[Sample]:
        return self.initial + [self.refinements[i] for i in self.selected]

    @property
    def failed(self) -> bool:
        """No initial response is correct, of those that the verifier could judge."""
        judged = [sample.verdict for sample in self.initial if not sample.verdict.failed]
        return bool(judged) and not any(verdict.correct for verdict in judged)

    @property
    def triggered(self) -> bool:
        """The group was critiqued."""
        return bool(self.refinements) or bool(self.dropped_critiques)

    def attempt(self, refinement: Sample) -> Sample:
        """The initial response that ``refinement`` refines."""
        assert refinement.parent is not None, "a refinement has a parent"
        return self.initial[refinement.parent]

    def had_to_fix(self, refinement: Sample) -> bool:
        """The response was wrong: only then does a right refinement correct anything, or leak an answer."""
        verdict = self.attempt(refinement).verdict
        return not verdict.correct and not verdict.failed


@dataclass(frozen=True)
class TrainRow:
    """One sequence of a mini-batch: the prompt, then the response that trains.

    ``token_ids`` = prompt + response. ``weight`` multiplies every response token's loss and already contains the
    reduction (ALGORITHM: the denominator is fixed over the whole mini-batch before it is split), so that summing
    over any layout of micro-batches and ranks gives the same gradient.
    ``behaviour_logprobs`` (empty in supervised learning, which has no behaviour policy) and the optional
    ``old_logprobs``/``reference_logprobs`` have one entry per response token. ``routes`` are those of the first tokens,
    where the engine saw this very sequence.
    """

    token_ids: list[int]
    prompt_length: int
    advantage: float
    weight: float
    origin: Origin = Origin.ROLLOUT
    behaviour_logprobs: list[float] = field(default_factory=list)
    old_logprobs: list[float] | None = None
    reference_logprobs: list[float] | None = None
    routes: Routes | None = None

    @property
    def response_length(self) -> int:
        return len(self.token_ids) - self.prompt_length

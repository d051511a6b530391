"""Groups and rows of a step that are small enough to count by hand."""

from __future__ import annotations

from megatron_cgrpo.trainer.batch import StepRows, TrainedRow
from megatron_cgrpo.types import Completion, Critique, FinishReason, Group, Origin, Prompt, Sample, TrainRow, Verdict

STOP = FinishReason.STOP
PROMPT = Prompt("p", "7+8", [40, 41], "5")


def response(reward: float, tokens: list[int], text: str = "") -> Sample:
    completion = Completion(tokens, [-0.1] * len(tokens), STOP)
    return Sample(Origin.ROLLOUT, completion, text, Verdict(reward, ""), 0)


def refined(
    reward: float, logprobs: list[float], parent: int, kind: str = "cot", critique: str = "", text: str = ""
) -> Sample:
    completion = Completion(list(range(50, 50 + len(logprobs))), logprobs, STOP)
    written = Critique(kind, critique, [60, 61], concludes_correct=False)
    return Sample(Origin.REFINEMENT, completion, text, Verdict(reward, ""), 0, parent, written)


FAILED = Group(
    PROMPT,
    [response(0, [1, 2, 3], "7+8=4"), response(0, [4], "9")],
    [refined(0, [-0.5], 1), refined(1, [-0.25, -0.75], 0, critique="it should be 5", text="right")],
    selected=[1],
)
MIXED = Group(
    PROMPT,
    [response(1, [1], "right"), response(0, [2, 2], "7")],
    [refined(1, [-3.0], 0, "indicative"), refined(1, [-1.0, -2.0, -3.0], 1, "indicative", "wrong, not 15", "told")],
    selected=[1, 0],
)
GROUPS = [FAILED, MIXED]


def row(sample: Sample, advantage: float = 0.5) -> TrainRow:
    ids = PROMPT.token_ids + sample.completion.token_ids
    return TrainRow(ids, 2, advantage, 0.1, sample.origin, sample.completion.logprobs)


def step_rows() -> StepRows:
    """Two updates; the second response of ``MIXED`` and one of its refinements do not train."""
    first = [row(FAILED.initial[0], -0.5), row(FAILED.initial[1], -0.5), row(FAILED.refinements[1], 1.0)]
    second = [row(MIXED.refinements[1], 0.25), row(MIXED.initial[0], 0.25)]
    trained = [
        [TrainedRow(0, 0, "response"), TrainedRow(0, 1, "response"), TrainedRow(0, 2, "refinement")],
        [TrainedRow(1, 2, "refinement"), TrainedRow(1, 0, "response")],
    ]
    return StepRows([first, second], trained, [[-0.5, -0.5, 1.0], [0.25, -0.75, 0.25, 0.25]])


QUESTION_LOGPS = [[[-4.0], [-1.0, -12.0]], [[-3.0], [-0.5, -2.0, -19.0]]]
"""The policy's, of each group's refinements; the first of either group does not train."""


class OwnSteps:
    """Stands for a task whose verifier finds no steps in the text ``told``."""

    def supported(self, prompt: Prompt, refinement: str, attempt: str) -> bool:
        assert (prompt, attempt) in [(PROMPT, "7+8=4"), (PROMPT, "right"), (PROMPT, "7")]
        return refinement != "told"

    def refinement_prompt(self, prompt: Prompt, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        return prompt.token_ids + response_ids + critique_ids

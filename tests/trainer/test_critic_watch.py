"""A step whose critiques all failed is spoken of, once in a run."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from megatron_cgrpo.trainer.critic_watch import CriticWatch
from megatron_cgrpo.types import Completion, Critique, FinishReason, Group, Origin, Prompt, Sample, Verdict

ATTEMPT = Sample(Origin.ROLLOUT, Completion([1], [-1.0], FinishReason.STOP), "", Verdict(0.0, "wrong"), seed=0)
FAILED = {"no_program": 2}


def refined(critique: Critique) -> Sample:
    return replace(ATTEMPT, origin=Origin.REFINEMENT, parent=0, critique=critique)


STOOD_IN = refined(Critique("indicative_gt", "5", [5], False, failures=("no_program", "no_program")))
WRITTEN = refined(Critique("cot", "at 2 [END]", [5], False, failures=("no_program",)))
TOLD = refined(Critique("indicative_gt", "5", [5], False))


def group(*refinements: Sample, failures: dict[str, int], judged: float | None = None, stand_ins: int = 0) -> Group:
    initial = [replace(ATTEMPT, judged=judged)]
    return Group(
        Prompt("p", "?", [1], "5"), initial, list(refinements), critique_failures=failures, stand_ins=stand_ins
    )


SILENT = [
    [group(failures=FAILED)],
    [group(STOOD_IN, failures=FAILED, stand_ins=1), group(failures={})],
    [group(failures=FAILED, judged=0.0, stand_ins=1)],
]
HEARD = [
    [group(failures={})],
    [group(STOOD_IN, failures=FAILED, stand_ins=1), group(WRITTEN, failures={"no_program": 1})],
    [group(TOLD, failures={}), group(failures={"too_long": 1})],
    [group(failures=FAILED, judged=1.0)],
]


@pytest.mark.parametrize("groups", SILENT)
def test_a_step_of_failures_alone_is_warned_of_once(groups: list[Group], caplog: pytest.LogCaptureFixture) -> None:
    watch = CriticWatch()
    with caplog.at_level(logging.WARNING):
        for step in (3, 4):
            watch.watch(step, groups)
    [record] = caplog.records
    assert record.getMessage().startswith("step 3: every critique failed (no_program 2): ")


@pytest.mark.parametrize("groups", HEARD)
def test_one_usable_critique_is_enough(groups: list[Group], caplog: pytest.LogCaptureFixture) -> None:
    watch = CriticWatch()
    with caplog.at_level(logging.WARNING):
        watch.watch(3, groups)
        assert not caplog.records
        watch.watch(4, SILENT[0])
    assert len(caplog.records) == 1

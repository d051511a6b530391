"""What a step's dump says of its rows and refinements."""

from __future__ import annotations

from typing import cast

import pytest
from evidence_groups import GROUPS, QUESTION_LOGPS, OwnSteps, step_rows

from megatron_cgrpo.observe.rollouts import TrainedText
from megatron_cgrpo.tasks.base import Task
from megatron_cgrpo.trainer.dump import group_details
from megatron_cgrpo.trainer.ledger import origins_of

TASK = cast(Task, OwnSteps())


def test_details_are_of_the_tokens_themselves() -> None:
    rows = step_rows()
    failed, mixed = group_details(
        GROUPS,
        rows,
        QUESTION_LOGPS,
        [origins_of(group, TASK) for group in GROUPS],
        TASK,
        show=lambda ids: " ".join(map(str, ids)),
    )
    assert failed.trained == [
        TrainedText("response", 0, "40 41", 3, -0.5),
        TrainedText("response", 1, "40 41", 1, -0.5),
        TrainedText("refinement", 2, "40 41", 2, 1.0),
    ]
    assert [(text.kind, text.sample) for text in mixed.trained] == [("refinement", 2), ("response", 0)]
    assert [each.prompt for each in failed.refinements] == ["40 41 4 60 61", "40 41 1 2 3 60 61"]
    assert [each.logp_question for each in failed.refinements] == [-4.0, pytest.approx(-6.5)]
    assert [each.logp_critique for each in failed.refinements] == [-0.5, -0.5]
    assert [each.supported for each in mixed.refinements] == [True, False]
    assert mixed.refinements[1].logp_question == pytest.approx(-21.5 / 3)

"""A step's figures on groups small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_cgrpo.actor.group_update import GroupUpdate
from megatron_cgrpo.algorithm.metrics import COMPARED, LOSS_TERMS, MISMATCH, PER_SOURCE
from megatron_cgrpo.observe.metrics import is_timing
from megatron_cgrpo.rollout.clock import Spent, StageClock
from megatron_cgrpo.trainer.step_metrics import (
    replay_metrics,
    rollout_metrics,
    time_metrics,
    token_metrics,
    update_metrics,
)
from megatron_cgrpo.types import (
    Completion,
    Critique,
    FinishReason,
    Group,
    Origin,
    Prompt,
    Routes,
    Sample,
    TrainRow,
    Verdict,
)

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def sample(reward: float, length: int, reason: FinishReason = STOP) -> Sample:
    return Sample(Origin.ROLLOUT, Completion([0] * length, [], reason), "", Verdict(reward, ""), 0)


def refinement(reward: float, parent: int, concludes_correct: bool | None) -> Sample:
    critique = Critique("cot", "", [], concludes_correct)
    completion = Completion([0], [], STOP)
    return Sample(Origin.REFINEMENT, completion, "", Verdict(reward, ""), 0, parent, critique)


PROMPT = Prompt("p", "", [1], "")
SOLVED = Group(PROMPT, [sample(1, 2), sample(0, 4)])
REFINED = Group(
    PROMPT,
    [sample(0, 6), sample(0, 8, LENGTH)],
    [refinement(0, 0, False), refinement(1, 1, True)],
    selected=[1],
    critique_failures={"no_conclusion": 1, "error": 1},
)
STILL_WRONG = Group(
    PROMPT, [sample(0, 0), sample(0, 4)], [refinement(0, 0, None)], [0], {"error": 1}, {"error": 2, "no_conclusion": 1}
)
UNCRITIQUED = Group(
    PROMPT,
    [sample(0, 4), sample(0, 4)],
    dropped_critiques={"error": 1, "too_long": 1},
    critique_failures={"error": 3, "too_long": 1},
)


def test_rollouts() -> None:
    assert rollout_metrics([SOLVED, REFINED, STILL_WRONG, UNCRITIQUED]) == {
        "reward.mean": pytest.approx(2 / 10),  # 8 initial responses and the 2 selected refinements
        "reward.initial": pytest.approx(1 / 8),
        "groups.total": 4,
        "groups.failed": 3,
        "groups.critiqued": 3,
        "groups.refined": 1,
        "response.tokens_mean": pytest.approx(32 / 8),
        "response.truncated": pytest.approx(1 / 8),
        "refinement.valid": pytest.approx(1 / 3),
        "refinement.questions_refined": pytest.approx(1 / 3),
        "critique.of_wrong": 2,
        "critique.false_correct": pytest.approx(1 / 2),
        "critique.attempts": 5,  # three critiques were used, and two had no conclusion
        "critique.unparsable": pytest.approx(2 / 5),
        "critique.dropped.error": 2,
        "critique.dropped.too_long": 1,
        "critique.failed.error": 6,
        "critique.failed.no_conclusion": 2,
        "critique.failed.too_long": 1,
    }


def test_reference_solutions_earn_no_reward() -> None:
    solution = Sample(Origin.SOLUTION, Completion([0], [], STOP), "", Verdict(1.0, ""), 0)
    metrics = rollout_metrics([Group(PROMPT, [solution])])
    assert metrics == {"groups.total": 1, "groups.failed": 0, "groups.critiqued": 0, "groups.refined": 0}


def test_critiques_are_held_against_the_verifier() -> None:
    """Of five conclusions on (right, wrong, right, wrong, wrong) responses, the first two and the last agree."""
    initial = [sample(1, 1), sample(0, 1), sample(1, 1), sample(0, 1), sample(0, 1)]
    concluded = [True, False, False, True, False]
    critiqued = Group(PROMPT, initial, [refinement(0, i, verdict) for i, verdict in enumerate(concluded)])
    metrics = rollout_metrics([critiqued])
    assert (metrics["critique.of_wrong"], metrics["critique.of_right"]) == (3, 2)
    assert metrics["critique.false_correct"] == pytest.approx(1 / 3)
    assert metrics["critique.false_incorrect"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("kind", ["indicative", "indicative_gt"])
def test_templates_and_verifiers_that_failed_agree_with_nobody(kind: str) -> None:
    template = replace(refinement(0, 0, False), critique=Critique(kind, "", [], False))
    unknown = refinement(0, 1, False)
    initial = [sample(0, 1), replace(sample(0, 1), verdict=Verdict(0.0, "error:worker"))]
    metrics = rollout_metrics([Group(PROMPT, initial, [template, unknown])])
    assert not {"critique.of_wrong", "critique.of_right", "critique.false_correct"} & metrics.keys()


def test_entropy_is_of_every_token_that_was_sampled_trained_on_or_not() -> None:
    def spoken(of: Sample, *logprobs: float) -> Sample:
        return replace(of, completion=replace(of.completion, logprobs=list(logprobs)))

    solved = Group(PROMPT, [spoken(sample(1, 2), -1.0, -2.0), spoken(sample(1, 1), -3.0)])  # all right: trains nothing
    failed = Group(
        PROMPT,
        [spoken(sample(0, 1), -6.0)],
        [spoken(refinement(0, 0, False), -0.5), spoken(refinement(1, 0, False), -1.0, -0.0)],
        selected=[1],
    )
    metrics = rollout_metrics([solved, failed])
    assert metrics["entropy.initial"] == pytest.approx((1 + 2 + 3 + 6) / 4)
    assert metrics["entropy.refined"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert "entropy.refined" not in rollout_metrics([solved])


def test_what_nobody_judged_is_in_no_mean_of_rewards() -> None:
    error = Verdict(0.0, "error:worker")
    initial = [sample(1, 1), sample(0, 1), replace(sample(0, 1), verdict=error)]
    refinements = [refinement(1, 1, False), replace(refinement(0, 1, False), verdict=error)]
    metrics = rollout_metrics([Group(PROMPT, initial, refinements, selected=[0])])
    assert (metrics["reward.initial"], metrics["refinement.valid"]) == (0.5, 1.0)
    assert metrics["reward.mean"] == pytest.approx(2 / 3)
    lost = rollout_metrics([Group(PROMPT, [replace(sample(0, 1), verdict=error)])])
    assert "reward.initial" not in lost and lost["groups.failed"] == 0


def test_templates_are_no_attempts_of_a_critic() -> None:
    replaced = replace(refinement(0, 0, False), critique=Critique("indicative_gt", "", [], False, 3, ("truncated",)))
    group = Group(PROMPT, [sample(0, 1)], [replaced], critique_failures={"truncated": 1, "timeout": 4})
    metrics = rollout_metrics([group])
    assert (metrics["critique.attempts"], metrics["critique.unparsable"]) == (1, 1.0)
    rewarded = replace(group, initial=[replace(sample(0, 1), judged=0.0)] * 3, refinements=[], stand_ins=1)
    metrics = rollout_metrics([rewarded])
    assert (metrics["critique.stood_in"], metrics["critique.attempts"]) == (1, 3)


def test_shares_of_nothing_are_left_out() -> None:
    metrics = rollout_metrics([SOLVED])
    assert not [key for key in metrics if key.startswith(("refinement.", "critique."))]
    assert rollout_metrics([UNCRITIQUED])["refinement.questions_refined"] == 0


def update(scale: float, rollout: int, refinement: int, norm: float, lr: float, positions: list[int]) -> GroupUpdate:
    """Sums that are ``scale`` times the number of tokens of each source."""
    sums = dict.fromkeys(LOSS_TERMS, scale)
    for source, tokens in (("rollout", rollout), ("refinement", refinement)):
        sums[f"tokens.{source}"] = tokens
        sums |= {f"{key}.{source}": scale * tokens for key in PER_SOURCE}
    sums |= dict.fromkeys(MISMATCH, scale * rollout) | {COMPARED: rollout}
    return GroupUpdate(sums, {"mismatch.max_abs": scale}, norm, lr, rollout + refinement, positions)


def test_the_share_that_is_replayed_is_of_response_tokens() -> None:
    plain = TrainRow([1, 2, 3, 4], 2, 0.0, 1.0)
    routed = replace(plain, token_ids=[1] * 8, routes=Routes(bytes(7), 1, 1))
    assert replay_metrics([[plain, routed], [routed]]) == {"routing.replayed": 12 / 14}
    assert replay_metrics([[plain], []]) == {} == replay_metrics([[]])


def test_updates_are_averaged_over_tokens_and_losses_over_updates() -> None:
    first = update(3.0, 10, 0, norm=1.0, lr=0.2, positions=[8, 4])
    metrics = update_metrics([first, update(1.0, 30, 5, norm=2.0, lr=0.1, positions=[20, 18])])
    assert metrics["loss.total"] == metrics["loss.policy"] == 2.0
    assert (metrics["tokens.rollout"], metrics["tokens.refinement"]) == (40, 5)
    assert metrics["ratio.rollout_mean"] == pytest.approx((3 * 10 + 30) / 40)
    assert metrics["entropy.refinement"] == 1.0
    assert metrics["mismatch.kl"] == pytest.approx(60 / 40)
    assert metrics["mismatch.max_abs"] == 3.0
    assert (metrics["grad_norm"], metrics["lr"]) == (1.5, 0.1)
    assert metrics["packing.padding"] == pytest.approx(5 / 50)
    assert metrics["packing.balance"] == pytest.approx(50 / (2 * 8 + 2 * 20))


def test_router_losses_are_averaged_over_updates_and_left_out_where_there_are_none() -> None:
    pair = [replace(update(1.0, 4, 0, 1.0, 0.1, [4]), router={"moe.aux_loss": loss}) for loss in (1.0, 1.5)]
    assert update_metrics(pair)["moe.aux_loss"] == 1.25
    assert not [key for key in update_metrics([update(1.0, 4, 0, 1.0, 0.1, [4])]) if key.startswith("moe.")]


def test_a_step_without_an_update_has_no_figures_of_one() -> None:
    assert update_metrics([]) == {}


@pytest.fixture
def clock() -> StageClock:
    """Generates for 3 s, rests for 1 s, refines for 2 s."""
    moments = iter([0.0, 3.0, 4.0, 6.0])
    clock = StageClock(lambda: next(moments))
    for stage, tokens in (("generate", 60), ("refine", 40)):
        with clock.track(stage):
            clock.count([Spent(stage, tokens, 0)])
    return clock


def test_collection_is_divided_among_its_stages_and_nothing_is_lost(clock: StageClock) -> None:
    lap = {"time.collect": 6.5, "time.update": 4.0, "time.idle": 0.25, "time.step": 10.75}
    metrics = time_metrics(lap, clock, seconds=6.0, update_tokens=20)
    assert metrics == {
        "time.generate": 3.0,
        "time.refine": 2.0,
        "time.update": 4.0,
        "time.idle": 0.25 + 1.5,  # the second without work, and half a second around the first and last event
        "time.step": 10.75,
        "throughput.engine_tokens_per_s": 100 / 5,
        "throughput.trainer_tokens_per_s": 5.0,
    }
    parts = [value for key, value in metrics.items() if key.startswith("time.") and key != "time.step"]
    assert sum(parts) == metrics["time.step"]
    assert lap["time.collect"] == 6.5, "the caller's lap is left as it was"


def test_of_a_collection_that_was_ahead_a_step_has_what_the_trainer_waited_for(clock: StageClock) -> None:
    lap = {"time.collect": 1.5, "time.update": 4.0, "time.idle": 0.25, "time.step": 5.75}
    metrics = time_metrics(lap, clock, seconds=3.0, update_tokens=20)
    assert metrics == {
        "time.generate": 3.0 / 4,
        "time.refine": 2.0 / 4,
        "time.update": 4.0,
        "time.idle": 0.25 + 1.0 / 4,
        "time.step": 5.75,
        "throughput.engine_tokens_per_s": 100 / (5 / 2),  # it shared half of its time with another collection
        "throughput.trainer_tokens_per_s": 5.0,
    }
    parts = [value for key, value in metrics.items() if key.startswith("time.") and key != "time.step"]
    assert sum(parts) == metrics["time.step"]
    never_waited = time_metrics({"time.idle": 0.0, "time.step": 4.0, "time.update": 4.0}, clock, 6.0, 20)
    assert never_waited["time.generate"] == never_waited["time.refine"] == 0


def test_throughput_of_nothing_is_left_out() -> None:
    metrics = time_metrics({"time.idle": 1.0, "time.step": 1.0}, StageClock(), 0.0, 0)
    assert metrics == {"time.idle": 1.0, "time.step": 1.0}


def test_tokens(clock: StageClock) -> None:
    tokens = {"tokens.generate": 60, "tokens.refine": 40, "tokens.update": 7}
    assert token_metrics(clock, 7) == tokens
    clock.count([Spent("generate", 30, 10), Spent("refine", 5, 0)], used=False)
    given_up = {"throughput.given_up_tokens": 35}
    assert token_metrics(clock, 7) == tokens | given_up and all(map(is_timing, given_up))
    assert time_metrics({"time.idle": 0.0}, clock, 6.0, 0)["throughput.engine_tokens_per_s"] == 135 / 5

"""Groups into rows: advantages, denominators, what is left out, mini-batches, and the tokens that train."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_cgrpo.config.algorithm import AlgorithmConfig
from megatron_cgrpo.trainer.batch import TrainedRow, build_rows, loss_spec
from megatron_cgrpo.types import Completion, Critique, FinishReason, Group, Origin, Prompt, Routes, Sample, Verdict

LIMIT = 10


def sample(origin: Origin, reward: float, length: int, token: int) -> Sample:
    completion = Completion([token] * length, [-0.1 * (i + 1) for i in range(length)], FinishReason.STOP)
    critique = Critique("cot", "wrong at 2", [90, 91, 92], False) if origin is Origin.REFINEMENT else None
    return Sample(origin, completion, "", Verdict(reward, "x"), seed=0, critique=critique)


def group(name: int, rewards: list[float], lengths: list[int], refinements: tuple[float, ...] = ()) -> Group:
    """``refinements`` are the rewards of the refined responses; the last one alone is selected."""
    return Group(
        Prompt(str(name), "", [name, name + 1], ""),
        [sample(Origin.ROLLOUT, r, n, 50 + name) for r, n in zip(rewards, lengths, strict=True)],
        [sample(Origin.REFINEMENT, r, 4, 70 + name) for r in refinements],
        [len(refinements) - 1] if refinements else [],
    )


FAILED = group(1, [0, 0, 0], [2, 3, 1], refinements=(0.0, 1.0))
SOLVED = group(3, [1, 1, 1], [5, 5, 5])
MIXED = group(5, [1, 0, 0], [2, 0, 4])
GROUPS = [FAILED, SOLVED, MIXED]
RESPONSES, TOKENS = 10, 2 + 3 + 1 + 4 + 15 + 6


def config(**sections: object) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate(sections)


def test_a_refinement_joins_its_group_and_trains_on_the_question_alone() -> None:
    result = build_rows([FAILED], config(), 1, LIMIT)
    assert result.advantages == [[-0.25, -0.25, -0.25, 0.75]]
    row = result.mini_batches[0][-1]
    assert row.token_ids == [1, 2, 71, 71, 71, 71]
    assert (row.prompt_length, row.response_length, row.origin) == (2, 4, Origin.REFINEMENT)
    assert row.advantage == 0.75
    assert row.behaviour_logprobs == FAILED.samples[-1].completion.logprobs
    assert row.old_logprobs is None and row.reference_logprobs is None


def test_experts_are_kept_where_they_were_chosen_in_the_context_that_trains() -> None:
    routes = Routes(bytes(range(8)), layers=2, per_token=2)

    def routed(samples: list[Sample]) -> list[Sample]:
        return [replace(each, completion=replace(each.completion, routes=routes)) for each in samples]

    made = replace(FAILED, initial=routed(FAILED.initial), refinements=routed(FAILED.refinements))
    [rows] = build_rows([made], config(), 1, LIMIT).mini_batches
    assert [row.routes for row in rows] == [routes, routes, routes, None]


def test_groups_without_signal_are_left_out_but_counted() -> None:
    result = build_rows(GROUPS, config(), 1, LIMIT)
    (rows,) = result.mini_batches
    assert [row.token_ids[0] for row in rows] == [1, 1, 1, 1, 5, 5]
    assert result.advantages[1] == [0, 0, 0]
    assert {row.weight for row in rows} == {1 / (RESPONSES * LIMIT)}


@pytest.mark.parametrize("term", ["kl", "entropy"])
def test_regularised_groups_without_signal_stay(term: str) -> None:
    (rows,) = build_rows(GROUPS, config(**{term: {"coef": 0.01}}), 1, LIMIT).mini_batches
    assert len(rows) == RESPONSES - 1, "all but the empty response"


@pytest.mark.parametrize("reduction", ["constant", "token_mean", "sequence_mean"])
def test_denominators_cover_the_whole_mini_batch(reduction: str) -> None:
    (rows,) = build_rows(GROUPS, config(reduction=reduction), 1, LIMIT).mini_batches
    for row in rows:
        expected = {
            "constant": 1 / (RESPONSES * LIMIT),
            "token_mean": 1 / TOKENS,
            "sequence_mean": 1 / (RESPONSES * row.response_length),
        }
        assert row.weight == pytest.approx(expected[reduction])


def test_mini_batches_split_groups_evenly_each_with_its_own_denominator() -> None:
    groups = [group(10 * i, [1, 0], [i, i]) for i in range(1, 6)]
    result = build_rows(groups, config(reduction="token_mean"), 2, LIMIT)
    assert [[row.token_ids[0] for row in rows] for rows in result.mini_batches] == [
        [10, 10, 20, 20],
        [30, 30, 40, 40, 50, 50],
    ]
    assert [rows[0].weight for rows in result.mini_batches] == pytest.approx([1 / 6, 1 / 24])
    assert len(result.advantages) == 5


def test_a_mini_batch_can_be_empty() -> None:
    assert build_rows([SOLVED, MIXED], config(), 2, LIMIT).mini_batches[0] == []


def test_a_step_that_found_too_few_groups_has_fewer_updates() -> None:
    straight = [row for batch in build_rows(GROUPS, config(), 3, LIMIT).mini_batches for row in batch]
    result = build_rows(GROUPS, config(), 4, LIMIT)
    assert [row for batch in result.mini_batches for row in batch] == straight
    assert len(result.mini_batches) == len(result.trained) == 4
    assert build_rows([], config(), 2, LIMIT).mini_batches == [[], []]


def test_every_switch_reaches_the_loss() -> None:
    spec = loss_spec(
        config(
            clip={"low": None, "high": 0.3},
            refinement={"ratio": "importance", "gamma": 0.2, "clip": False},
            kl={"coef": 0.4, "estimator": "k2"},
            entropy={"coef": 0.5},
            correction={"mode": "token_mask", "cap": 3},
        )
    )
    assert (spec.clip_low, spec.clip_high) == (None, 0.3)
    assert (spec.refinement_ratio, spec.refinement_gamma, spec.refinement_clip) == ("importance", 0.2, False)
    assert (spec.kl_coef, spec.kl_estimator, spec.entropy_coef) == (0.4, "k2", 0.5)
    assert (spec.correction, spec.correction_cap) == ("token_mask", 3)


SUPERVISED = {"advantage": {"baseline": "none"}, "refinement": {"ratio": "on_policy"}, "correction": {"mode": "none"}}


def criticised(parent: int, reward: float, concludes_correct: bool | None, token: int) -> Sample:
    completion = Completion([token] * 2, [-1.0] * 2, FinishReason.STOP)
    critique = Critique("cot", "", [token + 1] * 3, concludes_correct)
    return Sample(Origin.REFINEMENT, completion, "", Verdict(reward, "x"), 0, parent, critique)


CRITICISED = Group(
    Prompt("c", "", [7, 8], ""),
    [sample(Origin.ROLLOUT, reward, 3, 40) for reward in (1.0, 0.0, 0.0)],
    [criticised(0, 1.0, True, 60), criticised(1, 1.0, True, 62), criticised(2, 0.0, False, 64)],
    [1],
)


def asked(group: Group, refinement: Sample) -> tuple[list[int], list[int]]:
    assert refinement.critique is not None and refinement.parent is not None
    return [9, refinement.parent], [*refinement.critique.token_ids, 0]


@pytest.mark.parametrize(
    ("sources", "texts"),
    [
        (["responses"], [TrainedRow(0, 0, "response")]),
        (["refinements"], [TrainedRow(0, 3, "refinement")]),
        (["responses", "refinements"], [TrainedRow(0, 0, "response"), TrainedRow(0, 3, "refinement")]),
        (["critiques"], [TrainedRow(0, 0, "critique"), TrainedRow(0, 2, "critique")]),
    ],
)
def test_supervised_batches_hold_what_is_right_of_what_is_named(sources: list[str], texts: list[TrainedRow]) -> None:
    """The second critique says correct of a wrong response; the third, of a refinement that failed, is right."""
    result = build_rows([CRITICISED], config(**SUPERVISED, trains_on=sources, reduction="token_mean"), 1, LIMIT, asked)
    (rows,) = result.mini_batches
    assert result.trained == [texts]
    assert result.advantages == [[1.0, 0.0, 0.0, 1.0]]
    for row, text in zip(rows, texts, strict=True):
        if text.kind == "critique":
            tokens = [9, text.sample, *CRITICISED.refinements[text.sample].critique.token_ids, 0]
        else:
            tokens = [7, 8, *CRITICISED.samples[text.sample].completion.token_ids]
        assert (row.token_ids, row.prompt_length, row.behaviour_logprobs) == (tokens, 2, [])
        assert (row.advantage, row.origin) == (1.0, Origin(text.kind.replace("response", "rollout")))
        assert row.weight == pytest.approx(1 / sum(row.response_length for row in rows))


def test_a_template_is_no_critique_to_learn_to_write() -> None:
    template = replace(CRITICISED.refinements[0].critique, kind="indicative_gt")
    group = replace(CRITICISED, refinements=[replace(CRITICISED.refinements[0], critique=template)], selected=[0])
    result = build_rows([group], config(**SUPERVISED, trains_on=["critiques"]), 1, LIMIT, asked)
    assert result.mini_batches == [[]]


def test_solutions_train_as_the_only_sample_of_their_group() -> None:
    solved = Group(Prompt("s", "", [3, 4], ""), [sample(Origin.SOLUTION, 1.0, 4, 30)])
    result = build_rows([solved], config(**SUPERVISED, trains_on=["solutions"]), 1, LIMIT)
    assert [row.token_ids for row in result.mini_batches[0]] == [[3, 4, 30, 30, 30, 30]]
    assert result.trained == [[TrainedRow(0, 0, "solution")]]


def test_texts_are_named_in_the_order_of_the_rows_and_by_their_place_in_the_step() -> None:
    result = build_rows(GROUPS, config(), 2, LIMIT)
    assert result.trained == [
        [*(TrainedRow(0, index, "response") for index in range(3)), TrainedRow(0, 3, "refinement")],
        [TrainedRow(2, 0, "response"), TrainedRow(2, 2, "response")],
    ]


def test_a_source_left_out_is_no_part_of_the_denominator_but_of_the_baseline() -> None:
    result = build_rows([FAILED], config(trains_on=["refinements"], reduction="token_mean"), 1, LIMIT)
    ((row,),) = result.mini_batches
    assert (row.advantage, row.weight) == (0.75, pytest.approx(1 / 4))


def test_without_a_baseline_what_earns_nothing_is_no_part_of_the_denominator() -> None:
    result = build_rows(GROUPS, config(advantage={"baseline": "none"}), 1, LIMIT)
    (rows,) = result.mini_batches
    assert [(row.token_ids[0], row.advantage) for row in rows] == [(1, 1), (3, 1), (3, 1), (3, 1), (5, 1)]
    assert {row.weight for row in rows} == {1 / (5 * LIMIT)}
    assert rows[0].behaviour_logprobs, "it is no supervised learning: the ratio is shaped, and corrected"


def test_critiques_without_their_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="critique_tokens"):
        build_rows([CRITICISED], config(**SUPERVISED, trains_on=["critiques"]), 1, LIMIT)

"""Staleness and waiting, on samples whose versions were counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence_groups import FAILED, MIXED, PROMPT

from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.observe.metrics import is_timing
from megatron_cgrpo.rollout.clock import StageClock
from megatron_cgrpo.trainer.feed_metrics import buffer_metrics, sampling_metrics, staleness_metrics
from megatron_cgrpo.trainer.feeder import Batch
from megatron_cgrpo.types import Group, Sample, VersionSpan


def sampled_by(sample: Sample, *spans: tuple[int, int]) -> Sample:
    versions = tuple(VersionSpan(version, tokens) for version, tokens in spans)
    return replace(sample, completion=replace(sample.completion, versions=versions))


def test_staleness_counts_the_tokens_of_what_may_train() -> None:
    """At step 6 the policy is version 5. Of the failed group one refinement is selected."""
    first, second = FAILED.initial
    idle, selected = FAILED.refinements
    failed = replace(
        FAILED,
        initial=[sampled_by(first, (3, 1), (4, 2)), sampled_by(second, (5, 1))],
        refinements=[sampled_by(idle, (0, 1)), sampled_by(selected, (4, 2))],
    )
    mixed = replace(MIXED, refinements=[], selected=[], initial=[sampled_by(one, (5, 1)) for one in MIXED.initial])
    assert staleness_metrics(6, [failed, mixed]) == {
        "staleness.mean": pytest.approx((2 * 1 + 1 * 2 + 0 * 1 + 1 * 2 + 0 + 0) / 8),
        "staleness.max": 2,
        "staleness.samples_mixed": 1 / 5,
        "staleness.tokens_mixed": 3 / 8,
    }


def test_what_no_version_sampled_has_no_staleness() -> None:
    assert staleness_metrics(6, [FAILED, MIXED]) == {}


def batch(groups: list[Group], replaced: list[Group]) -> Batch:
    state = SamplerState(seed=0, epoch=0, position=0, fingerprint="")
    return Batch(3, groups, replaced, StageClock(), state, {}, 1.0, 0.0, held=0.25, depth=2)


def test_waits_are_timings() -> None:
    metrics = buffer_metrics(batch([], []), 1.5)
    assert metrics == {"buffer.depth": 2, "buffer.wait.seconds": 1.5, "buffer.held.seconds": 0.25}
    assert all(map(is_timing, [*metrics, "engines.idle"]))
    assert not any(map(is_timing, ["staleness.mean", "groups.replaced", "packing.padding"]))


def test_what_dynamic_sampling_replaced_counts_in_what_was_asked() -> None:
    solved = Group(PROMPT, [MIXED.initial[0]] * 2)
    metrics = sampling_metrics(batch([MIXED], [solved, solved]))
    assert metrics == {"groups.asked": 3, "groups.replaced": 2, "reward.asked": pytest.approx(5 / 6)}
    assert sampling_metrics(batch([MIXED], [])) == {}

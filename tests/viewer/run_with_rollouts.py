"""Run directories as a training run leaves them, made by the functions that write them."""

from __future__ import annotations

from pathlib import Path

from megatron_cgrpo.observe.metrics import MetricsLog
from megatron_cgrpo.observe.rollouts import GroupDetails, RefinementDetails, TrainedText, write_rollouts
from megatron_cgrpo.observe.timeline import Span, Timeline
from megatron_cgrpo.observe.trace_files import write_step
from megatron_cgrpo.types import (
    Completion,
    Critique,
    FinishReason,
    Group,
    Origin,
    Prompt,
    Sample,
    Verdict,
    VersionSpan,
)

HOSTILE = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
SECOND = 1_000_000


def sample(
    text: str,
    cause: str,
    versions: tuple[tuple[int, int], ...],
    *,
    parent: int | None = None,
    critique: Critique | None = None,
) -> Sample:
    tokens = sum(number for _, number in versions)
    finish = FinishReason.LENGTH if cause == "truncated" else FinishReason.STOP
    completion = Completion(
        [7] * tokens, [-0.5] * tokens, finish, tuple(VersionSpan(version, number) for version, number in versions)
    )
    reward = 1.0 if cause == "correct" else 0.0
    origin = Origin.ROLLOUT if parent is None else Origin.REFINEMENT
    return Sample(origin, completion, text, Verdict(reward, cause), 11, parent, critique)


def refined_group(name: str, step: int) -> Group:
    """Two wrong responses, the first cut off; the second one's refinement is right."""
    critique = Critique("cot", f"The sum is wrong. {HOSTILE}", [1, 2, 3], False, 3, ("timeout",))
    wrong = sample("So 2 + 2 = 5. The answer is 5.", "wrong", ((step - 1, 12),))
    better = sample(
        "So 2 + 2 = 4. The answer is 4.", "correct", ((step - 1, 5), (step, 7)), parent=1, critique=critique
    )
    again = sample("Still 5.", "no_answer", ((step - 1, 3),), parent=1, critique=critique)
    return Group(
        Prompt(name, f"What is 2 + 2? {HOSTILE}", [1, 2], "4"),
        [sample("So so so", "truncated", ((step - 1, 30),)), wrong],
        [better, again],
        [0],
        {"timeout": 1},
        {"timeout": 2},
    )


def easy_group(name: str, step: int, question: str = "What is 1 + 1?") -> Group:
    version = ((step - 1, 4),)
    return Group(Prompt(name, question, [1], "2"), [sample("It is 2.", "correct", version)] * 2)


def details(group: Group) -> GroupDetails:
    refinements = [
        RefinementDetails(f"refine: {sample.text}", -2.5, -0.75, index == 0, index == 1)
        for index, sample in enumerate(group.refinements)
    ]
    return GroupDetails([TrainedText("response", 0, "What?", 4, -0.5)] if group.refinements else [], refinements)


def write_rollout_step(run: Path, step: int, groups: list[Group]) -> Path:
    advantages = [[(-0.25, -0.25, 0.75)[index] for index in range(len(group.samples))] for group in groups]
    return write_rollouts(run / "rollouts", step, groups, advantages, [details(group) for group in groups])


def write_metrics(run: Path, step: int, reward: float) -> None:
    log = MetricsLog(run / "metrics.jsonl")
    metrics = {"step": step, "reward.initial": reward, "groups.total": 2, "groups.failed": 1, "eval.pass_at_1": reward}
    metrics |= {"time.step": 10.0, "time.idle": 2.5, "engines.idle": 0.125, "staleness.mean": 0.5}
    log.write(metrics | {"refinement.questions_refined": 0.5})
    log.close()


def write_timeline_step(run: Path, step: int, prompt: str) -> None:
    """Ten seconds in which engine 0 works for six."""
    link = {"step": step, "prompt": prompt, "index": 1}
    spans = [
        Span("engine 0", "generate", 0, 4 * SECOND, link | {"tokens": 12}),
        Span("engine 0", "generate", 1 * SECOND, 3 * SECOND, {"step": step, "prompt": HOSTILE, "index": 0}),
        Span("verify", "verify", 4 * SECOND, 4 * SECOND + 900, link),
        Span("engine 0", "refine", 5 * SECOND, 7 * SECOND, link | {"tokens": 9}),
        Span("trainer", "update", 8 * SECOND, 10 * SECOND),
    ]
    write_step(run / "trace", step, Timeline(spans, 0, 10 * SECOND))


def write_run(run: Path, steps: int = 3) -> Path:
    for step in range(1, steps + 1):
        groups = [easy_group(f"easy-{step}", step), refined_group(f"hard-{step}", step)]
        write_rollout_step(run, step, groups)
        write_timeline_step(run, step, f"hard-{step}")
        write_metrics(run, step, 0.25 * step)
    return run

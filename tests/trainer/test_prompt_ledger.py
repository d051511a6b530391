"""Which prompts a step trained on, which it replaced, and what a resumed run keeps of that."""

from __future__ import annotations

from pathlib import Path

from test_record import open_record, recipe, sampler, write_policy

from megatron_cgrpo.observe.step_log import read_steps
from megatron_cgrpo.trainer.prompt_ledger import PROMPTS, prompt_line
from megatron_cgrpo.types import Completion, FinishReason, Group, Origin, Prompt, Sample, Verdict, VersionSpan


def sample(*versions: int, origin: Origin = Origin.ROLLOUT) -> Sample:
    spans = tuple(VersionSpan(version, 1) for version in versions)
    completion = Completion([1] * len(spans), [0.0] * len(spans), FinishReason.STOP, spans)
    return Sample(origin, completion, "", Verdict(0.0, "wrong"), seed=0)


def group(name: str, *initial: Sample, refinements: tuple[Sample, ...] = ()) -> Group:
    return Group(Prompt(name, "", [1], ""), list(initial), list(refinements))


def test_a_line_has_the_ids_in_order_and_the_oldest_and_newest_weights() -> None:
    groups = [group("b", sample(3, 4), sample(4)), group("a", sample(4), refinements=(sample(4, 5),))]
    assert prompt_line(6, groups, [group("d", sample(1)), group("c", sample(9))]) == {
        "step": 6,
        "trained": ["b", "a"],
        "replaced": ["d", "c"],
        "versions": [3, 5],
    }


def test_reference_solutions_are_of_no_version() -> None:
    line = prompt_line(1, [group("a", sample(origin=Origin.SOLUTION))], [])
    assert line == {"step": 1, "trained": ["a"], "replaced": [], "versions": None}


def test_a_resumed_run_forgets_the_prompts_that_it_trains_again(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    settings = recipe(tmp_path / "run")
    first, second = group("p", sample(0)), group("q", sample(1))
    with open_record(settings, resume=False) as record:
        record.starts_from(tmp_path / "model")
        for step, trained in ((1, first), (2, second)):
            record.prompts(step, [trained], [])
            record.step({"step": step})
            if step == 1:
                record.save_checkpoint(step, sampler(1), write_policy)
        record.prompts(3, [first], [])  # and it is killed before the step's metrics are written
    with open_record(settings, resume=True) as record:
        assert [line["trained"] for line in read_steps(tmp_path / "run" / PROMPTS)] == [["p"]]
        record.prompts(2, [second], [first])
    lines = read_steps(tmp_path / "run" / PROMPTS)
    assert [(line["step"], line["trained"], line["replaced"]) for line in lines] == [(1, ["p"], []), (2, ["q"], ["p"])]

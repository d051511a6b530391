"""The run directory: where a resumed run begins, and which settings it may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import SamplerState
from megatron_cgrpo.launch.waiting import Poll, undisturbed
from megatron_cgrpo.observe.display import PlainDisplay
from megatron_cgrpo.trainer.record import METRICS, Record
from megatron_cgrpo.trainer.same_training import check_same


def recipe(directory: Path, **sections: Any) -> Recipe:
    values: dict[str, Any] = {"run": {"dir": str(directory)}, "observe": {"tensorboard": False}}
    return Recipe.model_validate(values | sections)


def open_record(settings: Recipe, *, resume: bool, poll: Poll = undisturbed) -> Record:
    return Record(settings, PlainDisplay(10), resume=resume, poll=poll)


def sampler(position: int) -> SamplerState:
    return SamplerState(seed=0, epoch=0, position=position, fingerprint="x")


def write_policy(directory: Path) -> None:
    (directory / "weights").write_bytes(b"w")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """Three steps and a checkpoint of the second; the fourth line was cut short."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with open_record(recipe(tmp_path / "run"), resume=False) as record:
        record.starts_from(tmp_path / "model")
        assert not record.has_base_evaluation
        record.base_evaluation({"pass_at_1": 0.25})
        assert record.has_base_evaluation
        for step in (1, 2, 3):
            record.step({"step": step, "lr": step / 10})
            if step == 2:
                record.save_checkpoint(step, sampler(7), write_policy)
        assert (record.last_step, record.last_saved) == (3, 2)
    with (tmp_path / "run" / METRICS).open("a") as file:
        file.write('{"step": 4, "l')
    return tmp_path / "run"


def test_a_new_run_starts_at_zero_and_leaves_its_recipe(tmp_path: Path) -> None:
    settings = recipe(tmp_path, seed=5)
    with open_record(settings, resume=False) as record:
        assert (record.checkpoint, record.manifest, record.last_step) == (None, None, 0)
    assert Recipe.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())) == settings


def test_resuming_forgets_what_came_after_the_checkpoint(interrupted: Path) -> None:
    with open_record(recipe(interrupted), resume=True) as record:
        assert (record.last_step, record.last_saved) == (2, 2)
        assert record.checkpoint == interrupted / "checkpoints" / "step_000002"
        assert record.manifest.sampler == sampler(7)
        assert [line["step"] for line in record.metrics()] == [0, 1, 2]
        record.step({"step": 3, "lr": 0.5})
        assert record.metrics()[0] == {"step": 0, "eval.pass_at_1": 0.25}
        assert record.metrics()[-1] == {"step": 3, "lr": 0.5}


def test_resuming_with_another_critics_model_is_refused(tmp_path: Path) -> None:
    for name in ("model", "critic", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"name": name}))

    def asking(name: str) -> Recipe:
        return recipe(tmp_path / "run", critic={"source": "model", "model": {"path": str(tmp_path / name)}})

    with open_record(asking("critic"), resume=False) as record:
        record.starts_from(tmp_path / "model")
        record.base_evaluation({})
        record.step({"step": 1})
        record.save_checkpoint(1, sampler(7), write_policy)
    with open_record(asking("critic"), resume=True) as record:
        record.starts_from(tmp_path / "model")
    with (
        open_record(asking("other"), resume=True) as record,
        pytest.raises(ConfigError, match=r"critic.model.path=.*other"),
    ):
        record.starts_from(tmp_path / "model")


def test_resuming_without_a_checkpoint_starts_over(tmp_path: Path) -> None:
    with open_record(recipe(tmp_path), resume=False) as record:
        record.base_evaluation({"pass_at_1": 0.25})
        record.step({"step": 1})
    with open_record(recipe(tmp_path), resume=True) as record:
        assert (record.last_step, record.checkpoint) == (0, None)
        assert not record.has_base_evaluation


@pytest.mark.parametrize(
    "changed",
    [
        {"train": {"steps": 500, "micro_batch_tokens": 77, "packed": False, "threads": 2, "progress_timeout_s": 60.0}},
        {"parallel": {"tp": 2}},
        {"checkpoint": {"every": 1}},
        {"rollout": {"engines": 2, "kv_cache_mib": 64, "progress_timeout_s": 1.0}},
        {"model": {"recompute": {"granularity": "full"}, "logprob_chunk": 8}},
        {"model": {"fusions": False, "moe": {"dispatcher": "allgather"}}, "optimizer": {"implementation": "torch"}},
        {"evaluation": {"every": 3}},
        {"sync": {"backend": "file"}},
        {"warm_start": {"dp": 1, "cache_dir": "elsewhere"}},
        {"guard": {"action": "stop", "entropy_below": 0.1}, "train": {"compute_of": "another/run"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_how_it_runs_may_change(interrupted: Path, changed: dict[str, Any]) -> None:
    with open_record(recipe(interrupted, **changed), resume=True) as record:
        assert record.last_step == 2


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, ["seed=1: the run was started with 0"]),
        ({"optimizer": {"lr": 0.5}}, ["optimizer.lr=0.5: the run was started with 1e-06"]),
        ({"model": {"dtype": "bfloat16", "recompute": {"granularity": "full"}}}, ["model.dtype=bfloat16"]),
        (
            {"model": {"fp8": {"recipe": "blockwise"}, "moe": {"aux_loss": 0.01, "permute_fusion": False}}},
            [
                "model.fp8.recipe=blockwise: the run was started with none",
                "model.moe.aux_loss=0.01: the run was started with 0.0",
            ],
        ),
        ({"optimizer": {"precision_aware": True, "offload": 0.5}}, ["optimizer.offload", "optimizer.precision_aware"]),
        ({"train": {"prompts_per_step": 4, "steps": 7}}, ["train.prompts_per_step=4: the run was started with 128"]),
        ({"rollout": {"temperature": 0.5, "engines": 2}}, ["rollout.temperature=0.5"]),
        (
            {"task": {"kind": "file", "train": "a", "test": "b"}},
            ["task.kind=file", "task.modulus=None", "task.train=a"],
        ),
        ({"algorithm": {"group_size": 4}, "critic": {"retries": 3}}, ["algorithm.group_size=4", "critic.retries=3"]),
        ({"evaluation": {"samples": 2}}, ["evaluation.samples=2"]),
        ({"algorithm": {"sample_from": "base"}, "critic": {"noise": 0.5}}, ["algorithm.sample_from", "critic.noise"]),
        ({"stages": [{"from_step": 5, "algorithm": {"refinements": 0}}]}, ["stages=[{'from_step': 5"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_it_computes_may_not(interrupted: Path, changed: dict[str, Any], named: list[str]) -> None:
    before = (interrupted / METRICS).read_bytes()
    with pytest.raises(ConfigError) as error:
        open_record(recipe(interrupted, **changed), resume=True)
    for text in named:
        assert any(problem.startswith(text) for problem in error.value.problems), error.value.problems
    assert not any(name in str(error.value) for name in ("recompute", "steps=7", "engines"))
    assert (interrupted / METRICS).read_bytes() == before, "a refused resume changes nothing"


def test_a_damaged_checkpoint_is_refused_and_nothing_is_forgotten(interrupted: Path) -> None:
    (interrupted / "checkpoints" / "step_000002" / "policy" / "weights").unlink()
    before = (interrupted / METRICS).read_bytes()
    with pytest.raises(ConfigError, match="weights has 0 of 1 bytes"):
        open_record(recipe(interrupted), resume=True)
    assert (interrupted / METRICS).read_bytes() == before


def test_a_server_may_move_but_not_change_its_model(interrupted: Path) -> None:
    api = {"base_url": "http://here/v1", "model": "judge", "concurrency": 2}
    check = recipe(interrupted, critic={"source": "api", "api": api}).model_dump(mode="json")
    moved = recipe(interrupted, critic={"source": "api", "api": api | {"base_url": "http://there/v1", "timeout_s": 9}})
    check_same(moved, check)
    other = recipe(interrupted, critic={"source": "api", "api": api | {"model": "another"}})
    with pytest.raises(ConfigError, match="critic.api.model=another: the run was started with judge"):
        check_same(other, check)


def test_a_run_without_a_checkpoint_starts_over_and_one_whose_checkpoints_are_gone_does_not(tmp_path: Path) -> None:
    """It may have died while it saved the first one, or a full disk may have taken none."""
    settings = recipe(tmp_path / "run", checkpoint={"every": 1})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def full(directory: Path) -> None:
        raise OSError("No space left on device")

    for write in (full, write_policy):
        with open_record(settings, resume=write is write_policy) as record:
            record.starts_from(tmp_path / "model")
            assert record.last_step == 0
            record.base_evaluation({"pass_at_1": 0.25})
            for step in (1, 2, 3):
                record.step({"step": step})
                record.save_checkpoint(step, sampler(step), write)
    with open_record(settings, resume=True) as record:
        assert record.last_step == 3
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ConfigError, match="its checkpoints are gone"):
        open_record(settings, resume=True)


def test_a_run_cannot_be_shortened_below_what_it_has_trained(interrupted: Path) -> None:
    with open_record(recipe(interrupted, train={"steps": 2}), resume=True) as record:
        assert record.last_step == 2, "it has reached its end"
    with pytest.raises(ConfigError, match=r"train.steps=1: the run in .* has trained 2: raise it"):
        open_record(recipe(interrupted, train={"steps": 1}), resume=True)


def test_what_was_sampled_belongs_to_a_model_a_layout_and_a_schedule(tmp_path: Path) -> None:
    origins: list[str] = []
    for name, tp, steps in (("a", 1, 4), ("a", 1, 4), ("b", 1, 4), ("a", 2, 4), ("a", 1, 5)):
        model = tmp_path / name
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps({"name": name}))
        settings = recipe(tmp_path / f"run-{len(origins)}", parallel={"tp": tp}, train={"steps": steps})
        with open_record(settings, resume=False) as record:
            record.starts_from(model)
            origins.append(json.dumps(record.origin()))
    assert origins[0] == origins[1] and len(set(origins)) == 4


def test_a_run_of_an_earlier_release_did_what_the_new_keys_do_by_default(interrupted: Path) -> None:
    settings = recipe(interrupted, stages=[{"from_step": 5, "algorithm": {"refinements": 0}}])
    earlier = settings.model_dump(mode="json")
    del (
        earlier["train"]["staleness"],
        earlier["rollout"]["dynamic_sampling"],
        earlier["rollout"]["max_refinement_tokens"],
    )
    del earlier["critic"]["api"]["down_after"], earlier["algorithm"]["kl"]["coef"], earlier["optimizer"]
    del earlier["stages"][0]["algorithm"]["kl"]
    check_same(settings, earlier)
    changed = recipe(
        interrupted,
        train={"staleness": 1},
        rollout={"dynamic_sampling": {"enabled": True}},
        optimizer={"lr": 0.5},
        algorithm={"correction": {"mode": "token_mask"}},
        stages=settings.model_dump(mode="json")["stages"],
    )
    with pytest.raises(ConfigError) as refused:
        check_same(changed, earlier | {"algorithm": changed.model_dump(mode="json")["algorithm"]})
    names = [
        "optimizer.lr=0.5",
        "rollout.dynamic_sampling={'enabled': True",
        "train.staleness=1: the run was started with 0",
    ]
    for found, name in zip(refused.value.problems, names, strict=True):
        assert found.startswith(name), refused.value.problems

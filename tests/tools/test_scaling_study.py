"""What a scaling study does, in which order, and where; resuming; and a quick one from end to end."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scaling_study
from scaling import workload
from scaling.arrays import array_commands
from scaling.choice import Wanted, choose
from scaling.hardware import Hardware
from scaling.planned import Plans
from scaling.points import BASE, Choice, Point, Study, shared
from scaling.records import Record, Records, alone
from scaling.runner import Todo, todo, work
from scaling.runs import Runs, mfu
from scaling.studies import STUDIES, Basis
from scaling.study_file import read_study_file
from scaling.workload import QUICK, RecipeFile
from scaling_records import record

from megatron_cgrpo.config import ConfigError, check_recipe, load_recipe, model_shape
from megatron_cgrpo.observe.metrics import read_metrics
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.estimate import estimate
from megatron_cgrpo.plan.gpus import gpu_of

ROOT = Path(__file__).parents[2]
SANDBOX = ROOT / "examples" / "sandbox.yaml"
QWEN3_32B = ROOT / "examples" / "qwen3_32b.yaml"
TWO_CORES = Hardware(gpus=0, cores=2, memory=24 << 30)
STEPS = 3


def overrides(basis: Basis, name: str) -> dict[str, tuple[str, ...]]:
    return {at.label: at.point.overrides for at in STUDIES[name](basis).at}


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("recipes", [(), (SANDBOX,)])
@pytest.mark.parametrize("name", sorted(STUDIES.keys() - {"models"}))
def test_every_point_is_a_recipe_that_can_run(
    tmp_path: Path, name: str, recipes: tuple[Path, ...], quick: bool
) -> None:
    for point in STUDIES[name](Basis(tmp_path, recipes, quick=quick)).points:
        recipe = workload.read(point.workload, tmp_path, point.overrides)
        check_recipe(recipe, model_shape(recipe))


def test_strong_scaling_keeps_the_step_and_weak_scaling_the_work_of_a_rank(tmp_path: Path) -> None:
    basis = Basis(tmp_path, (SANDBOX,), factors=(1, 4))  # the sandbox: 40 prompts, two engines
    devices = ("parallel.dp=4", "rollout.engines=8")
    assert overrides(basis, "strong") == {"x1": (), "x4": devices}
    assert overrides(basis, "weak") == {"x1": (), "x4": (*devices, "train.prompts_per_step=160")}


def test_growth_multiplies_what_the_recipe_has(tmp_path: Path) -> None:
    basis = Basis(tmp_path, (SANDBOX,))
    assert overrides(basis, "groups")["x4"] == ("algorithm.group_size=28",)
    assert overrides(basis, "lengths")["x2"] == ("rollout.max_response_tokens=80", "rollout.max_critique_tokens=32")
    own = STUDIES["lengths"](Basis(tmp_path, quick=True)).at[1].point.workload
    assert own == QUICK.longer(2)
    setting = QUICK.longer(2).setting
    assert (setting.chain.steps, setting.max_response, setting.prompt_tokens) == (16, 24, QUICK.setting.prompt_tokens)


def test_critique_is_switched_off_where_a_recipe_has_it_and_on_where_not(tmp_path: Path) -> None:
    def criticises(path: Path) -> list[tuple[str, bool]]:
        study = STUDIES["critique"](Basis(tmp_path, (path,)))
        recipes = [workload.read(point.workload, tmp_path, point.overrides) for point in study.points]
        return [(at.label, recipe.critic.criticises) for at, recipe in zip(study.at, recipes, strict=True)]

    plain = tmp_path / "plain.yaml"
    plain.write_text(f"extends: {SANDBOX}\nalgorithm: {{preset: r1_drgrpo}}\n")
    assert criticises(SANDBOX) == criticises(plain) == [("off", False), ("on", True)]


def test_layouts_are_the_divisions_of_the_same_ranks_that_the_checks_allow(tmp_path: Path) -> None:
    found = STUDIES["layouts"](Basis(tmp_path, (SANDBOX,)))
    assert found.at[0].label == "tp=2"  # the recipe's own
    recipes = [workload.read(point.workload, tmp_path, point.overrides) for point in found.points]
    assert {recipe.parallel.world_size for recipe in recipes} == {2}
    assert {(recipe.parallel.tp, recipe.parallel.pp, recipe.parallel.dp) for recipe in recipes} >= {
        (2, 1, 1),
        (1, 1, 2),
    }


def test_models_are_placed_by_their_parameters(tmp_path: Path) -> None:
    found = STUDIES["models"](Basis(tmp_path, quick=True))
    for at in found.at:
        recipe = workload.read(at.point.workload, tmp_path)
        assert at.x == workload.parameters(recipe)
    assert found.at[0].point.name == BASE
    with pytest.raises(ConfigError, match="--recipe: the study `models` compares"):
        STUDIES["models"](Basis(tmp_path, (SANDBOX,)))


def test_a_study_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = f"name: mine\nkind: strong\naxis: ranks\nrecipe: {SANDBOX}\npoints:\n"
    file.write_text(f"{text}- {{label: two, x: 2}}\n- {{label: four, x: 4, overrides: [parallel.dp=2]}}\n")
    study = read_study_file(file)
    assert [(at.label, at.x, at.point.name, at.point.overrides) for at in study.at] == [
        ("two", 2.0, "mine two", ()),
        ("four", 4.0, "mine four", ("parallel.dp=2",)),
    ]
    assert study.points[0].workload == RecipeFile(SANDBOX)
    for change, refusal in (
        ("- {label: two}\n", r"point two: x=null: kind=strong needs an amount"),
        ("- {label: two, x: 2}\n- {label: two, x: 4}\n", "label two: stands twice"),
        ("- {label: two, x: 0}\n", r"points.0.x"),
    ):
        file.write_text(text + change)
        with pytest.raises(ConfigError, match=refusal):
            read_study_file(file)
    file.write_text("name: mine\nkind: compare\naxis: a\npoints: [{label: two}]\n")
    with pytest.raises(ConfigError, match="recipe=null: nothing says what is trained"):
        read_study_file(file)


def chosen(studies: list[Study], wanted: Wanted, out: Path, **plans: object) -> list[Choice]:
    return choose(studies, wanted, TWO_CORES, Runs(out, STEPS, limit_s=60), replace(Plans(out, "h200"), **plans))


def quick(out: Path, **basis: object) -> list[Study]:
    return [STUDIES["strong"](replace(Basis(out, quick=True), **basis))]


def test_points_take_turns_and_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    studies = quick(tmp_path)
    choices = chosen(studies, "real", tmp_path) + chosen(studies, "plan", tmp_path)
    records = Records(tmp_path)
    waiting = todo(choices, 2, records)
    assert [(each.choice.point.name, each.choice.source, each.repeat) for each in waiting] == [
        ("base", "planned", 0),
        ("strong x2", "planned", 0),
        ("base", "measured", 0),
        ("strong x2", "measured", 0),
        ("strong x2", "measured", 1),
        ("base", "measured", 1),
    ]

    def make(each: Todo) -> Record:
        if str(each) == "strong x2, repetition 1":
            raise RuntimeError("it broke\nand this is how")
        machine = {"name": "h200" if each.choice.source == "planned" else "two cores"}
        return record(each.choice.point, source=each.choice.source, repeat=each.repeat, machine=machine)

    assert work(waiting, make, records) == {"strong x2, repetition 1": "it broke"}
    again = Records(tmp_path)
    assert again.all == records.all and len(again.all) == 5
    assert [str(each) for each in todo(choices, 2, again)] == ["strong x2, repetition 1"]
    other = chosen(studies, "plan", tmp_path, gpu="h100")  # plans of another kind of GPU are others
    assert [str(each) for each in todo(other, 2, again)] == ["base, planned", "strong x2, planned"]


def test_a_point_that_is_defined_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    choices = chosen(quick(tmp_path), "real", tmp_path)
    records = Records(tmp_path)
    records.add(record(choices[0].point, definition=choices[0].definition))
    Records(tmp_path).check(choices)
    one, _ = choices
    for change, difference in (
        ({"steps": 5}, "steps=3, now 5"),
        (Point(BASE, QUICK.longer(2)).definition(), r"workload.setting.chain.\S+=\S+ now"),
        ({"overrides": ["seed=1"]}, r"overrides=\[\], now"),
    ):
        with pytest.raises(ConfigError, match=f"point base: .*raw.jsonl has it with {difference}.*name another --out"):
            records.check([replace(one, definition=one.definition | change)])
    (tmp_path / "raw.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="raw.jsonl:1: is no record of a point"):
        Records(tmp_path)


def test_two_calls_do_not_work_in_one_directory(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ConfigError, match="another call works there"), alone(tmp_path):
        raise AssertionError("both are in")
    with alone(tmp_path):
        pass


def test_what_runs_here_is_measured_and_the_rest_planned_with_its_whole_study(tmp_path: Path) -> None:
    basis = Basis(tmp_path, factors=(1, 2, 4), quick=True)
    studies = shared([STUDIES["strong"](basis), STUDIES["groups"](basis)])
    choices = chosen(studies, "auto", tmp_path)
    measured = ["base", "strong x2", "groups x2", "groups x4"]
    assert [choice.point.name for choice in choices if choice.source == "measured"] == measured
    planned = {choice.point.name: choice.reason for choice in choices if choice.source == "planned"}
    assert planned.keys() == {"base", "strong x2", "strong x4"}
    assert planned["strong x4"] == "it takes 4 processes at a time, and 2 cores are here"
    with pytest.raises(ConfigError, match="--source real: point strong x4: it takes 4 processes"):
        chosen(studies, "real", tmp_path)
    with pytest.raises(ConfigError, match="--gpu: points that cannot run here are planned for a kind of GPU: name"):
        chosen(studies, "auto", tmp_path, gpu=None)
    with pytest.raises(ConfigError, match="--assume speed=1: is no known assumption"):
        chosen(studies, "plan", tmp_path, assume=("speed=1",))
    assert {choice.source for choice in chosen(studies, "plan", tmp_path)} == {"planned"}


def test_a_plan_is_what_the_planner_says(tmp_path: Path) -> None:
    basis = Basis(tmp_path, (QWEN3_32B,), factors=(1, 2))
    plans = Plans(tmp_path, "h200", ("response_fill=0.5",))
    study = STUDIES["strong"](basis)
    one, two = (plans.make(point, "why") for point in study.points)
    recipe = workload.read(study.points[1].workload, tmp_path, study.points[1].overrides)
    told = estimate(recipe, model_shape(recipe), gpu_of("h200"), Assumptions(response_fill=0.5))
    assert two.seconds["step"] == told.time.step and two.seconds["update"] == told.time.training
    assert sum(two.seconds.values()) == pytest.approx(2 * told.time.step)  # the step and its parts
    assert (two.source, two.reason, two.fits, two.mfu) == ("planned", "why", True, told.time.trainer.mfu)
    assert (two.memory_gib, two.parameters) == (told.training_peak, 32762123264)  # as the model's card has it: 32.8B
    assert one.ranks == 64 and two.ranks == 128 and one.tokens == two.tokens and one.samples == two.samples
    small = replace(plans, gpu="l40s").make(study.points[0], None)
    assert not small.fits


def test_mfu_of_a_run_is_the_planners_count_over_what_its_gpus_could_do(tmp_path: Path) -> None:
    recipe = workload.read(RecipeFile(QWEN3_32B), tmp_path)
    gpu, rows = gpu_of("h200"), 1000.0
    tokens = 2000 * rows
    # By hand: 6 operations a weight and token (not the embedding's), and attention: 64 layers * 64 heads * 128.
    weights = 6 * (32762123264 - 151936 * 5120) * tokens
    attention = 6 * 64 * 64 * 128 * tokens * 2000
    expected = (weights + attention) / (10.0 * 64 * gpu.bf16_flops)
    assert mfu(recipe, tokens, rows, 10.0, gpu) == pytest.approx(expected, rel=1e-3)


def test_what_hardware_lacks(tmp_path: Path) -> None:
    def lacks(hardware: Hardware, parameters: int, *settings: str) -> str | None:
        return hardware.lacks(workload.read(RecipeFile(SANDBOX), tmp_path, settings), parameters)

    assert lacks(TWO_CORES, 10**6) is None
    assert lacks(TWO_CORES, 10**6, "model.fp8.recipe=blockwise") == "FP8 needs a GPU, and none is here"
    assert lacks(TWO_CORES, 10**9) is None  # 16 GB for the trainer, and 8 GB for two engines: 22.4 GiB
    assert lacks(TWO_CORES, 2 * 10**9) == "weights and optimiser take 45 GiB, and 24 are here"
    eight = Hardware(gpus=8, cores=64, memory=1 << 40)
    assert lacks(eight, 10**9, "parallel.dp=3") is None  # six ranks and two engines
    assert lacks(eight, 10**9, "parallel.dp=4") == "it takes 10 GPUs, and 8 are here"
    assert lacks(eight, 10**9, "parallel.dp=4", "rollout.engines=8", "rollout.placement=colocated") is None


def test_a_run_that_nobody_has_recorded_is_not_overwritten(tmp_path: Path) -> None:
    point = quick(tmp_path)[0].points[0]
    runs = Runs(tmp_path, STEPS, limit_s=60)
    directory = runs.directory(point, 0)
    directory.mkdir(parents=True)
    assert runs.collect(point, 0, "elsewhere") is None
    (directory / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="that this study has not made: take its figures with --collect"):
        runs.measure(point, 0)


def test_runs_for_a_cluster_are_job_arrays_by_recipe_and_nodes(tmp_path: Path) -> None:
    study = STUDIES["strong"](Basis(tmp_path, (QWEN3_32B,), factors=(1, 2)))
    runs = Runs(tmp_path, STEPS, limit_s=60)
    cluster = Hardware(gpus=128, cores=64, memory=1 << 40)
    waiting = todo(choose([study], "real", cluster, runs, Plans(tmp_path, None)), 2, Records(tmp_path))
    one, two = array_commands(waiting, runs, gpus_per_node=8)
    own = load_recipe(QWEN3_32B).parallel.dp  # on 64 GPUs, colocated
    for command, nodes, dp in ((one, 8, own), (two, 16, 2 * own)):
        words = shlex.split(command.replace("\\\n", ""))
        assert words[:6] == ["mcgrpo", "launch", "slurm", str(QWEN3_32B), "--nodes", str(nodes)]
        recipes = [load_recipe(QWEN3_32B, shlex.split(task)) for task in words[7::2]]
        assert [recipe.seed for recipe in recipes] == [0, 1]
        assert {recipe.parallel.dp for recipe in recipes} == {dp} and len({recipe.run.dir for recipe in recipes}) == 2


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["scaling_study.py", *map(str, arguments)])
    return scaling_study.main()


def test_a_quick_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One real run; the other is left for a job array, and what an array has made is collected."""
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--quick", "--study", "strong", "--source", "real"]
    command = [sys.executable, str(ROOT / "tools/scaling_study.py"), *arguments, "--most", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    [line] = (out / "raw.jsonl").read_text().splitlines()
    found = json.loads(line)
    steps = read_metrics(out / "runs/base/repeat_0/metrics.jsonl")[2:4]  # step 0 evaluates, the first is not counted
    assert [step["step"] for step in steps] == [2, 3]
    mean = sum(step["time.step"] for step in steps) / 2
    assert found["seconds"]["step"] == pytest.approx(mean)
    assert sum(found["seconds"].values()) == pytest.approx(2 * mean)  # the step and its parts
    assert found["samples_per_s"] == pytest.approx(16 / mean)
    assert found["tokens"]["update"] == sum(step["tokens.update"] for step in steps) / 2
    assert (found["source"], found["point"], found["mfu"], found["memory_gib"] > 0) == ("measured", BASE, None, True)
    assert (out / "summary.json").is_file() and "nothing to compare" in (out / "summary.md").read_text()

    assert call(monkeypatch, *arguments, "--print-jobs", 0) == 0
    command = shlex.split(capsys.readouterr().out.replace("\\\n", ""))
    assert command[:3] == ["mcgrpo", "launch", "slurm"] and command[4:7] == ["--nodes", "1", "--array"]
    [task] = command[7:]
    assert {"parallel.dp=2", "seed=0", f"run.dir={out}/runs/strong-x2/repeat_0"} <= set(task.split())
    # As if an array had made both: the run that is there is taken over, the other is still missing.
    (out / "raw.jsonl").unlink()
    assert call(monkeypatch, *arguments, "--collect", "partition a") == 0
    [again] = map(json.loads, (out / "raw.jsonl").read_text().splitlines())
    assert (again["machine"], again["commit"]) == ({"name": "partition a"}, "unknown")
    own = ("at", "machine", "commit")
    assert {k: v for k, v in again.items() if k not in own} == {k: v for k, v in found.items() if k not in own}
    assert call(monkeypatch, *arguments, "--steps", "1") == 2
    assert "point base" in capsys.readouterr().err

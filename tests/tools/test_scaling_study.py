"""What a scaling study does, in which order, and where; resuming; and a quick one from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scaling_study
from scaling import workload
from scaling.choice import choose
from scaling.hardware import Hardware
from scaling.points import BASE, Point, points_of, shared
from scaling.records import Record, Records
from scaling.runner import Todo, todo, work
from scaling.runs import Runs
from scaling.studies import STUDIES, Basis
from scaling.study_file import read_study_file
from scaling.workload import QUICK, RecipeFile
from scaling_records import record

from megatron_cgrpo.config import ConfigError, check_recipe, model_shape
from megatron_cgrpo.observe.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SANDBOX = ROOT / "examples" / "sandbox.yaml"
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
    assert {(recipe.parallel.tp, recipe.parallel.pp, recipe.parallel.dp) for recipe in recipes} >= {(2, 1, 1), (1, 1, 2)}


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


def quick_points(out: Path, name: str = "strong", **basis: object) -> list[Point]:
    return points_of([STUDIES[name](replace(Basis(out, quick=True), **basis))])


def test_points_take_turns_and_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    points = quick_points(tmp_path)
    choices = [(point, "measured", None) for point in points] + [(points[0], "planned", "why")]
    records = Records(tmp_path)
    waiting = todo(choices, 2, records)
    assert [(each.point.name, each.source, each.repeat) for each in waiting] == [
        ("base", "measured", 0),
        ("strong x2", "measured", 0),
        ("base", "planned", 0),
        ("strong x2", "measured", 1),
        ("base", "measured", 1),
    ]

    def make(each: Todo) -> Record:
        if each.point is points[1] and each.repeat == 0:
            raise RuntimeError("it broke\nand this is how")
        return record(each.point, source=each.source, repeat=each.repeat)

    progress = work(waiting, make, records)
    assert progress.done == 4 and progress.failures == {"strong x2, repetition 1": "it broke"}
    again = Records(tmp_path)
    assert again.all == records.all
    assert [str(each) for each in todo(choices, 2, again)] == ["strong x2, repetition 1"]


def test_a_point_that_is_defined_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    one, two = quick_points(tmp_path)
    records = Records(tmp_path)
    records.add(record(one))
    records.check([one, two], STEPS)
    with pytest.raises(ConfigError, match=r"point base: .*raw.jsonl has it with steps=3, now 5: name another --out"):
        Records(tmp_path).check([one, two], 5)
    longer = Point(BASE, QUICK.longer(2))
    with pytest.raises(ConfigError, match=r"point base: .*workload.setting.chain.\S+=\S+ now"):
        records.check([longer], STEPS)
    (tmp_path / "raw.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="raw.jsonl:1: is no record of a point"):
        Records(tmp_path)


def test_what_runs_here_is_measured_and_the_rest_planned_with_its_whole_study(tmp_path: Path) -> None:
    basis = Basis(tmp_path, factors=(1, 2, 4), quick=True)
    studies = shared([STUDIES["strong"](basis), STUDIES["groups"](basis)])
    chosen = choose(studies, "auto", tmp_path, TWO_CORES)
    assert [point.name for point, source, _ in chosen if source == "measured"] == [
        "base",
        "strong x2",
        "groups x2",
        "groups x4",
    ]
    planned = {point.name: reason for point, source, reason in chosen if source == "planned"}
    assert planned.keys() == {"base", "strong x2", "strong x4"}
    assert planned["strong x4"] == "it takes 4 processes at a time, and 2 cores are here"
    with pytest.raises(ConfigError, match="--source real: point strong x4: it takes 4 processes"):
        choose(studies, "real", tmp_path, TWO_CORES)
    assert {source for _, source, _ in choose(studies, "plan", tmp_path, TWO_CORES)} == {"planned"}


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
    [point, _] = quick_points(tmp_path)
    runs = Runs(tmp_path, STEPS, limit_s=60)
    directory = runs.directory(point, 0)
    directory.mkdir(parents=True)
    assert runs.collect(point, 0, "elsewhere") is None
    (directory / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="that this study has not made: take its figures with --collect"):
        runs.measure(point, 0)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["scaling_study.py", *map(str, arguments)])
    return scaling_study.main()


def test_a_quick_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert (out / "summary.json").is_file() and "Fewer than two points" in (out / "summary.md").read_text()

    assert call(monkeypatch, *arguments, "--print-jobs") == 0
    [job] = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert job["name"] == "strong x2, repetition 1" and "parallel.dp=2" in job["overrides"]
    # As if an array had made both: the run that is there is taken over, the other is still missing.
    (out / "raw.jsonl").unlink()
    assert call(monkeypatch, *arguments, "--collect", "partition a") == 0
    [again] = map(json.loads, (out / "raw.jsonl").read_text().splitlines())
    assert again["machine"] == {"name": "partition a"}
    own = ("at", "machine", "commit")
    assert {k: v for k, v in again.items() if k not in own} == {k: v for k, v in found.items() if k not in own}
    assert call(monkeypatch, *arguments, "--steps", "1") == 2
    assert "point base" in capsys.readouterr().err

"""What `mcgrpo launch slurm --dry-run` prints, and what it refuses before anything is submitted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_cgrpo.cli import app
from megatron_cgrpo.config import ConfigError, load_recipe
from megatron_cgrpo.launch.slurm import slurm_time

SANDBOX = Path(__file__).parents[3] / "examples/sandbox.yaml"
LAYOUTS = {
    "plain": [],
    "array": ["--array-seeds=1,2", "--array=seed=3 'task.train=a b.jsonl'", "task.kind=misconceptions"],
    "engines apart": ["slurm.engines.nodes=1", "slurm.gpus_per_node=8", "slurm.engines.gpus_per_node=8"],
    "interface": ["slurm.interface=ib0", "slurm.venv=null"],
    "pyxis": ["slurm.container.image=registry/x:1", "slurm.container.mounts=[/data:/data]"],
    "apptainer": ["slurm.container.image=x y.sif", "slurm.container.runtime=apptainer", "slurm.gpus_per_node=8"],
    "words": ["slurm.prologue=[module load cuda]", "slurm.environment=[NCCL_IB_HCA=mlx5_0 mlx5_1]", "run.dir=a'b"],
}


def launch(*arguments: str, recipe: Path = SANDBOX) -> str:
    """Standard output."""
    done = CliRunner().invoke(app, ["launch", "slurm", str(recipe), *arguments], env={"COLUMNS": "1000"})
    assert done.exit_code == 0, done.output
    return done.stdout


def refusal(*arguments: str, recipe: Path = SANDBOX) -> str:
    done = CliRunner().invoke(app, ["launch", "slurm", str(recipe), *arguments], env={"COLUMNS": "1000"})
    assert done.exit_code == 2, done.output
    return done.output


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_script_is_sound(layout: str, tmp_path: Path) -> None:
    arguments = [each for each in LAYOUTS[layout] if "b.jsonl" not in each]
    script = tmp_path / "job.sbatch"
    script.write_text(launch("--nodes=2", "--dry-run", *arguments))
    checker = ["shellcheck"] if shutil.which("shellcheck") else ["bash", "-n"]
    checked = subprocess.run([*checker, str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    lines = script.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert lines[first] == "set -euo pipefail", "Slurm reads options up to the first command"


def test_the_section_becomes_options_of_sbatch() -> None:
    asked = ["account=lab", "qos=high", "reservation=r1", "partition=main", "constraint=h200", "gpus_per_node=8"]
    asked += ["cpus_per_node=64", "memory_per_node=900G", "time_limit=2-03:04:05", "warning_s=900", "log_dir=out/logs"]
    script = launch("--nodes=4", "--dry-run", *(f"slurm.{each}" for each in asked), "slurm.options=[--mail-type=END]")
    assert options(script) == [
        *["--job-name=sandbox", "--account=lab", "--qos=high", "--reservation=r1", "--time=2-03:04:05"],
        *["--signal=B:USR1@900", "--requeue", "--output=out/logs/%j.log", "--open-mode=append", "--mail-type=END"],
        *["--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=64", "--gpus-per-node=8", "--mem=900G"],
        *["--partition=main", "--constraint=h200"],
    ]
    assert 'export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"' in script and "source .venv/bin/activate" in script
    assert "limit=3" in script and "waits" in script


def test_the_name_of_a_job_is_one_word(tmp_path: Path) -> None:
    recipe = tmp_path / "my recipe, ü.v2.yaml"
    recipe.write_text(f"extends: {SANDBOX}\n")
    assert "--job-name=my_recipe___.v2" in options(launch("--nodes=2", "--dry-run", recipe=recipe))


def test_engines_have_a_part_of_their_own() -> None:
    apart = ["slurm.engines.nodes=2", "slurm.engines.partition=small", "slurm.engines.gpus_per_node=4"]
    script = launch("--nodes=6", "--dry-run", *apart, "slurm.gpus_per_node=8", "slurm.requeues=0")
    trainer, engines = " ".join(options(script)).split(" hetjob ")
    assert "--nodes=4 " in trainer and "--gpus-per-node=8" in trainer and "--no-requeue" in trainer
    assert engines.split() == [
        *["--time=0-01:00:00", "--no-requeue", "--nodes=2", "--ntasks-per-node=1", "--exclusive"],
        *["--gpus-per-node=4", "--partition=small"],
    ]


def test_an_array_has_a_case_for_each_task() -> None:
    script = launch("--nodes=2", "--dry-run", "--array-seeds=7", "--array=algorithm.preset=r1_grpo run.dir=runs/g")
    assert "--array=0-1" in options(script) and "--output=logs/%A_%a.log" in options(script)
    cases = re.findall(r"overrides\+=\((.*)\)\n    run_dir=(.*)", script)
    assert cases == [("algorithm.preset=r1_grpo", "runs/g"), ("seed=7", "runs/sandbox/seed_7")]


def test_containers_wrap_what_runs_on_the_nodes() -> None:
    pyxis = launch("--nodes=2", "--dry-run", "slurm.container.image=reg/x:1", "slurm.container.mounts=[/data:/data]")
    mounts = '--container-mounts="$PWD:$PWD,/tmp:/tmp,/data:/data"'
    inside = f'--container-image=reg/x:1 {mounts} --container-workdir="$PWD" '
    assert f'"${{at_node[@]}}" {inside}bash -c' in pyxis
    assert f'attended "${{head_step[@]}}" {inside}python -m megatron_cgrpo train' in pyxis
    assert "activate" not in pyxis
    apptainer = launch("--nodes=2", "--dry-run", "slurm.container.image=x.sif", "slurm.container.runtime=apptainer")
    assert 'attended apptainer exec --bind "$PWD:$PWD" --bind "/tmp:/tmp" --pwd "$PWD" x.sif python -m' in apptainer


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["slurm.cpus_per_node=1"], "--nodes=2: 2 .* have 2 CPUs by slurm.cpus_per_node=1, .* for 4 there, .*: ask"),
        (["slurm.engines.nodes=2"], "--nodes=2: slurm.engines.nodes=2 of them are the engines': leave some"),
        (["slurm.engines.nodes=1", "rollout.placement=colocated"], "engines.nodes=1: rollout.placement=colocated"),
        (["slurm.time_limit=300"], "slurm.*: .*warning_s=600 is no less than time_limit=300.*raise time_limit"),
        (["slurm.time_limit=1 day"], "slurm.time_limit: .* give seconds, HH:MM:SS or D-HH:MM:SS"),
        (["slurm.partition=a b"], "slurm.partition"),
        (["slurm.environment=[1X=2]"], "slurm.environment"),
        (["slurm.options=[mail-type=END]"], "'mail-type=END' is no option of sbatch"),
        (["--array-seeds=1,x"], "--array-seeds=1,x: is no list of whole numbers"),
        (["--array=seed=1 run.dir=a", "--array=seed=2 run.dir=a"], "--array: run.dir=a is that of several tasks"),
        (["--array=seed=1 slurm.gpu=h100"], "--array: slurm.gpu=h100 cannot differ between the tasks"),
        (["--array-seeds=1", "slurm.engines.nodes=1"], "--array and slurm.engines.nodes=1: Slurm has no arrays of"),
        (["task.train=a\n#SBATCH --nodes=9"], r"'task.train=a\\n#SBATCH --nodes=9': has a line break"),
        (["--array=seed=1\nseed=2"], r"'seed=1\\nseed=2': has a line break"),
        (["--array=seed=1 train.stepps=3"], "train.stepps: no such key; the nearest is train.steps"),
    ],
)
def test_what_cannot_run_is_refused(arguments: list[str], complaint: str) -> None:
    assert re.search(complaint, refusal("--nodes=2", "--dry-run", *arguments))


@pytest.mark.parametrize(
    ("recipe", "arguments", "complaint"),
    [
        ("qwen3_32b", ["--nodes=16", "slurm.gpus_per_node=4"], "slurm.gpus_per_node=4: .* up to 8 GPU.* of one node"),
        ("qwen3_8b", ["--nodes=2", "slurm.gpus_per_node=0"], "slurm.gpus_per_node=0: .* slurm.gpu=h100 says"),
        ("qwen3_8b", ["--nodes=3", "slurm.engines.nodes=1"], "slurm.engines.gpus_per_node=0: .* up to 2 GPU"),
        (
            "qwen3_8b",
            ["--nodes=3", "slurm.engines.nodes=1", "slurm.engines.gpus_per_node=4"],
            "1 node.* 4 GPUs by slurm.engines.gpus_per_node=4, .* for 8 there, in portions of 2 on",
        ),
        (  # six nodes have 18 GPUs, and each engine of two leaves one of a node's three
            "qwen3_8b",
            ["--nodes=6", "slurm.gpus_per_node=3", "rollout.engines=8", "parallel.dp=1"],
            "6 node.* have 18 GPUs by slurm.gpus_per_node=3, .* for 18 there, in portions of 1 and 2",
        ),
        ("qwen3_8b", ["--nodes=2", "slurm.gpu=h300"], "slurm.gpu=h300: is not known: choose one of a100"),
        ("qwen3_32b", ["--nodes=8", "slurm.memory_per_node=200G"], "GiB of host memory, .* and has 200"),
        ("qwen3_32b", ["--nodes=8", "slurm.memory_per_node=2QB"], "slurm.memory_per_node"),
    ],
)
def test_gpus_that_cannot_be_placed_are_refused(recipe: str, arguments: list[str], complaint: str) -> None:
    assert re.search(complaint, refusal("--dry-run", *arguments, recipe=SANDBOX.with_name(f"{recipe}.yaml")))


def test_engines_may_have_wider_nodes_than_the_trainer() -> None:
    apart = ["slurm.gpus_per_node=4", "slurm.engines.nodes=1", "slurm.engines.gpus_per_node=8"]
    wide = ["rollout.engines=1", "rollout.tensor_parallel=8"]
    script = launch("--nodes=3", "--dry-run", *apart, *wide, recipe=SANDBOX.with_name("qwen3_8b.yaml"))
    assert {"--gpus-per-node=4", "--gpus-per-node=8"} <= set(options(script))


def test_memory_is_read_as_slurm_writes_it() -> None:
    asked = {"0": None, "2048": 2.0, "512G": 512.0, "1t": 1024.0, "1048576K": 1.0}
    found = {text: load_recipe(SANDBOX, [f"slurm.memory_per_node={text}"]).slurm.memory_gib for text in asked}
    assert found == asked and load_recipe(SANDBOX, []).slurm.memory_gib is None


def test_each_task_of_an_array_is_checked_and_not_what_they_share() -> None:
    assert "for 8 there" in refusal("--nodes=2", "--dry-run", "--array=seed=1", "--array=rollout.engines=6")
    fitting = ["--array=rollout.engines=2 seed=1", "--array=rollout.engines=1 seed=2"]
    assert "--array=0-1" in launch("--nodes=2", "--dry-run", "rollout.engines=9", *fitting)


def test_a_run_that_is_there_already_is_not_submitted_again(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert "holds an earlier run" in refusal("--nodes=2", f"run.dir={tmp_path}")


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    done = CliRunner().invoke(app, ["launch", "slurm", str(SANDBOX), "--nodes=2"], env={"COLUMNS": "1000"})
    assert done.exit_code == 1 and "sbatch: is not installed here" in done.output


def test_times_are_read_as_slurm_and_yaml_write_them(tmp_path: Path) -> None:
    times = {"24:00:00": 86400, "'24:00:00'": 86400, "00:30:00": 1800, "1-02": None, "7200": 7200}
    for text, seconds in times.items():
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"slurm: {{time_limit: {text}}}")
        if seconds is None:
            with pytest.raises(ConfigError, match="slurm.time_limit"):
                load_recipe(recipe)
        else:
            assert load_recipe(recipe).slurm.time_limit == seconds
    assert slurm_time(93784) == "1-02:03:04"

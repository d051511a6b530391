"""Jobs in a real Slurm, whose Ray and training are stand-ins: what starts, what a signal leads to, what is left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, lines, slurm_cluster

STAND_INS = Path(__file__).parent / "stand_ins"
DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Its nodes have room for several jobs at once."""
    with slurm_cluster(with_stand_ins(tmp_path_factory.mktemp("jobs")), "--cpus=16") as started:
        yield started


def with_stand_ins(folder: Path) -> Path:
    """As a virtual environment."""
    shutil.copytree(STAND_INS, folder / ".venv/bin")
    (folder / ".venv/bin/activate").write_text(f"export PATH={folder}/.venv/bin:$PATH\n")
    return folder


def submit(cluster: SlurmCluster, name: str, *arguments: str, cpus: int = 2, **environment: str | int) -> str:
    assignments = ", ".join(f"{key}={value}" for key, value in environment.items())
    settings = [f"slurm.cpus_per_node={cpus}", "rollout.engines=1", "slurm.time_limit=3600"]
    return cluster.launch(
        *["--nodes=2", f"run.dir={name}", *settings, f"slurm.environment=[{assignments}]", *arguments]
    )


def starts(cluster: SlurmCluster, name: str, count: int, job: str) -> list[str]:
    return cluster.wait_for_lines(cluster.folder / name / "starts", count, job)


def warn(cluster: SlurmCluster, job: str, name: str, signal: str = "USR1") -> None:
    """What Slurm does before a job's time is up, once the run has begun to train."""
    step = cluster.folder / name / "step"
    step.unlink(missing_ok=True)
    cluster.wait(step.exists, "no step is made", job)
    cluster.run("scancel", "--batch", f"--signal={signal}", job)


@pytest.fixture(scope="module")
def short(cluster: SlurmCluster) -> str:
    """A job of a minute, which is told of its end by Slurm while the other tests run."""
    return submit(cluster, "short", "slurm.time_limit=60", "slurm.warning_s=30", STEPS=300)


def test_ray_starts_on_both_nodes_with_the_cpus_that_slurm_gives(cluster: SlurmCluster, short: str) -> None:
    job = submit(cluster, "plain", cpus=3, STEPS=2)
    cluster.wait_for_state(job, *DONE)
    assert cluster.field(job, "JobState") == "COMPLETED", cluster.log(job)
    joined = {path.name: path.read_text().strip() for path in (cluster.folder / "joined" / job).iterdir()}
    assert joined == {"n1": "3", "n2": "3"}
    assert {path.name for path in (cluster.folder / "logs" / job).iterdir()} == {"ray-n1.log", "ray-n2.log", "starts"}
    assert lines(cluster.folder / "plain/starts") == ["began at 0"]
    assert cluster.processes(job) == [] and not list(Path("/tmp").glob(f"mcgrpo-{job}-*"))


def test_a_cancelled_job_leaves_no_process_and_does_not_come_back(cluster: SlurmCluster) -> None:
    job = submit(cluster, "cancelled")
    starts(cluster, "cancelled", 1, job)
    assert len(cluster.processes(job)) > 3
    cluster.run("scancel", job)
    cluster.wait(lambda: not cluster.processes(job), "processes are left", job)
    cluster.wait_for_state(job, "CANCELLED")
    assert cluster.field(job, "Restarts") == "0"


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_signal_saves_requeues_and_resumes_and_a_failure_then_is_the_end(cluster: SlurmCluster, signal: str) -> None:
    name = f"warned_{signal}"
    job = submit(cluster, name, FAILS_AFTER_RESUME=1)
    warn(cluster, job, name, signal)
    cluster.wait_for_state(job, "FAILED")
    saved = (cluster.folder / name / "last_checkpoint").read_text()
    assert starts(cluster, name, 2, job) == ["began at 0", f"resumed at {saved}"] and int(saved) > 0
    assert cluster.field(job, "ExitCode") == "3:0" and cluster.field(job, "Restarts") == "1"
    assert "the run has failed with exit code 3" in cluster.log(job)


def test_a_run_that_saves_no_step_is_not_requeued_for_ever(cluster: SlurmCluster) -> None:
    """Signals come while it starts: before it can take any, which ends it, and while the nodes join."""
    job = submit(cluster, "fruitless", "slurm.requeues=1", HANDLES_AFTER=100, BARRIER_TAKES=1)
    for count in (1, 2):
        starts(cluster, "fruitless", count, job)
        cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for_state(job, "FAILED")
    assert cluster.field(job, "Restarts") == "1"
    assert "slurm.requeues=1: 2 starts in a row have saved no step after step 0: giving up" in cluster.log(job)
    assert len(starts(cluster, "fruitless", 2, job)) == 2


def test_a_signal_while_the_nodes_join_requeues(cluster: SlurmCluster) -> None:
    job = submit(cluster, "joining", BARRIER_TAKES=10, STEPS=1)
    joined = cluster.folder / "joined" / job
    cluster.wait(lambda: joined.is_dir() and len(list(joined.iterdir())) == 2, "the nodes do not join", job)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.field(job, "Restarts") == "1" and starts(cluster, "joining", 1, job) == ["began at 0"]


def test_a_task_of_an_array_is_requeued_alone(cluster: SlurmCluster) -> None:
    job = submit(cluster, "study", "--array-seeds=5,6", STEPS=60)
    # The last task of an array has the number of the array itself.
    warn(cluster, f"{job}_1", "study/seed_6")
    for task in (f"{job}_0", f"{job}_1"):
        cluster.wait_for_state(task, "COMPLETED")
    saved = starts(cluster, "study/seed_6", 2, f"{job}_1")[1].split()[2]
    assert starts(cluster, "study/seed_6", 2, f"{job}_1") == ["began at 0 6", f"resumed at {saved} 6"]
    assert starts(cluster, "study/seed_5", 1, f"{job}_0") == ["began at 0 5"]
    assert [cluster.field(f"{job}_{task}", "Restarts") for task in (0, 1)] == ["0", "1"]


def test_trainer_and_engines_may_have_nodes_of_their_own(cluster: SlurmCluster) -> None:
    engines = ["slurm.engines.nodes=1", "slurm.engines.cpus_per_node=1"]
    job = submit(cluster, "heterogeneous", *engines, STEPS=2)
    cluster.wait(lambda: "the run has reached its end" in cluster.log(job), "it does not end", job)
    joined = [path.read_text() for path in (cluster.folder / "joined" / job).iterdir()]
    assert sorted(joined) == ['1 {"mcgrpo_engine": 1000}', '2 {"mcgrpo_trainer": 1000}']


def test_a_job_saves_before_its_time_is_up_and_goes_on_in_the_next(cluster: SlurmCluster, short: str) -> None:
    cluster.wait_for_state(short, "COMPLETED")
    began, *resumed = starts(cluster, "short", 2, short)
    assert began == "began at 0" and all(int(line.split()[2]) > 0 for line in resumed)
    assert cluster.field(short, "Restarts") == str(len(resumed))
    assert (cluster.folder / "short/last_checkpoint").read_text() == "300"


@pytest.mark.parametrize("options", [[], ["--no-user-signal"]], ids=["the batch script is told", "all steps are ended"])
def test_a_pre_empted_job_comes_back(tmp_path: Path, options: list[str]) -> None:
    with slurm_cluster(with_stand_ins(tmp_path), *options) as cluster:
        job = submit(cluster, "run", STEPS=300)
        starts(cluster, "run", 1, job)
        urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--wrap=sleep 1").strip()
        cluster.wait_for_state(urgent, "COMPLETED")
        cluster.wait_for_state(job, "COMPLETED")
        first, second = starts(cluster, "run", 2, job)
        assert first == "began at 0" and second.startswith("resumed at ")
        assert cluster.field(job, "Restarts") == "1"

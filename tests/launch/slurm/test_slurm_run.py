"""The whole program as a Slurm job of two nodes: it trains, is warned, is queued again, resumes and reaches its end."""

from __future__ import annotations

import sys
from pathlib import Path

from slurm_cluster import ROOT, slurm_cluster
from tiny_sandbox import TINY_SANDBOX

from megatron_cgrpo.observe.metrics import read_metrics

STEPS = 6
SETTINGS = [
    *TINY_SANDBOX,
    "warm_start.steps=60",
    "train.prompts_per_step=4",
    "algorithm.group_size=2",
    f"train.steps={STEPS}",
    "checkpoint.every=0",
    "evaluation.every=0",
    "evaluation.prompts=4",
    "evaluation.final_samples=1",
    "rollout.engines=1",
    "run.dir=run",
]


def test_a_run_over_two_nodes_is_requeued_and_resumes(tmp_path: Path) -> None:
    """Two trainer ranks and an engine, and nodes of two CPUs: no node has room for all of them."""
    activate = tmp_path / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}\n")
    cache = f"slurm.environment=[MCGRPO_CACHE={tmp_path}/cache]"
    with slurm_cluster(tmp_path) as cluster:
        job = cluster.launch("--nodes=2", "slurm.cpus_per_node=2", cache, *SETTINGS)
        metrics = tmp_path / "run/metrics.jsonl"
        cluster.wait(lambda: metrics.exists() and len(read_metrics(metrics)) >= 2, "no step is made", job)
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        cluster.wait(lambda: cluster.field(job, "Restarts") == "1", "it is not queued again", job)
        assert (tmp_path / "run/last_checkpoint").exists(), cluster.log(job)
        saved = int((tmp_path / "run/last_checkpoint").read_text())
        assert 1 <= saved < STEPS
        cluster.wait_for_state(job, "COMPLETED")
        assert [line["step"] for line in read_metrics(metrics)] == list(range(STEPS + 1))
        log = cluster.log(job)
        assert f"starts on n[1-2], with step {saved} saved" in log and "the run has reached its end" in log
        assert log.count("n1: 2 CPUs, 0 GPUs") == log.count("n2: 2 CPUs, 0 GPUs") == 2
        assert "Traceback" not in log and (tmp_path / "run/summary.json").is_file()
        assert cluster.processes(job) == []

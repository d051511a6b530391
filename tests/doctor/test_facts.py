"""What the driver and the kernel print, read."""

from pathlib import Path

import pytest

from megatron_cgrpo.doctor.facts import Gpu, cgroup_limits, gather, parse_gpus, parse_quota


def test_what_nvidia_smi_prints() -> None:
    text = "0, NVIDIA H200, 143771, 580.95.05\n1, NVIDIA H100 80GB HBM3, 81559, 580.95.05\n"
    assert parse_gpus(text) == (
        Gpu(0, "NVIDIA H200", 143771, "580.95.05"),
        Gpu(1, "NVIDIA H100 80GB HBM3", 81559, "580.95.05"),
    )
    assert parse_gpus("No devices were found\n") == ()
    assert parse_gpus("0, NVIDIA GB10, [N/A], 580.95.05\n") == ()


@pytest.mark.parametrize(
    ("text", "cpus"), [("max 100000", None), ("150000 100000", 1.5), ("400000 50000", 8.0), ("", None), ("x y", None)]
)
def test_the_quota_of_a_control_group(text: str, cpus: float | None) -> None:
    assert parse_quota(text) == cpus


def test_the_limits_of_all_control_groups_around_a_process_count(tmp_path: Path) -> None:
    step = tmp_path / "slurm" / "job_7" / "step_0"
    step.mkdir(parents=True)
    (step / "cpu.max").write_text("max 100000\n")
    (step.parent / "cpu.max").write_text("300000 100000\n")
    (step.parent / "memory.max").write_text("1024\n")
    (tmp_path / "slurm" / "memory.max").write_text("max\n")
    (tmp_path.parent / "memory.max").write_text("1\n")  # beyond the root
    assert cgroup_limits(tmp_path, "1:name=systemd:/\n0::/slurm/job_7/step_0\n") == ([3.0], [1024])
    assert cgroup_limits(tmp_path, "4:memory:/other\n") == ([], [])


def test_this_machine_has_facts() -> None:
    facts = gather()
    assert 0 < facts.cpus <= facts.machine_cpus and facts.memory > 1 << 30 and facts.open_files > 0
    assert {"torch", "ray", "megatron-core"} <= facts.packages.keys()

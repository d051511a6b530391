"""GPUs, CPUs, memory and limits, on machines that were made up."""

from dataclasses import replace
from typing import Any

import pytest
from machines import H200, gpu_machine, machine

from megatron_cgrpo.doctor.check import Status
from megatron_cgrpo.doctor.facts import NodeFacts
from megatron_cgrpo.doctor.host import GIB, host_checks, kinds_check


def found(facts: NodeFacts, **arguments: Any) -> dict[str, Status]:
    checks = list(host_checks(facts, **({"shared_memory": GIB} | arguments)))
    assert all(bool(check.remedy) == (check.status in ("warn", "fail")) for check in checks)
    return {check.name: check.status for check in checks if check.status != "ok"}


NO_GPU = {"gpus": "skipped"}
ONE_GPU = {"gpus": (H200,), "usable_gpus": 1}


def test_machines_as_they_should_be() -> None:
    assert found(machine()) == NO_GPU and found(gpu_machine()) == {}
    assert found(gpu_machine(**ONE_GPU)) == {"peer access": "skipped"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"memory": 2 * GIB}, {"memory": "fail"}),
        ({"shared_memory": 64 << 20}, {"shared memory": "fail"}),
        ({"shared_memory": None}, {"shared memory": "fail"}),
        ({"open_files": 1024}, {"open files": "warn"}),
        ({"cpus": 0.5}, {"cpus": "warn"}),
        ({"cpus": 4.0, "allocated_cpus": 8}, {"cpus": "warn"}),
        ({"cpus": 8.0, "allocated_cpus": 8}, {}),
    ],
)
def test_too_little(change: dict[str, Any], expected: dict[str, Status]) -> None:
    assert found(machine(**change)) == NO_GPU | expected


def test_ray_counts_more_cpus_than_are_usable() -> None:
    assert found(machine(cpus=4.0), ray_cpus=16.0) == NO_GPU | {"cpus": "warn"}
    assert found(machine(cpus=4.0), ray_cpus=4.0) == NO_GPU


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"usable_gpus": 0}, {"gpus": "fail", "peer access": "skipped"}),
        ({"usable_gpus": 1}, {"gpus": "warn", "peer access": "skipped"}),
        ({"gpus": (H200, replace(H200, name="NVIDIA A100"))}, {"gpus": "warn"}),
        ({"strangers": ((0, 1), (1, 0))}, {"peer access": "warn"}),
        ({"cpus": 3.0}, {"cpus": "warn"}),
    ],
)
def test_gpus_that_cannot_be_used_as_they_should(change: dict[str, Any], expected: dict[str, Status]) -> None:
    assert found(gpu_machine(**change)) == expected


def test_the_kinds_of_a_cluster() -> None:
    assert kinds_check([machine()]).status == "skipped"
    assert kinds_check([gpu_machine(), gpu_machine(), machine()]).status == "ok"
    assert kinds_check([gpu_machine(), gpu_machine(**ONE_GPU)]).status == "warn"
    other = gpu_machine(gpus=(replace(H200, name="NVIDIA H100 80GB HBM3"),) * 2)
    assert kinds_check([gpu_machine(), other]).status == "warn"

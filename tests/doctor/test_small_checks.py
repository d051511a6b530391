"""The rest that needs no cluster: reports, disks, and what recipes ask for."""

from pathlib import Path

import pytest

from megatron_cgrpo.config import check_recipe, load_recipe, model_shape
from megatron_cgrpo.doctor.all_reduce import all_reduce_check, places
from megatron_cgrpo.doctor.check import Check, as_json, healthy, judged
from megatron_cgrpo.doctor.devices import device_check
from megatron_cgrpo.doctor.disk import disk_check, measure_disk
from megatron_cgrpo.doctor.needs import BUCKET, OBJECTS, shared_memory_needed
from megatron_cgrpo.doctor.nodes import Node
from megatron_cgrpo.doctor.tiny_run import tiny_recipe
from megatron_cgrpo.launch.cluster import OBJECT_STORE_BYTES
from megatron_cgrpo.trainer.system import processes
from megatron_cgrpo.weights.transfer.file import DEFAULT_BUCKET_BYTES

EXAMPLES = Path(__file__).parents[2] / "examples"
GPU_NODE, CPU_NODE = Node("a", "one", 64.0, 8), Node("b", "two", 2.0, 0)


def test_a_warning_is_healthy_and_a_failure_is_not() -> None:
    checks = [judged("a", True, "1", "1", "none"), judged("b", False, "1", "2", "do it", otherwise="warn")]
    assert healthy(checks) and [check.remedy for check in checks] == ["", "do it"]
    failed = Check("c", "fail", "1", "2", "do that", "here")
    assert as_json([*checks, failed]) == {
        "ok": False,
        "checks": [
            {"name": "a", "status": "ok", "found": "1", "expected": "1", "remedy": "", "node": None},
            {"name": "b", "status": "warn", "found": "1", "expected": "2", "remedy": "do it", "node": None},
            {"name": "c", "status": "fail", "found": "1", "expected": "2", "remedy": "do that", "node": "here"},
        ],
    }


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    speed = measure_disk(tmp_path / "run" / "later")
    assert speed > 0 and list(tmp_path.iterdir()) == []
    assert disk_check(tmp_path, 2000.0).status == "ok" and disk_check(tmp_path, 20.0).status == "warn"
    with pytest.raises(OSError) as caught:
        measure_disk(Path("/proc/runs"))
    check = disk_check(Path("/proc/runs"), caught.value)
    assert check.status == "fail" and caught.value.strerror is not None and caught.value.strerror in check.found


def test_ranks_of_the_sum_are_on_every_gpu_or_machine() -> None:
    assert places([GPU_NODE, CPU_NODE]) == [(GPU_NODE, 1)] * 8
    assert places([CPU_NODE]) == [(CPU_NODE, 0)] * 2
    assert places([CPU_NODE, CPU_NODE]) == [(CPU_NODE, 0)] * 2


def test_without_a_node_that_answers_there_is_no_sum() -> None:
    check = all_reduce_check([], 1.0)
    assert (check.status, check.found) == ("skipped", "no node has answered")


def test_shared_memory_holds_objects_and_the_largest_tensor() -> None:
    assert (OBJECTS, BUCKET) == (OBJECT_STORE_BYTES, DEFAULT_BUCKET_BYTES)
    assert shared_memory_needed(None) == shared_memory_needed(load_recipe(EXAMPLES / "sandbox.yaml")) == 1 << 30
    embedding = 128256 * 8192 * 2
    assert shared_memory_needed(load_recipe(EXAMPLES / "llama3_70b.yaml")) == embedding + (512 << 20)


def test_the_devices_of_a_recipe() -> None:
    sandbox = load_recipe(EXAMPLES / "sandbox.yaml")
    assert device_check(sandbox, [Node("a", "one", 4.0, 0)], cuda=False).status == "ok"
    check = device_check(sandbox, [CPU_NODE], cuda=False)
    assert check.status == "fail" and check.expected.startswith("4 CPUs") and check.found.startswith("2 CPUs")
    large = load_recipe(EXAMPLES / "llama3_70b.yaml")
    assert device_check(large, [GPU_NODE] * 8, cuda=True).status == "ok"
    assert device_check(large, [GPU_NODE] * 7, cuda=True).status == "fail"
    assert device_check(large, [Node("a", "one", 8.0, 2)] * 32, cuda=True).status == "fail"  # engines take four


@pytest.mark.parametrize(("gpus", "devices", "dtype"), [(0, 2, "float32"), (1, 1, "bfloat16"), (8, 2, "bfloat16")])
def test_the_tiny_run_takes_what_there_is(gpus: int, devices: int, dtype: str) -> None:
    recipe = tiny_recipe(gpus)
    check_recipe(recipe, model_shape(recipe))
    assert (processes(recipe), recipe.model.dtype) == (devices, dtype)

"""Files written in any order are the ones that safetensors and transformers read, byte for byte the same."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.safetensors_stream import StreamedSafetensors, plan_shards
from megatron_cgrpo.weights.tensor_spec import TensorSpec

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool]


def specs_of(tensors: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def mixed_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = [(3,), (5, 7), (0, 4), (), (2, 3, 4), (33,)]
    return {
        f"layer.{i}.ä{j}": (torch.randn(shape) * 9).to(dtype)
        for i, dtype in enumerate(DTYPES)
        for j, shape in enumerate(shapes)
    }


def write(folder: Path, tensors: dict[str, Tensor], order: Sequence[str], threads: int, limit: int) -> dict[str, bytes]:
    folder.mkdir()
    with StreamedSafetensors(folder, specs_of(tensors), limit) as files, ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda name: files.write(name, tensors[name]), order))
        files.finish()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_safetensors_reads_every_dtype_and_shape(tmp_path: Path) -> None:
    tensors = mixed_tensors()
    write(tmp_path / "model", tensors, list(tensors), 1, 1 << 20)
    loaded = load_file(tmp_path / "model" / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert loaded[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8)), name
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_order_and_threads_do_not_change_a_byte(tmp_path: Path) -> None:
    tensors = mixed_tensors()
    names = list(tensors)
    first = write(tmp_path / "first", tensors, names, 1, 300)
    assert len(first) > 3 and "model.safetensors.index.json" in first
    for seed in range(3):
        Random(seed).shuffle(names)
        assert write(tmp_path / f"threads{seed}", tensors, names, 4, 300) == first


def test_a_transposed_tensor_is_written_in_its_own_order(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    write(tmp_path / "model", {"a": tensor}, ["a"], 1, 100)
    assert torch.equal(load_file(tmp_path / "model" / "model.safetensors")["a"], tensor)


@given(
    sizes=st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 40)), min_size=1, max_size=12),
    limit=st.integers(1, 200),
)
def test_shards_hold_every_tensor_aligned_and_within_the_limit(
    sizes: list[tuple[torch.dtype, int]], limit: int
) -> None:
    specs = {f"t{i}": TensorSpec(dtype, (size,)) for i, (dtype, size) in enumerate(sizes)}
    plan = plan_shards(specs, limit)
    assert sorted(name for header in plan.values() for name in header.specs) == sorted(specs)
    for header in plan.values():
        assert len(header.encoded) % 8 == 0
        assert len(header.specs) == 1 or sum(spec.nbytes for spec in header.specs.values()) <= limit
        assert all(header.offsets[name] % spec.dtype.itemsize == 0 for name, spec in header.specs.items())
    if len(plan) == 1:
        assert list(plan) == ["model.safetensors"]
    else:
        assert list(plan)[0] == f"model-00001-of-{len(plan):05}.safetensors"


def test_transformers_loads_shards_through_the_index(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config)
    tensors = dict(model.state_dict())
    files = write(tmp_path / "model", tensors, list(tensors), 2, 4000)
    index = json.loads(files["model.safetensors.index.json"])
    assert set(index["weight_map"].values()) == set(files) - {"model.safetensors.index.json"}
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    config.save_pretrained(tmp_path / "model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    ours = HFCheckpoint(tmp_path / "model")
    assert all(torch.equal(ours.read(name), tensor) for name, tensor in tensors.items())


def test_every_tensor_is_written_once_as_planned(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with StreamedSafetensors(tmp_path, specs_of(tensors)) as files:
        for name, wrong in [("c", torch.zeros(2)), ("a", torch.zeros(3)), ("a", torch.zeros(2).half())]:
            with pytest.raises(ValueError, match=f"tensor {name} is .*, planned is"):
                files.write(name, wrong)
        files.write("a", tensors["a"])
        with pytest.raises(ValueError, match="tensor a was written before"):
            files.write("a", tensors["a"])
        with pytest.raises(ValueError, match="1 tensors were never written: b"):
            files.finish()


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from megatron_cgrpo.weights.safetensors_stream import StreamedSafetensors
from megatron_cgrpo.weights.tensor_spec import TensorSpec
specs = {f"t{i}": TensorSpec(torch.float32, (100,)) for i in range(6)}
files = StreamedSafetensors(Path(sys.argv[1]), specs, 900)
for i in (4, 1, 0):
    files.write(f"t{i}", torch.full((100,), float(i)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(6)}
    expected = write(tmp_path / "whole", tensors, list(tensors), 1, 900)
    killed = tmp_path / "killed"
    killed.mkdir()
    assert subprocess.run([sys.executable, "-c", KILLED, str(killed)]).returncode == -signal.SIGKILL
    with StreamedSafetensors(killed, specs_of(tensors), 900) as files:
        files.keep(["t4", "t1"])
        for name in ("t0", "t2", "t3", "t5"):  # t0 was written, but nobody noted it
            files.write(name, tensors[name])
        files.finish()
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == expected


def test_other_files_are_not_continued(tmp_path: Path) -> None:
    spec = {"a": TensorSpec(torch.float32, (4,))}
    other = {"a": TensorSpec(torch.float32, (2, 2))}
    with StreamedSafetensors(tmp_path, spec) as files:
        files.write("a", torch.ones(4))
    with (
        StreamedSafetensors(tmp_path, other) as files,
        pytest.raises(ConfigError, match="model.safetensors is not the file that was begun: delete"),
    ):
        files.keep(["a"])
    os.truncate(tmp_path / "model.safetensors", 100)
    with StreamedSafetensors(tmp_path, other) as files:
        with pytest.raises(ConfigError, match="is not the file that was begun"):
            files.keep(["a"])
        files.write("a", torch.full((2, 2), 3.0))
        files.finish()
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [[3.0, 3.0], [3.0, 3.0]]
    with StreamedSafetensors(tmp_path, other) as files:
        files.keep(["a"])
        with pytest.raises(ValueError, match="tensor a was written before"):
            files.write("a", torch.zeros(2, 2))
        files.finish()


def test_lack_of_space_shows_before_the_first_tensor(tmp_path: Path) -> None:
    """A limit on file sizes stands for the end of the disk: space is asked for in the same call."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, previous[1]))
    try:
        with pytest.raises(OSError) as refused:
            StreamedSafetensors(tmp_path, {"a": TensorSpec(torch.float32, (1 << 19,))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, handler)
    assert refused.value.errno == errno.EFBIG
    assert (tmp_path / "model.safetensors").stat().st_size == 0

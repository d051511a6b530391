"""Tensors of a model directory one at a time: the right files, the right values, nothing kept, damage named."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.safetensors_header import read_header

INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {
        "a.weight": torch.randn(6, 5),
        "b.weight": torch.randn(3, 4).bfloat16(),
        "c.bias": torch.randn(7).half(),
        "d.empty": torch.empty(0, 3),
        "e.scalar": torch.tensor(4.5),
    }


def sharded(folder: Path) -> Path:
    """Three shards with an index, beside them weights in another naming that the index leaves out."""
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for number, names in enumerate([["a.weight"], ["b.weight", "d.empty"], ["c.bias", "e.scalar"]], start=1):
        file = f"model-{number:05}-of-00003.safetensors"
        save_file({name: tensors()[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file({"layers.0.wq": torch.ones(2), "a.weight": torch.ones(1)}, folder / "consolidated.safetensors")
    return folder


def check_values(found: HFCheckpoint) -> None:
    assert found.names() == set(tensors())
    for name, expected in tensors().items():
        assert (found.dtype(name), found.shape(name)) == (expected.dtype, tuple(expected.shape))
        assert torch.equal(found.read(name), expected) and found.read(name).dtype == expected.dtype
    assert found.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors().values())


def test_a_single_file_and_shards_without_an_index(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    check_values(HFCheckpoint(tmp_path))
    (sharded(tmp_path / "shards") / INDEX).unlink()
    (tmp_path / "shards" / "consolidated.safetensors").unlink()
    check_values(HFCheckpoint(tmp_path / "shards"))


def test_only_the_files_of_the_index_are_the_model(tmp_path: Path) -> None:
    check_values(HFCheckpoint(sharded(tmp_path)))


def _drop_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def _drop_tensor(folder: Path) -> None:
    save_file({"b.weight": tensors()["b.weight"]}, folder / "model-00002-of-00003.safetensors")


def _duplicate(folder: Path) -> None:
    save_file({"a.weight": torch.ones(1), "b.weight": torch.ones(1)}, folder / "model-00001-of-00003.safetensors")


def _add_unlisted(folder: Path) -> None:
    save_file({"a.weight": torch.ones(1), "z.new": torch.ones(1)}, folder / "model-00001-of-00003.safetensors")


def _second_model(folder: Path) -> None:
    save_file(tensors(), folder / "model.safetensors")


def _forget_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def _break_index(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def _list_as_map(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": ["a"]}')


def _point_outside(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {"a": "../other.safetensors"}}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_shard, f"lacks model-00002-of-00003.safetensors of {INDEX}: download"),
        (_drop_tensor, "lacks tensors that its index lists: d.empty in model-00002-of-00003.safetensors"),
        (_duplicate, "model-00001-of-00003.safetensors holds tensors that the index of .* does not place there: b.we"),
        (_add_unlisted, "does not place there: z.new"),
        (_second_model, f"has both model.safetensors and {INDEX}"),
        (_forget_index, "model-00001-of-00003.safetensors holds tensors that another file holds too: a.weight"),
        (_break_index, f"{INDEX} is not JSON"),
        (_list_as_map, "weight_map is no mapping"),
        (_point_outside, "weight_map names files outside"),
    ],
)
def test_a_directory_that_contradicts_itself_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    damage(sharded(tmp_path))
    with pytest.raises(ConfigError, match=message):
        HFCheckpoint(tmp_path)


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \*.safetensors there"):
        HFCheckpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, kept: int) -> None:
    path = sharded(tmp_path) / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match="model-00003-of-00003.safetensors is truncated or corrupt"):
        HFCheckpoint(tmp_path)


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(0, 4), "b": entry(0, 4)}, "overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, "tensor b follows a gap"),
        ({"a": entry(0, 4)}, "12 bytes of data where the header describes 4"),
        ({"a": entry(0, 12)}, "in 12 bytes"),
        ({"a": entry(0, 12, shape=(-3, -1))}, "shape"),
        ({"a": {"dtype": "F32"}}, "truncated or corrupt"),
        ({"a": 3}, "truncated or corrupt"),
        ([1], "no JSON object"),
    ],
)
def test_a_header_that_does_not_describe_the_data_is_refused(tmp_path: Path, header: Any, reason: str) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, bytes(12))
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
    with pytest.raises(ConfigError, match=reason):
        HFCheckpoint(tmp_path)


def test_a_dtype_that_no_model_has_is_named(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", {"a": entry(0, 8, "C64")}, bytes(8))
    with pytest.raises(ConfigError, match="tensor a has dtype 'C64', which is not supported"):
        HFCheckpoint(tmp_path)


@settings(max_examples=150)
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 60))
def test_whatever_safetensors_refuses_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    save_file({"a": torch.ones(6, 5), "b": torch.zeros(3).half()}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content[: len(content) - (cut if cut > 50 else 0)])
    try:
        expected = load_file(path)
    except Exception:
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            read_header(path)
        return
    specs = read_header(path).specs
    assert {name: (spec.dtype, spec.shape) for name, spec in specs.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in expected.items()
    }


def test_data_off_its_alignment_is_read(tmp_path: Path) -> None:
    values = torch.arange(3.0)
    header = {"x": entry(0, 1, "U8"), "a": entry(1, 13, shape=(3,))}
    write_raw(tmp_path / "model.safetensors", header, b"\7" + values.numpy().tobytes())
    found = HFCheckpoint(tmp_path).read("a")
    assert torch.equal(found, values) and found.data_ptr() % 4 == 0


def test_writing_to_a_tensor_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    checkpoint = HFCheckpoint(tmp_path)
    checkpoint.read("a.weight").zero_()
    check_values(checkpoint)


def resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def test_a_dropped_tensor_is_no_longer_resident(tmp_path: Path) -> None:
    size = 8 << 20
    save_file({name: torch.full((size,), 1, dtype=torch.int8) for name in "abcd"}, tmp_path / "model.safetensors")
    checkpoint = HFCheckpoint(tmp_path)
    before = resident_file_bytes()
    for name in "abcd":
        tensor = checkpoint.read(name)
        assert int(tensor.sum(dtype=torch.int64)) == size
        assert resident_file_bytes() - before > size * 3 // 4, "mapped, not copied"
        del tensor
        assert resident_file_bytes() - before < size // 4


def test_threads_read_the_same_tensors(tmp_path: Path) -> None:
    checkpoint, expected = HFCheckpoint(sharded(tmp_path)), tensors()
    names = Random(0).choices(list(expected), k=400)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: torch.equal(checkpoint.read(name), expected[name]), names))


def test_the_fingerprint_knows_a_model_wherever_it_lies(tmp_path: Path) -> None:
    first = HFCheckpoint(sharded(tmp_path / "first")).fingerprint()
    assert HFCheckpoint(Path(shutil.copytree(tmp_path / "first", tmp_path / "copy"))).fingerprint() == first
    path = tmp_path / "copy" / "model-00001-of-00003.safetensors"
    save_file({"a.weight": torch.zeros(6, 5)}, path)  # the same header: a later step of the same run
    second = HFCheckpoint(tmp_path / "copy").fingerprint()
    save_file({"a.weight": torch.zeros(5, 6)}, path)
    assert len({first, second, HFCheckpoint(tmp_path / "copy").fingerprint()}) == 3


def test_bin_files_are_read_where_there_are_no_safetensors(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    (tmp_path / "training_args.bin").write_bytes(b"not weights")
    check_values(HFCheckpoint(tmp_path))
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    assert HFCheckpoint(tmp_path).names() == {"other"}


def test_bin_shards_follow_their_index(tmp_path: Path) -> None:
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors().items()):
        file = f"pytorch_model-{number}.bin"
        torch.save({name: tensor}, tmp_path / file)
        weight_map[name] = file
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = HFCheckpoint(tmp_path)
    check_values(checkpoint)
    assert checkpoint.fingerprint() == HFCheckpoint(tmp_path).fingerprint()
    (tmp_path / "pytorch_model-3.bin").unlink()
    with pytest.raises(ConfigError, match="lacks pytorch_model-3.bin"):
        HFCheckpoint(tmp_path)


def test_a_tensor_dropped_from_a_bin_is_no_longer_resident(tmp_path: Path) -> None:
    size = 8 << 20
    torch.save({name: torch.ones(size, dtype=torch.int8) for name in "ab"}, tmp_path / "pytorch_model.bin")
    checkpoint = HFCheckpoint(tmp_path)
    before = resident_file_bytes()
    for name in "ab":
        assert int(checkpoint.read(name).sum(dtype=torch.int64)) == size
        assert resident_file_bytes() - before < size // 4


class Code:
    """What a hostile pickle does: names a function to call while it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_bin_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Code(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pytorch_model.bin holds more than tensors and could run code"):
        HFCheckpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(ConfigError, match="pytorch_model.bin"):
        HFCheckpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_old_bin_is_refused_with_a_command_that_works(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match="old format, .*: re-save it as safetensors") as refused:
        HFCheckpoint(tmp_path)
    command = shlex.split(str(refused.value).partition("as safetensors: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    check_values(HFCheckpoint(tmp_path))


def test_a_truncated_bin_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors(), path)
    content = path.read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(ConfigError, match="pytorch_model.bin is truncated or corrupt"):
            HFCheckpoint(tmp_path)


def test_a_bin_that_is_no_plain_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": tensors()}, path)
    with pytest.raises(ConfigError, match="entry 'state_dict' is no dense tensor"):
        HFCheckpoint(tmp_path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(ConfigError, match="holds a list"):
        HFCheckpoint(tmp_path)

"""Megatron's checkpoint format: what PyTorch and Megatron read of ours, and we of theirs."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_archive import map_tensor
from megatron_cgrpo.weights.torch_dist import ChunkFile, TorchDistCheckpoint, write_index

STACKED = torch.arange(2 * 6 * 4, dtype=torch.bfloat16).reshape(2, 6, 4)  # two layers of 6 x 4
GRID = torch.arange(24.0).reshape(4, 6)
SPECS = {"layers.weight": TensorSpec(torch.bfloat16, (2, 6, 4)), "grid": TensorSpec(torch.float32, (4, 6))}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Layers cut in rows 2 + 4, the grid in columns 3 + 3, over two files."""
    files = [ChunkFile(tmp_path / f"__{rank}_0.distcp") for rank in range(2)]
    for layer in range(2):
        files[0].append("layers.weight", (layer, 0, 0), STACKED[layer, :2], leading=1)
        files[1].append("layers.weight", (layer, 2, 0), STACKED[layer, 2:], leading=1)
    files[0].append("grid", (0, 0), GRID[:, :3], leading=0)
    files[1].append("grid", (0, 3), GRID[:, 3:], leading=0)
    for file in files:
        file.close()
    write_index(tmp_path, SPECS, [chunk for file in files for chunk in file.chunks])
    return tmp_path


def test_pytorch_reads_what_is_written(written: Path) -> None:
    state = {"layers.weight": torch.zeros_like(STACKED), "grid": torch.zeros_like(GRID)}
    dcp.load(state, checkpoint_id=str(written), no_dist=True)
    assert torch.equal(state["layers.weight"], STACKED) and torch.equal(state["grid"], GRID)


def test_whole_rows_come_in_pieces_and_columns_are_joined(written: Path) -> None:
    checkpoint = TorchDistCheckpoint(written)
    assert checkpoint.tensors == SPECS and checkpoint.objects == []
    pieces = checkpoint.reader.rows("layers.weight", (1,), (6, 4))
    assert [len(piece) for piece in pieces] == [2, 4] and torch.equal(torch.cat(pieces), STACKED[1])
    [whole] = checkpoint.reader.rows("grid", (), (4, 6))
    assert torch.equal(whole, GRID)


def test_chunks_take_only_their_own_bytes(written: Path) -> None:
    """A view of a large tensor is written without the rest of it."""
    assert sum(chunk.length for chunk in TorchDistCheckpoint(written).chunks) < 6 * 2000


def test_what_pytorch_writes_is_read(tmp_path: Path) -> None:
    dcp.save({"grid": GRID, "step": 3}, checkpoint_id=str(tmp_path), no_dist=True)
    (tmp_path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    checkpoint = TorchDistCheckpoint(tmp_path)
    assert checkpoint.objects == ["step"]
    assert torch.equal(torch.cat(checkpoint.reader.rows("grid", (), (4, 6))), GRID)


@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_a_damaged_file_is_named(written: Path, damage: str) -> None:
    path = written / "__1_0.distcp"
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "short" else b"\0" * len(content))
    reader = TorchDistCheckpoint(written).reader
    with pytest.raises(ConfigError, match="__1_0.distcp is truncated or corrupt"):
        reader.rows("grid", (), (4, 6))


def test_missing_chunks_are_counted(written: Path) -> None:
    checkpoint = TorchDistCheckpoint(written)
    with pytest.raises(ConfigError, match=r"grid at \[\] has 24 of 48 elements"):
        checkpoint.reader.rows("grid", (), (8, 6))
    with pytest.raises(ConfigError, match=r"layers.weight at \[2\] has 0 of 24 elements"):
        checkpoint.reader.rows("layers.weight", (2,), (6, 4))


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('code of the checkpoint ran')",))


def test_metadata_runs_no_code(written: Path) -> None:
    metadata = Metadata(state_dict_metadata={}, planner_data=_Evil())
    (written / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ConfigError, match=r"damaged \(builtins.exec does not belong there\)"):
        TorchDistCheckpoint(written)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.json", "{", "is no Megatron checkpoint"),
        ("metadata.json", '{"sharded_backend": "zarr"}', "sharded_backend is not torch_dist"),
        (".metadata", "not a pickle", "is damaged"),
    ],
)
def test_other_directories_are_refused(written: Path, file: str, content: str, message: str) -> None:
    (written / file).write_text(content)
    with pytest.raises(ConfigError, match=message):
        TorchDistCheckpoint(written)


@pytest.mark.parametrize(
    "tensor",
    [
        GRID,
        GRID.t(),
        GRID[1:3, ::2],
        GRID.double(),
        GRID.half(),
        torch.zeros(0, 3),
        torch.arange(5),
        torch.tensor(2.5),
        torch.nn.Parameter(GRID),
        GRID.to(torch.float8_e4m3fn),
    ],
    ids=["plain", "transposed", "strided", "double", "half", "empty", "int", "scalar", "parameter", "fp8"],
)
def test_an_archive_inside_a_file_gives_what_torch_load_gives(tensor: torch.Tensor, tmp_path: Path) -> None:
    archive = io.BytesIO()
    torch.save(tensor, archive)
    raw = archive.getvalue()
    path = tmp_path / "file"
    path.write_bytes(b"123" + raw + b"behind")
    found = map_tensor(path, 3, len(raw))
    assert found.dtype == tensor.dtype and found.shape == tensor.shape
    assert torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (found, tensor)))


def test_an_archive_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.save(_Evil(), path)
    with pytest.raises(Exception, match="weights_only|Weights only"):
        map_tensor(path, 0, path.stat().st_size)


def test_something_else_than_a_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.save({"a": GRID}, path)
    with pytest.raises(ValueError, match="a dict where a tensor should be"):
        map_tensor(path, 0, path.stat().st_size)

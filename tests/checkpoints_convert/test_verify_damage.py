"""Each kind of damage fails the checks that it concerns, which name it; the other checks still run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pairs import KEEP, UNTIED, WEIGHTS, change_config, change_tensors, check_of, failed, save_tokenizer, text
from torch import Tensor

from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.round_trip import HFSide, compare
from checkpoints_convert.verify import verify
from checkpoints_convert.verify_chunks import chunk_problems, file_problems
from megatron_cgrpo.weights.hf_reader import HFCheckpoint
from megatron_cgrpo.weights.tensor_spec import TensorSpec
from megatron_cgrpo.weights.torch_dist import StoredChunk, TorchDistCheckpoint, write_index

Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"


def flip_a_byte(hf: Path, megatron: Path) -> None:
    chunk = next(c for c in TorchDistCheckpoint(megatron).chunks if c.key.endswith("linear_fc2.weight"))
    path = megatron / chunk.file
    content = bytearray(path.read_bytes())
    content[chunk.start + chunk.length // 2] ^= 1
    path.write_bytes(content)


def truncate(hf: Path, megatron: Path) -> None:
    path = megatron / "__0_1.distcp"
    path.write_bytes(path.read_bytes()[:-1000])


def remove_chunk_file(hf: Path, megatron: Path) -> None:
    (megatron / "__1_1.distcp").unlink()


def rewrite_index(megatron: Path, change: Callable[[list[StoredChunk]], list[StoredChunk]]) -> None:
    checkpoint = TorchDistCheckpoint(megatron)
    write_index(megatron, checkpoint.tensors, change(checkpoint.chunks))


def leave_out_a_chunk(hf: Path, megatron: Path) -> None:
    rewrite_index(megatron, lambda chunks: chunks[:-1])


def swap_two_layers(hf: Path, megatron: Path) -> None:
    """Their output projections change places."""

    def swapped(chunks: list[StoredChunk]) -> list[StoredChunk]:
        others = {0: 1, 1: 0}
        key = "decoder.layers.self_attention.linear_proj.weight"
        return [
            StoredChunk(c.key, (others.get(c.offset[0], c.offset[0]), *c.offset[1:]), c.size, c.file, c.start, c.length)
            if c.key == key
            else c
            for c in chunks
        ]

    rewrite_index(megatron, swapped)


def corrupt_metadata(hf: Path, megatron: Path) -> None:
    (megatron / ".metadata").write_bytes((megatron / ".metadata").read_bytes()[:-100])


def truncate_common(hf: Path, megatron: Path) -> None:
    (megatron / "common.pt").write_bytes((megatron / "common.pt").read_bytes()[:-30])


def change_norm_epsilon(hf: Path, megatron: Path) -> None:
    change_config(megatron, rms_norm_eps=1e-5)


def change_end_token(hf: Path, megatron: Path) -> None:
    change_config(megatron, eos_token_id=5)


def other_tokenizer(hf: Path, megatron: Path) -> None:
    save_tokenizer(megatron, 40)


def remove_tokenizer_file(hf: Path, megatron: Path) -> None:
    (megatron / "tokenizer.json").unlink()


def extra_hf_tensor(hf: Path, megatron: Path) -> None:
    change_tensors(hf, lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(32)}))


def missing_hf_tensor(hf: Path, megatron: Path) -> None:
    change_tensors(hf, lambda tensors: tensors.pop(NORM))


def misshapen_hf_tensor(hf: Path, megatron: Path) -> None:
    change_tensors(hf, lambda tensors: tensors.update({NORM: torch.ones(16)}))


def shift_a_value(hf: Path, megatron: Path) -> None:
    def shift(tensors: dict[str, Tensor]) -> None:
        tensors[Q][3, 5] += 0.25

    change_tensors(hf, shift)


def truncate_safetensors(hf: Path, megatron: Path) -> None:
    (hf / WEIGHTS).write_bytes((hf / WEIGHTS).read_bytes()[:-1])


def corrupt_manifest(hf: Path, megatron: Path) -> None:
    (megatron / "conversion.json").write_text("{")


DAMAGES: dict[Callable[[Path, Path], None], dict[str, str]] = {
    flip_a_byte: {
        "contents": "down_proj.weight: 1 of 1536 elements differ in bfloat16, by up to",
        "Megatron since conversion": "down_proj.weight: another content than when it was converted",
    },
    truncate: {
        "Megatron files": "__0_1.distcp has",
        "contents": "__0_1.distcp is truncated or corrupt",
        "Megatron since conversion": "model.layers.0.mlp",
    },
    remove_chunk_file: {
        "Megatron files": "__1_1.distcp is missing",
        "contents": "__1_1.distcp",
        "Megatron since conversion": "cannot be read any more",
    },
    leave_out_a_chunk: {
        "Megatron chunks": "output_layer.weight: no chunk at [32, 0] of [64, 32]",
        "contents": "lm_head.weight: ",
        "Megatron since conversion": "lm_head.weight cannot be read any more",
        "vocabulary padding": "output_layer.weight at [] has 1024 of 2048 elements",
    },
    swap_two_layers: {
        "contents": "layers.0.self_attn.o_proj.weight: Megatron holds model.layers.1.self_attn.o_proj.weight there",
        "Megatron since conversion": "model.layers.1.self_attn.o_proj.weight: another content",
    },
    corrupt_metadata: {"Megatron tensors": ".metadata is damaged", "Megatron since conversion": "cannot be read"},
    truncate_common: {"Megatron files": "common.pt is truncated or corrupt"},
    change_norm_epsilon: {"config.json": "rms_norm_eps: 1e-06 in "},
    change_end_token: {"config.json": "eos_token_id: 1 in "},
    other_tokenizer: {"tokenizer": "tokenizer.json differs"},
    remove_tokenizer_file: {"tokenizer": "tokenizer.json is missing in "},
    extra_hf_tensor: {"Hugging Face tensors": "model.layers.1.self_attn.q_proj.bias is not of this architecture"},
    missing_hf_tensor: {"Hugging Face tensors": f"{NORM} is missing"},
    misshapen_hf_tensor: {"Hugging Face tensors": f"{NORM} has shape [16], not [32]"},
    shift_a_value: {"contents": f"{Q}: 1 of 1024 elements differ in bfloat16, by up to 0.2"},
    truncate_safetensors: {"Hugging Face tensors": f"{WEIGHTS} is truncated or corrupt"},
    corrupt_manifest: {"Megatron since conversion": "conversion.json is damaged"},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_named(pair: tuple[Path, Path], damage: Callable[[Path, Path], None]) -> None:
    damage(*pair)
    report = verify(*pair, threads=2)
    expected = DAMAGES[damage]
    assert failed(report) == set(expected)
    for name, named in expected.items():
        assert named in text(check_of(report, name))
    assert not report.passed
    assert len(report.checks) == 11


def test_the_file_of_a_changed_tensor_is_named(pair: tuple[Path, Path]) -> None:
    flip_a_byte(*pair)
    chunk = next(c for c in TorchDistCheckpoint(pair[1]).chunks if c.key.endswith("linear_fc2.weight"))
    assert chunk.file in text(check_of(verify(*pair), "contents"))


def test_a_file_that_disappears_meanwhile_is_named(pair: tuple[Path, Path]) -> None:
    checkpoint = HFCheckpoint(pair[0])
    (pair[0] / WEIGHTS).unlink()
    found = compare(HFSide(checkpoint, checkpoint.names()), None, UNTIED, threads=2)
    assert all(comparison.problem and WEIGHTS in comparison.problem for comparison in found)


def test_a_damaged_hf_model_is_told_by_what_its_conversion_recorded(pair: tuple[Path, Path], tmp_path: Path) -> None:
    megatron_to_hf(pair[1], tmp_path / "back", KEEP)
    assert check_of(verify(tmp_path / "back", pair[1]), "Hugging Face since conversion").status == "passed"
    path = tmp_path / "back" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    report = verify(tmp_path / "back", pair[1])
    assert failed(report) == {"contents", "Hugging Face since conversion"}


@pytest.mark.parametrize(
    ("boxes", "named"),
    [
        ([((0, 0), (2, 4)), ((2, 0), (2, 4))], None),
        ([((0, 0), (4, 1)), ((0, 1), (1, 3)), ((1, 1), (3, 3))], None),
        ([((0, 0), (4, 2)), ((0, 3), (4, 1))], "no chunk at [0, 2]"),
        ([((0, 0), (3, 4)), ((2, 0), (2, 4))], "2 chunks at [2, 0]"),
        ([((0, 0), (2, 2)), ((2, 2), (2, 2)), ((0, 2), (2, 2)), ((1, 0), (2, 2))], "2 chunks at [1, 0]"),
        ([((0, 0), (4, 5))], "chunks outside its [4, 4]"),
        ([], "no chunk at [0, 0]"),
    ],
)
def test_chunks_cover_each_element_once(tmp_path: Path, boxes: list, named: str | None) -> None:
    chunks = [StoredChunk("t", offset, size, "__0_0.distcp", 10 * i, 10) for i, (offset, size) in enumerate(boxes)]
    write_index(tmp_path, {"t": TensorSpec(torch.float32, (4, 4))}, chunks)
    problems = list(chunk_problems(TorchDistCheckpoint(tmp_path), {"t"}))
    assert problems == [] if named is None else named in problems[0]


def test_chunks_that_share_bytes_are_found(pair: tuple[Path, Path]) -> None:
    def shared(chunks: list[StoredChunk]) -> list[StoredChunk]:
        first, second, *rest = chunks
        return [first, StoredChunk(*second_place(first, second)), *rest]

    def second_place(first: StoredChunk, second: StoredChunk) -> tuple:
        return second.key, second.offset, second.size, first.file, first.start + 1, first.length - 1

    rewrite_index(pair[1], shared)
    checkpoint = TorchDistCheckpoint(pair[1])
    assert "share bytes" in "\n".join(file_problems(checkpoint, set(checkpoint.tensors)))

"""The configured way to the engines, and that a rank which sends files never loads vLLM."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from megatron_cgrpo.actor.parallel import Endpoint
from megatron_cgrpo.actor.sender import build_sender
from megatron_cgrpo.actor.worker import Worker
from megatron_cgrpo.config.model_shape import QWEN3, ModelShape
from megatron_cgrpo.weights.fp8_export import quantised
from megatron_cgrpo.weights.hf_shapes import hf_shapes
from megatron_cgrpo.weights.transfer.file import FileSender

SHAPE = ModelShape(QWEN3, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=8, ffn=8, vocab=9, max_positions=16)
ENDPOINT = Endpoint("127.0.0.1", 1)

BUILD_ON_A_RANK = """
import sys
from megatron_cgrpo.actor.parallel import Endpoint
from megatron_cgrpo.actor.sender import build_sender
from megatron_cgrpo.config.model_shape import QWEN3, ModelShape
from megatron_cgrpo.actor import worker
shape = ModelShape(QWEN3, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=8, ffn=8, vocab=9, max_positions=16)
sender = build_sender("file", None, 1, 1, Endpoint("127.0.0.1", 1), shape, "float32")
sender.close()
loaded = sorted(name for name in sys.modules if name.split(".")[0] == "vllm")
assert not loaded, loaded
"""


class Engines:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def init_weight_transfer_engine(self, init_info: dict[str, object]) -> None:
        self.told.append(init_info)


def test_file_sends_from_rank_0_alone() -> None:
    engines = Engines()
    for rank in range(2):
        sender = build_sender("file", engines, 1, rank, ENDPOINT, SHAPE, "float32")
        assert isinstance(sender, FileSender)
        sender.close()
    assert engines.told == [{}]


def test_a_rank_that_sends_files_does_without_vllm() -> None:
    result = subprocess.run([sys.executable, "-c", BUILD_ON_A_RANK], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_fp8_engines_get_quantised_weights() -> None:
    class Receiver(Engines):
        received: dict[str, torch.Tensor] = {}

        def start_weight_update(self) -> None: ...

        def finish_weight_update(self, version: int) -> None: ...

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.received |= load_file(update_info["path"])

    sender = build_sender("file", Receiver(), 1, 0, ENDPOINT, SHAPE, "bfloat16", "fp8")
    tensors = {name: torch.randn(size).bfloat16() for name, size in hf_shapes(SHAPE).items()}
    sender.send(tensors.items(), 1)
    expected = dict(quantised(tensors.items()))
    assert Receiver.received.keys() == expected.keys()
    for name, tensor in Receiver.received.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor.float(), expected[name].float()), name


def test_a_rank_that_connects_again_closes_what_it_shares_with_engines_that_are_gone() -> None:
    closed: list[bool] = []
    engines, worker = Engines(), cast(Any, Worker.__new__(Worker))
    worker._rank, worker._spec = 0, SimpleNamespace(shape=SHAPE)
    worker._sender = SimpleNamespace(close=lambda: closed.append(True))
    worker.connect("file", engines, 1, ENDPOINT, "float32")
    assert closed == [True] and engines.told == [{}] and isinstance(worker._sender, FileSender)
    with pytest.raises(AttributeError):  # as from an engine that has died
        worker.connect("file", object(), 1, ENDPOINT, "float32")
    with pytest.raises(RuntimeError, match="before connect"):
        worker.push(1, base=False)

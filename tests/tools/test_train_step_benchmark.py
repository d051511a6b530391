"""The benchmark of training steps: a real run on a CPU, and its figures from given times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_cgrpo.config.flops import training_flops
from megatron_cgrpo.config.model_shape import QWEN3, ModelShape

SCRIPT = Path(__file__).parents[2] / "tools" / "train_step_benchmark.py"
SIZES = {"layers": 2, "hidden": 32, "ffn": 48, "heads": 2, "kv-heads": 1, "vocab": 61}
RUN = {"length": 16, "tokens": 32, "micro-batch-tokens": 16, "rounds": 2, "peak-tflops": 0.5}


def test_precisions_make_steps_in_turns_and_those_that_are_not_there_are_named() -> None:
    options = [text for name, value in (SIZES | RUN).items() for text in (f"--{name}", str(value))]
    command = [sys.executable, str(SCRIPT), *options, "--json", "--precisions", "fp32", "bf16", "delayed"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    shape = ModelShape(QWEN3, 2, 2, 1, 16, 32, 48, 61, 16)
    assert found["flops_per_step"] == training_flops(shape, [16, 16])
    assert found["tokens_per_step"] == 32
    assert set(found["precisions"]) == {"fp32", "bf16"}
    assert found["left_out"]["delayed"].startswith("model.fp8.recipe=delayed")
    for each in found["precisions"].values():
        middle = sum(each["seconds"]) / 2
        assert len(each["seconds"]) == 2 and min(each["seconds"]) > 0
        assert each["tokens_per_s"] == pytest.approx(32 / middle)
        assert each["mfu"] == pytest.approx(found["flops_per_step"] / middle / 0.5e12)
    ratios = [b / f for b, f in zip(*(found["precisions"][name]["seconds"] for name in ("bf16", "fp32")), strict=True)]
    assert found["precisions"]["fp32"]["speed_over_bf16"] == pytest.approx([min(ratios), sum(ratios) / 2, max(ratios)])
    assert found["precisions"]["bf16"]["speed_over_bf16"] == [1.0, 1.0, 1.0]

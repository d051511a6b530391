"""``mcgrpo convert`` as people and scripts call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import SHAPES, assert_same_tensors, write_model
from typer.testing import CliRunner, Result

from checkpoints_convert.options import Options
from megatron_cgrpo.cli import app
from megatron_cgrpo.config.errors import ConfigError

SHAPE = SHAPES["mixtral"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_model(tmp_path / "hf", SHAPE)


def test_there_and_back_with_every_option(hf: Path, tmp_path: Path) -> None:
    first = run(
        *("hf-to-megatron", "--hf", hf, "--megatron", tmp_path / "a", "--json", "--threads", 2),
        *("--tp", 2, "--pp", 2, "--vpp", 1, "--ep", 2, "--first-stage-layers", 3, "--make-vocab-size-divisible-by", 16),
    )
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    assert summary["architecture"] == "MixtralForCausalLM"
    assert summary["layout"] == {
        "tp": 2,
        "pp": 2,
        "vpp": 1,
        "ep": 2,
        "first_stage_layers": 3,
        "last_stage_layers": None,
        "vocab_divisor": 16,
    }
    assert summary["bytes"] == 2 * summary["parameters"] and summary["stored_dtypes"] == {"bfloat16": 79}
    second = run("reshard", "--megatron", tmp_path / "a", "--out", tmp_path / "b", "--tp", 4, "--dtype", "fp32")
    assert second.exit_code == 0 and "MixtralForCausalLM" in second.stdout and "no tokenizer" in second.stdout
    third = run(
        *("megatron-to-hf", "--megatron", tmp_path / "b", "--hf", tmp_path / "back", "--dtype", "bf16"),
        *("--max-shard-gb", 0.05, "--config", hf),
    )
    assert third.exit_code == 0
    assert_same_tensors(hf, tmp_path / "back")


def test_refusals_are_sentences_with_exit_code_2(hf: Path, tmp_path: Path) -> None:
    refused = run("hf-to-megatron", "--hf", hf, "--megatron", tmp_path / "a", "--tp", 3)
    assert refused.exit_code == 2 and "tp=3: neither divides the model's 4 key/value heads" in refused.stderr
    unknown = run("hf-to-megatron", "--hf", hf, "--megatron", tmp_path / "a", "--dtype", "int4")
    assert unknown.exit_code == 2 and "--dtype int4: unknown: choose one of keep, bf16" in unknown.stderr
    existing = run("hf-to-megatron", "--hf", hf, "--megatron", hf)
    assert existing.exit_code == 2 and "exists already: remove it, or name another" in existing.stderr
    absent = run("megatron-to-hf", "--megatron", tmp_path / "nothing", "--hf", tmp_path / "b")
    assert absent.exit_code == 2 and "holds no Megatron dist_checkpointing checkpoint" in absent.stderr
    assert "Traceback" not in "".join(result.output for result in (refused, unknown, existing, absent))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_help_leads_through_a_conversion() -> None:
    shown = " ".join(run("--help").stdout.split())
    assert "mcgrpo convert hf-to-megatron --hf Qwen2.5-7B --megatron" in shown
    for command in ("hf-to-megatron", "megatron-to-hf", "reshard", "verify", "inspect"):
        assert run(command, "--help").exit_code == 0


def test_threads_default_to_the_usable_cores() -> None:
    assert 1 <= Options.parse("keep", None).threads <= 4
    assert Options.parse("fp16", 7) == Options(Options.parse("float16", 1).dtype, 7)
    with pytest.raises(ConfigError, match="--dtype"):
        Options.parse("fp8", None)

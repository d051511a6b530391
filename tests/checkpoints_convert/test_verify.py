"""A pair that is the same model passes, whatever its layout and data types; exit codes and JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from pairs import KEEP, PAIRS, TIED, WEIGHTS, change_config, change_tensors, check_of, failed, save_hf, text
from typer.testing import CliRunner

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.options import Options
from checkpoints_convert.reshard import reshard
from checkpoints_convert.verify import verify
from checkpoints_convert.verify_report import Report
from megatron_cgrpo.cli import app
from megatron_cgrpo.weights.layout import CheckpointLayout


def statuses(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


@pytest.mark.parametrize("name", PAIRS)
def test_a_good_pair_passes(originals: Path, name: str) -> None:
    report = verify(originals / name, originals / f"{name}_megatron", threads=2)
    assert report.passed
    assert set(statuses(report).items()) - {("Hugging Face since conversion", "skipped")} == {
        (check, "passed")
        for check in (
            "config.json",
            "tokenizer",
            "Hugging Face tensors",
            "Megatron tensors",
            "Megatron chunks",
            "Megatron files",
            "data types",
            "contents",
            "Megatron since conversion",
            "vocabulary padding",
        )
    }
    rows = {"tied": "1 rows of embedding.word_embeddings.weight", "padded": "3 rows of output_layer.weight"}
    assert rows.get(name, "1 rows of output_layer") in check_of(report, "vocabulary padding").detail


@pytest.mark.parametrize(("stored", "written"), [(torch.float32, "bf16"), (torch.bfloat16, "fp32")])
def test_a_side_may_be_a_rounding_of_the_other(tmp_path: Path, stored: torch.dtype, written: str) -> None:
    hf = save_hf(tmp_path / "hf", TIED, stored)
    hf_to_megatron(hf, tmp_path / "megatron", CheckpointLayout(tp=2), Options.parse(written, 1))
    report = verify(hf, tmp_path / "megatron")
    assert report.passed
    assert "a cast" in check_of(report, "data types").detail
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", Options.parse("fp16", 1))
    back = verify(tmp_path / "back", tmp_path / "megatron")
    assert statuses(back)["Hugging Face since conversion"] == "passed"
    assert back.passed


def test_a_resharded_checkpoint_is_the_same_model(originals: Path, tmp_path: Path) -> None:
    reshard(originals / "moe_megatron", tmp_path / "other", CheckpointLayout(pp=2, ep=4), KEEP)
    assert verify(originals / "moe", tmp_path / "other").passed


def test_a_tied_head_that_is_no_copy_is_refused(originals: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    shutil.copytree(originals / "tied", hf)
    change_tensors(hf, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert verify(hf, originals / "tied_megatron").passed
    change_tensors(hf, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    report = verify(hf, originals / "tied_megatron")
    assert failed(report) == {"Hugging Face tensors"}
    assert "lm_head.weight differs" in text(check_of(report, "Hugging Face tensors"))


def test_without_its_own_config_the_checkpoint_is_compared_all_the_same(pair: tuple[Path, Path]) -> None:
    (pair[1] / "config.json").unlink()
    report = verify(*pair)
    assert report.passed
    assert statuses(report)["config.json"] == statuses(report)["tokenizer"] == "skipped"
    change_config(pair[0], rms_norm_eps=1e-5)
    assert statuses(verify(*pair, config=pair[0]))["config.json"] == "passed"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", "verify", *map(str, arguments)])
    return result.exit_code, result.stdout


def test_exit_codes_and_json(pair: tuple[Path, Path]) -> None:
    hf, megatron = pair
    code, output = run("--hf", hf, "--megatron", megatron, "--json")
    assert code == 0
    content = json.loads(output)
    assert content["passed"] is True
    assert {"name", "status", "detail", "offenders", "measures"} == content["checks"][0].keys()
    (megatron / "__1_1.distcp").unlink()
    code, output = run("--hf", hf, "--megatron", megatron)
    assert code == 1
    assert "__1_1.distcp is missing" in output
    code, output = run("--hf", hf, "--megatron", megatron, "--json")
    assert code == 1
    assert json.loads(output)["passed"] is False


def test_what_is_no_checkpoint_exits_with_2(pair: tuple[Path, Path], tmp_path: Path) -> None:
    hf, megatron = pair
    assert run("--hf", hf, "--megatron", tmp_path)[0] == 2
    assert run("--hf", tmp_path, "--megatron", megatron)[0] == 2
    assert run("--hf", hf, "--megatron", megatron, "--prompt", "w1")[0] == 2
    (hf / WEIGHTS).unlink()
    assert run("--hf", hf, "--megatron", megatron)[0] == 2

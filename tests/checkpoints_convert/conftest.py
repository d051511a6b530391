"""Good pairs, made once, and one of them to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pairs import KEEP, PAIRS, save_hf

from checkpoints_convert.hf_to_megatron import hf_to_megatron


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds NAME and NAME_megatron for each of ``PAIRS``; to be left as they are."""
    root = tmp_path_factory.mktemp("pairs")
    for name, (shape, layout) in PAIRS.items():
        hf_to_megatron(save_hf(root / name, shape), root / f"{name}_megatron", layout, KEEP)
    return root


@pytest.fixture
def pair(originals: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Of the untied model, with three rows of padding."""
    hf, megatron = tmp_path / "hf", tmp_path / "megatron"
    shutil.copytree(originals / "padded", hf)
    shutil.copytree(originals / "padded_megatron", megatron)
    return hf, megatron

"""A file is the old content or the new, never a part."""

import json
import os
import stat
from pathlib import Path

import pytest

from megatron_cgrpo.observe import atomic


def test_text_and_json_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "below" / "file.json"
    atomic.write_text(path, "old, and longer than the new")
    atomic.write_json(path, {"b": 1.5, "a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1.5\n}\n'
    assert json.loads(path.read_text()) == {"a": "ü", "b": 1.5}
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_before_the_rename_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic.write_text(path, "old")

    def crash(source: str, target: Path) -> None:
        assert Path(source).read_text() == "new"
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_permissions_that_the_mask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640

"""Folders of living, ended and killed processes, all of them real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_cgrpo.weights.transfer.scratch import PREFIX, scratch_folder

OWNER = """
import sys
from pathlib import Path
from megatron_cgrpo.weights.transfer.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "bucket").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_empty_named_after_its_owner_and_goes_with_the_context(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), scratch_folder(tmp_path) as folder:
        assert folder.parent == tmp_path and folder.name.startswith(f"{PREFIX}{os.getpid()}-")
        assert list(folder.iterdir()) == []
        (folder / "bucket").write_bytes(b"w")
        raise RuntimeError("broken")
    assert list(tmp_path.iterdir()) == []


def test_the_next_removes_what_a_killed_process_has_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    (others := tmp_path / f"{PREFIX}no-folder").write_bytes(b"of somebody else")
    owners = [
        subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    killed, living = [Path(str(owner.stdout and owner.stdout.readline().strip())) for owner in owners]
    owners[0].send_signal(signal.SIGKILL)
    owners[0].communicate()
    assert (killed / "bucket").is_file()
    with scratch_folder(tmp_path) as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, living, others])
        assert (living / "bucket").is_file()
    owners[1].communicate("")
    assert owners[1].returncode == 0
    assert list(tmp_path.iterdir()) == [others]


def test_many_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    def use(number: int) -> int:
        with scratch_folder(tmp_path) as folder:
            (folder / "bucket").write_text(str(number))
            return int((folder / "bucket").read_text())

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(400))) == list(range(400))
    assert list(tmp_path.iterdir()) == []

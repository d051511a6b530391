"""Conversions that are killed, or run out of disk, leave nothing that looks finished and can be taken up again."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import SHAPES, contents, write_model

from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.options import Options
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.weights.layout import CheckpointLayout

SHAPE = replace(SHAPES["qwen3"], layers=24, hidden=64, ffn=96)
LAYOUT = CheckpointLayout(tp=2)
# A process that converts; the directories are its arguments. What it imports is imported before it says "ready".
SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
from checkpoints_convert.hf_to_megatron import hf_to_megatron
from checkpoints_convert.journal import Journal
from checkpoints_convert.megatron_to_hf import megatron_to_hf
from checkpoints_convert.options import Options
from megatron_cgrpo.config.errors import RunError
from megatron_cgrpo.weights.layout import CheckpointLayout

direction, source, target, limit, dies_after = sys.argv[1], *map(Path, sys.argv[2:4]), *map(int, sys.argv[4:])
append = Journal.append

def append_and_die(journal, record):
    append(journal, record)
    if len(journal.read()) >= dies_after:
        os.kill(os.getpid(), signal.SIGKILL)

if dies_after:
    Journal.append = append_and_die
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print("ready", flush=True)
try:
    if direction == "hf-to-megatron":
        hf_to_megatron(source, target, CheckpointLayout(tp=2), Options(threads=2))
    else:
        megatron_to_hf(source, target, Options(threads=2), max_shard_bytes=400_000)
except RunError as error:
    print(error, flush=True)
    sys.exit(1)
"""


def convert(direction: str, source: Path, target: Path) -> None:
    if direction == "hf-to-megatron":
        hf_to_megatron(source, target, LAYOUT, Options(threads=2))
    else:
        megatron_to_hf(source, target, Options(threads=2), max_shard_bytes=400_000)


def start(direction: str, source: Path, target: Path, limit: int = 0, dies_after: int = 0) -> subprocess.Popen[str]:
    """``limit`` is of a file's bytes, ``dies_after`` so many units; 0 is never."""
    command = [sys.executable, "-c", SCRIPT, direction, str(source), str(target), str(limit), str(dies_after)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source and the uninterrupted result of each direction."""
    folder = tmp_path_factory.mktemp("checkpoints")
    hf = write_model(folder / "hf", SHAPE)
    convert("hf-to-megatron", hf, folder / "megatron")
    convert("megatron-to-hf", folder / "megatron", folder / "back")
    return {"hf-to-megatron": hf, "megatron-to-hf": folder / "megatron", "back": folder / "back"}


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_a_random_moment_then_run_again(
    direction: str, seed: int, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = checkpoints[direction]
    expected = contents(checkpoints["megatron-to-hf" if direction == "hf-to-megatron" else "back"])
    target, partial = tmp_path / "target", tmp_path / ".target.partial" / "out"
    process = start(direction, source, target)
    # The moment is drawn in units done, not in seconds, which mean nothing on a busy machine.
    done = random.Random(f"{direction}/{seed}").randrange(SHAPE.layers)
    journal = partial.parent / "journal.jsonl"
    while process.poll() is None and (not journal.is_file() or journal.read_text().count("\n") < done):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not target.exists():
        assert not (partial / "conversion.json").exists()
        torn = next(iter(partial.glob("__*.distcp")), None) or next(iter(partial.glob("*.safetensors")), None)
        if torn is not None:  # as a power cut may leave it
            torn.write_bytes(torn.read_bytes()[:-100] + bytes(100))
        convert(direction, source, target)
    assert contents(target) == expected
    assert not partial.parent.exists()


def test_what_was_done_is_not_done_again(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Files of finished units keep their identity on disk."""
    target, partial = tmp_path / "target", tmp_path / ".target.partial" / "out"
    process = start("hf-to-megatron", checkpoints["hf-to-megatron"], target, dies_after=4)
    assert process.wait() == -signal.SIGKILL
    journal = partial.parent / "journal.jsonl"
    finished = [line.partition(",")[0].removeprefix('{"number": ') for line in journal.read_text().splitlines()]
    inodes = {name: (partial / name).stat().st_ino for n in finished for name in (f"__0_{n}.distcp", f"__1_{n}.distcp")}
    inodes = {name: inode for name, inode in inodes.items() if (partial / name).exists()}
    times = {name: (partial / name).stat().st_mtime_ns for name in inodes}
    assert len(inodes) >= 3
    convert("hf-to-megatron", checkpoints["hf-to-megatron"], target)
    assert {name: (target / name).stat().st_ino for name in inodes} == inodes
    assert {name: (target / name).stat().st_mtime_ns for name in inodes} == times


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_a_full_disk_leaves_nothing_that_looks_finished(
    direction: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """A file-size limit fails writes as a quota does, after the check of the free space has passed."""
    target = tmp_path / "target"
    process = start(direction, checkpoints[direction], target, limit=30_000)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "the disk is full" in output and "run the same command again" in output
    assert not target.exists()
    convert(direction, checkpoints[direction], target)
    assert contents(target) == contents(checkpoints["megatron-to-hf" if direction == "hf-to-megatron" else "back"])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_small_disk_is_refused_before_anything_is_written(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(ConfigError, match=r"0\.0 GB free of the 0\.1 GB"):
            convert("hf-to-megatron", checkpoints["hf-to-megatron"], disk / "target")
        assert not (disk / "target").exists()
        assert sum(path.stat().st_size for path in disk.rglob("*.distcp")) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_source_that_changed_meanwhile_is_converted_anew(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Not a byte of the damaged download that the first attempt read may be in the result."""
    source, target = tmp_path / "hf", tmp_path / "target"
    shutil.copytree(checkpoints["hf-to-megatron"], source)
    weights = source / "model.safetensors"
    good = weights.read_bytes()
    middle = len(good) // 2
    weights.write_bytes(good[:middle] + bytes(50) + good[middle + 50 :])
    process = start("hf-to-megatron", source, target, dies_after=20)
    assert process.wait() == -signal.SIGKILL
    weights.write_bytes(good)
    convert("hf-to-megatron", source, target)
    assert contents(target) == contents(checkpoints["megatron-to-hf"])


def test_another_job_does_not_take_up_what_was_left(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    target, partial = tmp_path / "target", tmp_path / ".target.partial" / "out"
    partial.mkdir(parents=True)
    (partial / "__9_9.distcp").write_bytes(b"of another layout")
    (partial / "stray").mkdir()
    convert("hf-to-megatron", checkpoints["hf-to-megatron"], target)
    assert contents(target) == contents(checkpoints["megatron-to-hf"])


def test_two_processes_at_one_target_and_existing_targets_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    hf = checkpoints["hf-to-megatron"]
    (tmp_path / ".target.partial").mkdir()
    with (tmp_path / ".target.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another conversion is writing it"):
            convert("hf-to-megatron", hf, tmp_path / "target")
    (tmp_path / "target").mkdir()
    convert("hf-to-megatron", hf, tmp_path / "target")
    with pytest.raises(ConfigError, match="exists already"):
        convert("hf-to-megatron", hf, tmp_path / "target")

"""A cluster that does not start leaves nothing behind but its directory. That it starts is in `tests/launch/slurm`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools/slurm_on_one_machine.py"


def test_a_daemon_that_cannot_run_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    programs, temporary = tmp_path / "bin", tmp_path / "tmp"
    programs.mkdir()
    temporary.mkdir()
    for name in ("munged", "slurmctld", "slurmd"):
        (programs / name).write_text("#!/no/such/interpreter\n")
        (programs / name).chmod(0o755)
    started = subprocess.run(
        [sys.executable, str(TOOL), "start", str(tmp_path / "cluster")],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(temporary)},
    )
    assert started.returncode == 1 and f"{programs}/munged" in started.stderr and "remove" in started.stderr
    assert "Traceback" not in started.stderr and list(temporary.iterdir()) == []

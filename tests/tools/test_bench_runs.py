"""The benchmark of rollouts on the real stack: what its figures say that does not depend on the machine's speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_streaming_has_no_barrier(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "tools/bench_rollouts.py"), "--quick", "--json", "--only", "streaming"]
    command += ["--results", str(results), "--images", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    section = json.loads(done.stdout)["sections"]["streaming"]
    assert json.loads(results.read_text())["sections"]["streaming"] == section
    figures = {name: spread["median"] for name, spread in section["figures"].items()}
    before = "critiques and refinements before the last response ends"
    assert figures[f"{before}, barrier"] == 0 < figures[f"{before}, stream"]
    assert section["goals"][f"{before}, barrier"] == "at most 0: reached"
    assert 0 < figures["requests in flight, mean / most, stream"] <= 1
    assert {request[1] for request in section["about"]["timeline"]["stream"]} == {"generate", "critique", "refine"}
    assert (tmp_path / "rollout_streaming.png").is_file() and (tmp_path / "rollout_tails.png").is_file()
    assert not (tmp_path / "rollout_growth.png").exists()

"""The helpers beside these tests import each other, in the test process and in its ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import megatron_cgrpo.actor  # noqa: F401  (before any test imports megatron.core)

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])

"""The helpers beside these tests import each other."""

from __future__ import annotations

import sys
from pathlib import Path

import megatron_cgrpo.actor  # noqa: F401  (before any test imports megatron.core)

sys.path.insert(0, str(Path(__file__).parent))

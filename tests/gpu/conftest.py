"""The models and rows are those of the actor's tests, and the engines' models those of the rollout's."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("actor", "rollout")]

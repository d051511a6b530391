"""The switches of the objective, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RefinementRatio = Literal["shaped", "importance", "on_policy"]
KLEstimator = Literal["k1", "k2", "k3"]
CorrectionMode = Literal["none", "token_truncate", "token_mask", "sequence_mask"]


@dataclass(frozen=True)
class LossSpec:
    """What ``policy_loss`` computes; the reduction is not here, it is inside the per-token weights.

    ``clip_low`` / ``clip_high`` are the distances of the clip range from 1; None leaves that side unclipped.
    """

    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    refinement_ratio: RefinementRatio = "shaped"
    refinement_gamma: float = 0.1
    refinement_clip: bool = True
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    entropy_coef: float = 0.0
    correction: CorrectionMode = "token_truncate"
    correction_cap: float = 2.0

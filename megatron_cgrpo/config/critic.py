"""Who criticises a failed response, when, and what happens when the critic fails."""

from typing import Literal

from pydantic import Field

from megatron_cgrpo.config.section import Section


class CriticConfig(Section):
    """``kind: none`` is plain GRPO. ``cot`` critiques come from ``source``; the other kinds are templates."""

    kind: Literal["none", "indicative", "indicative_gt", "cot"] = "cot"
    source: Literal["program"] = "program"
    trigger: Literal["all_failed", "always", "mean_reward_below"] = "all_failed"
    trigger_below: float = Field(0.5, gt=0, le=1, description="threshold of `mean_reward_below`")
    retries: int = Field(1, ge=0)
    on_failure: Literal["indicative_gt", "drop"] = "indicative_gt"

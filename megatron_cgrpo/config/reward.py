"""What counts as a right response in training."""

from typing import Literal

from megatron_cgrpo.config.section import Section


class RewardConfig(Section):
    """``verifier`` rewards by the task's verifier; ``critique`` by the conclusion of a critique of every response.

    A response whose critique failed, and a step without a critic, keep the verifier's reward.
    """

    source: Literal["verifier", "critique"] = "verifier"

"""What the study trains: one arm a method, on the sandbox recipe, each used by as many tables as need it."""

from __future__ import annotations

from dataclasses import dataclass

# The sandbox's own gamma (examples/sandbox.yaml says why): a preset on the command line would reset it to the method's.
_GAMMA = "algorithm.refinement.gamma=0.01"


@dataclass(frozen=True)
class Arm:
    """``overrides`` are KEY=VALUE; ``{out}``, ``{seed}`` and ``{later}``, where a second stage begins, are filled in.

    ``needs`` are jobs of the same seed that have to be finished before. ``times_steps``: for a run that ends by itself.
    """

    label: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()
    times_steps: int = 1


def _preset(name: str, *overrides: str) -> tuple[str, ...]:
    return f"algorithm.preset={name}", *overrides


def _beside(label: str, role: str, size: str, *overrides: str) -> Arm:
    """Critique-GRPO with a model of ``BASE_MODELS`` beside the policy."""
    path = f"critic.model.path={{out}}/models/{size}/seed_{{seed}}"
    return Arm(label, _preset("critique_grpo", _GAMMA, f"{role}=model", path, *overrides), (f"models/{size}",))


ARMS = {
    "sft": Arm("SFT", _preset("sft")),
    "raft": Arm("RAFT", _preset("raft")),
    "refinement_ft": Arm("Refinement-FT", _preset("refinement_ft")),
    "critique_ft": Arm("Critique-FT", _preset("critique_ft")),
    "citl_ft": Arm("CITL-FT", _preset("citl_ft")),
    "r1_grpo": Arm("R1-GRPO", _preset("r1_grpo")),
    "r1_drgrpo": Arm("R1-DrGRPO", _preset("r1_drgrpo")),
    "indicative": Arm("C-GRPO, indicative, γ 0.01", _preset("critique_grpo_indicative", _GAMMA)),
    "indicative_gt": Arm("C-GRPO, indicative + GT, γ 0.01", _preset("critique_grpo_indicative_gt", _GAMMA)),
    "critique_grpo": Arm("C-GRPO, CoT, γ 0.01", _preset("critique_grpo", _GAMMA)),
    "critique_grpo_self": Arm("C-GRPO, self-critique, γ 0.01", _preset("critique_grpo_self", _GAMMA)),
    "language_feedback": Arm("GRPO + language feedback", _preset("ablation_language_feedback")),
    # Also the importance ratio among the three ratios of refinements: the two presets are one method.
    "selection": Arm("GRPO + feedback + selection", _preset("ablation_selection")),
    "gamma_0.1": Arm("C-GRPO, CoT, γ 0.1", _preset("critique_grpo")),
    "on_policy": Arm("C-GRPO, CoT, on-policy ratio", _preset("critique_grpo_on_policy")),
    "two_stage": Arm(
        "R1-GRPO, then Ref-SFT",
        _preset(
            "r1_grpo",
            "critic.schedule=[{{from_step: {later}, kind: cot}}]",
            "stages=[{{from_step: {later}, algorithm: {{preset: ref_sft}}}}]",
        ),
    ),
    "critic_small": _beside("critique by a smaller model", "critic.source", "small"),
    "critic_large": _beside("critique by a larger model", "critic.source", "large"),
    "critic_small_told": _beside(
        "critique by a smaller model that is told the answer", "critic.source", "small", "critic.sees=answer"
    ),
    "critic_large_told": _beside(
        "critique by a larger model that is told the answer", "critic.source", "large", "critic.sees=answer"
    ),
    "refiner_small": _beside("refinement by a smaller model", "critic.refiner", "small"),
    "refiner_large": _beside("refinement by a larger model", "critic.refiner", "large"),
    "noise_0.10": Arm("10 % of critiques wrong", _preset("critique_grpo", _GAMMA, "critic.noise=0.1")),
    "noise_0.25": Arm("25 % of critiques wrong", _preset("critique_grpo", _GAMMA, "critic.noise=0.25")),
    "noise_0.50": Arm("50 % of critiques wrong", _preset("critique_grpo", _GAMMA, "critic.noise=0.5")),
    "equal_compute": Arm(
        "GRPO at the compute of C-GRPO, CoT, γ 0.01",
        _preset("grpo_equal_compute", "train.compute_of={out}/critique_grpo/seed_{seed}"),
        ("critique_grpo",),
        times_steps=5,
    ),
}

# Critics and refiners beside the policy, whose own base model has width 128 and two layers.
BASE_MODELS = {
    "small": (
        "warm_start.hidden_size=64",
        "warm_start.heads=2",
        "warm_start.kv_heads=2",
        "warm_start.ffn_size=256",
        "warm_start.steps=3200",  # in half of them it has not always learned its sums
    ),
    "large": ("warm_start.hidden_size=192", "warm_start.heads=6", "warm_start.kv_heads=6", "warm_start.ffn_size=768"),
}

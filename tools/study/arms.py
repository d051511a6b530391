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


@dataclass(frozen=True)
class BaseModel:
    """A base model of another size, as a critic or refiner beside the policy."""

    settings: tuple[str, ...]


def _preset(name: str, *overrides: str) -> tuple[str, ...]:
    return f"algorithm.preset={name}", *overrides


def _model(size: str) -> str:
    return f"critic.model.path={{out}}/models/{size}/seed_{{seed}}"


ARMS = {
    "sft": Arm("SFT", _preset("sft")),
    "raft": Arm("RAFT", _preset("raft")),
    "refinement_ft": Arm("Refinement-FT", _preset("refinement_ft")),
    "critique_ft": Arm("Critique-FT", _preset("critique_ft")),
    "citl_ft": Arm("CITL-FT", _preset("citl_ft")),
    "r1_grpo": Arm("R1-GRPO", _preset("r1_grpo")),
    "r1_drgrpo": Arm("R1-DrGRPO", _preset("r1_drgrpo")),
    "indicative": Arm("C-GRPO, indicative", _preset("critique_grpo_indicative", _GAMMA)),
    "indicative_gt": Arm("C-GRPO, indicative + GT", _preset("critique_grpo_indicative_gt", _GAMMA)),
    "critique_grpo": Arm("C-GRPO, CoT", _preset("critique_grpo", _GAMMA)),
    "critique_grpo_self": Arm("C-GRPO, self-critique", _preset("critique_grpo_self", _GAMMA)),
    "language_feedback": Arm("GRPO + language feedback", _preset("ablation_language_feedback")),
    # Also the importance ratio among the three ratios of refinements: the two presets are one method.
    "selection": Arm("GRPO + feedback + selection", _preset("ablation_selection")),
    "gamma_0.1": Arm("C-GRPO, CoT, gamma 0.1", _preset("critique_grpo")),
    "on_policy": Arm("C-GRPO, CoT, on-policy ratio", _preset("critique_grpo_on_policy")),
    "two_stage": Arm(
        "R1-GRPO, then Ref-SFT",
        _preset(
            "r1_grpo",
            "critic.schedule=[{{from_step: {later}, kind: cot}}]",
            "stages=[{{from_step: {later}, algorithm: {{preset: ref_sft}}}}]",
        ),
    ),
    "critic_small": Arm(
        "critique by a smaller model",
        _preset("critique_grpo", _GAMMA, "critic.source=model", _model("small")),
        ("models/small",),
    ),
    "critic_large": Arm(
        "critique by a larger model",
        _preset("critique_grpo", _GAMMA, "critic.source=model", _model("large")),
        ("models/large",),
    ),
    "refiner_small": Arm(
        "refinement by a smaller model",
        _preset("critique_grpo", _GAMMA, "critic.refiner=model", _model("small")),
        ("models/small",),
    ),
    "refiner_large": Arm(
        "refinement by a larger model",
        _preset("critique_grpo", _GAMMA, "critic.refiner=model", _model("large")),
        ("models/large",),
    ),
    "noise_0.10": Arm("10 % of critiques wrong", _preset("critique_grpo", _GAMMA, "critic.noise=0.1")),
    "noise_0.25": Arm("25 % of critiques wrong", _preset("critique_grpo", _GAMMA, "critic.noise=0.25")),
    "noise_0.50": Arm("50 % of critiques wrong", _preset("critique_grpo", _GAMMA, "critic.noise=0.5")),
    "equal_compute": Arm(
        "GRPO at the compute of C-GRPO, CoT",
        _preset("grpo_equal_compute", "train.compute_of={out}/critique_grpo/seed_{seed}"),
        ("critique_grpo",),
        times_steps=5,
    ),
}

# The policy's base model has width 128 and two layers.
BASE_MODELS = {
    "small": BaseModel(
        ("warm_start.hidden_size=64", "warm_start.heads=2", "warm_start.kv_heads=2", "warm_start.ffn_size=256")
    ),
    "large": BaseModel(
        ("warm_start.hidden_size=192", "warm_start.heads=6", "warm_start.kv_heads=6", "warm_start.ffn_size=768")
    ),
}

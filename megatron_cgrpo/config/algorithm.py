"""The objective: group, advantages, ratios, regularisers and reduction (docs/architecture.md has the formulas)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from megatron_cgrpo.config.section import Section

Reduction = Literal["constant", "token_mean", "sequence_mean"]
RefinementRatio = Literal["shaped", "importance", "on_policy"]
KLEstimator = Literal["k1", "k2", "k3"]
CorrectionMode = Literal["none", "token_truncate", "token_mask", "sequence_mask"]
TrainSource = Literal["responses", "refinements", "critiques", "solutions"]


def preset_file(name: str) -> str:
    """The name of a preset's file, for a name that may be written with dashes."""
    return name.replace("-", "_")


class AdvantageConfig(Section):
    """``baseline: none``: the advantage is the reward itself, and samples that earn nothing do not train.

    ``normalize: std`` divides the centred rewards by the group's standard deviation (GRPO as first published).
    """

    baseline: Literal["group_mean", "none"] = "group_mean"
    normalize: Literal["none", "std"] = "none"


class ClipConfig(Section):
    """PPO clip range ``[1 - low, 1 + high]``; null switches that side off."""

    low: float | None = Field(0.2, gt=0, lt=1)
    high: float | None = Field(0.2, gt=0)


class RefinementConfig(Section):
    """How refined tokens are weighted.

    ``shaped``: p / (p + gamma); ``importance``: the true ratio to the policy that saw the critique; ``on_policy``:
    the ratio conditioned on the question alone on both sides. ``clip`` applies ``algorithm.clip`` to it.
    """

    ratio: RefinementRatio = "shaped"
    gamma: float = Field(0.1, gt=0)
    clip: bool = True


class KLConfig(Section):
    """Penalty against the frozen initial policy; ``coef: 0`` loads no reference model."""

    coef: float = Field(0.0, ge=0)
    estimator: KLEstimator = "k3"


class EntropyConfig(Section):
    coef: float = Field(0.0, ge=0)


class CorrectionConfig(Section):
    """Importance correction of initial tokens for the engine's own numerics; never applied to refinements."""

    mode: CorrectionMode = "token_truncate"
    cap: float = Field(2.0, gt=1)


class AlgorithmConfig(Section):
    """``preset`` names a file of ``config/presets``; keys given beside it in the same file override it.

    ``trains_on`` says what enters the batch: of a step's samples the initial responses and the selected refinements;
    the critiques whose verdict is the verifier's; or, without any sampling, the reference solutions. ``sample_from:
    base`` samples everything that trains from the frozen initial policy: the data are offline.
    """

    preset: Annotated[str, AfterValidator(preset_file)] = "critique_grpo"
    group_size: int = Field(7, ge=2, description="initial responses a prompt (n)")
    refinements: int = Field(1, ge=0, description="refined responses a triggered group trains on (k)")
    selection: Literal["correct_first", "first_correct", "random", "none"] = "correct_first"
    trains_on: tuple[TrainSource, ...] = Field(("responses", "refinements"), min_length=1)
    sample_from: Literal["policy", "base"] = "policy"
    advantage: AdvantageConfig = AdvantageConfig()
    clip: ClipConfig = ClipConfig()
    refinement: RefinementConfig = RefinementConfig()
    kl: KLConfig = KLConfig()
    entropy: EntropyConfig = EntropyConfig()
    reduction: Reduction = "constant"
    correction: CorrectionConfig = CorrectionConfig()

    @property
    def supervised(self) -> bool:
        """The gradient is that of the negative log-likelihood: advantages are rewards, and every ratio is 1."""
        return (
            self.advantage.baseline == "none"
            and self.refinement.ratio == "on_policy"
            and self.correction.mode == "none"
        )

    @property
    def samples_nothing(self) -> bool:
        """Reference solutions are all that trains."""
        return self.trains_on == ("solutions",)

    @property
    def needs_reference(self) -> bool:
        """A frozen copy of the initial policy is kept: for the KL penalty, or to sample from."""
        return self.kl.coef > 0 or self.sample_from == "base"

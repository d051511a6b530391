"""Generation: the vLLM engines, how they sample, and how the stages share them."""

from typing import Literal

from pydantic import Field

from megatron_cgrpo.config.section import Section

PRIORITIES = 10
DEFAULT_DRAWS = 4
"""Without ``dynamic_sampling.max_prompts`` a step draws at most so many times the prompts it wants."""


class StageConfig(Section):
    """``max_sequences`` and ``max_tokens`` bound what the stage has in flight over all engines (null: no bound).

    A request's tokens are its prompt's and the most it may generate. The others wait, older steps first.
    """

    priority: int = Field(ge=0, lt=PRIORITIES, description="lower first, among the requests of one step")
    max_sequences: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)


class GenerateStageConfig(StageConfig):
    priority: int = Field(2, ge=0, lt=PRIORITIES, description="lower first, among the requests of one step")


class CritiqueStageConfig(StageConfig):
    priority: int = Field(1, ge=0, lt=PRIORITIES, description="lower first, among the requests of one step")


class RefineStageConfig(StageConfig):
    priority: int = Field(0, ge=0, lt=PRIORITIES, description="lower first, among the requests of one step")


class StagesConfig(Section):
    """What ends a group goes before what begins one."""

    generate: GenerateStageConfig = GenerateStageConfig()
    critique: CritiqueStageConfig = CritiqueStageConfig()
    refine: RefineStageConfig = RefineStageConfig()


class DynamicSamplingConfig(Section):
    """Replaces groups whose rewards are all equal, after critique and refinement, by those of the next prompts.

    ``over_provision`` is the share of further prompts that are begun before anything has to be replaced. What trains
    are the first groups in the order of the prompts that have something to teach, however fast others are. A step
    draws at most ``max_prompts``, and no problem twice; then it trains on fewer groups.
    """

    enabled: bool = False
    over_provision: float = Field(0.25, ge=0)
    max_prompts: int | None = Field(
        None, ge=1, description=f"null: {DEFAULT_DRAWS} * train.prompts_per_step, at most all problems once"
    )

    def draws(self, wanted: int) -> int:
        """The most prompts that a step draws for ``wanted`` groups, where there are so many."""
        return DEFAULT_DRAWS * wanted if self.max_prompts is None else self.max_prompts


class RolloutConfig(Section):
    """Token limits hold for each stage; the engine's context is ``context_tokens``.

    ``schedule: barrier`` makes every group wait at the end of each stage for all others, for comparison only.
    ``quantization: fp8`` serves weights in FP8 with a scale per block of 128x128, which every push brings along.
    ``kv_cache_dtype: fp8`` halves the cache. Critics' engines have the precision that their model is stored in.
    ``placement: colocated`` lets engines and trainer ranks take turns on the same devices.

    Training samples must come from the unmodified distribution: ``top_p`` and ``top_k`` exist to be refused, with
    the reason, when a recipe ported from elsewhere sets them.
    """

    engines: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    placement: Literal["separate", "colocated"] = "separate"
    schedule: Literal["stream", "barrier"] = "stream"
    stages: StagesConfig = StagesConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    quantization: Literal["none", "fp8"] = "none"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = -1
    max_prompt_tokens: int = Field(1024, ge=1)
    max_response_tokens: int = Field(1024, ge=1)
    max_critique_tokens: int = Field(512, ge=1)
    max_refinement_tokens: int | None = Field(None, ge=1, description="null: max_response_tokens")
    max_concurrent_sequences: int = Field(256, ge=1)
    kv_cache_mib: int | None = Field(None, ge=1, description="per engine; null: gpu_memory_utilization")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    prefix_caching: bool = True
    threads: int = Field(1, ge=1, description="OpenMP threads of a CPU engine")
    start_timeout_s: float = Field(600.0, gt=0)
    progress_timeout_s: float = Field(300.0, gt=0, description="an engine that decodes nothing for so long is stuck")

    @property
    def fp8(self) -> bool:
        """Engines round the policy that they sample from: its weights, or the keys and values of its attention."""
        return self.quantization == "fp8" or self.kv_cache_dtype == "fp8"

    @property
    def colocated(self) -> bool:
        return self.placement == "colocated"

    @property
    def refinement_tokens(self) -> int:
        """The longest refined response."""
        return self.max_response_tokens if self.max_refinement_tokens is None else self.max_refinement_tokens

    @property
    def context_tokens(self) -> int:
        """The longest sequence a refinement can make: prompt, failed response, critique and the refined response."""
        return self.max_prompt_tokens + self.max_response_tokens + self.max_critique_tokens + self.refinement_tokens

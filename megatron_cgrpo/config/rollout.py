"""Generation: the vLLM engines and how they sample."""

from pydantic import Field

from megatron_cgrpo.config.section import Section


class RolloutConfig(Section):
    """Token limits hold for each stage; the engine's context is ``context_tokens``.

    Training samples must come from the unmodified distribution: ``top_p`` and ``top_k`` exist to be refused, with
    the reason, when a recipe ported from elsewhere sets them.
    """

    engines: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = -1
    max_prompt_tokens: int = Field(1024, ge=1)
    max_response_tokens: int = Field(1024, ge=1)
    max_critique_tokens: int = Field(512, ge=1)
    max_concurrent_sequences: int = Field(256, ge=1)
    kv_cache_mib: int | None = Field(None, ge=1, description="per engine; null: gpu_memory_utilization")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    prefix_caching: bool = True
    threads: int = Field(1, ge=1, description="OpenMP threads of a CPU engine")
    start_timeout_s: float = Field(600.0, gt=0)
    progress_timeout_s: float = Field(300.0, gt=0, description="an engine that returns nothing for so long is stuck")

    @property
    def context_tokens(self) -> int:
        """The longest sequence a refinement can make: prompt, failed response, critique and the refined response."""
        return self.max_prompt_tokens + 2 * self.max_response_tokens + self.max_critique_tokens

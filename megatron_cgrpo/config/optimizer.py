"""AdamW and its learning-rate schedule."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_cgrpo.config.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """``decay_steps`` null means the whole run. ``distributed`` shards the states over data-parallel ranks.

    ``implementation: auto`` takes Transformer Engine's fused AdamW when it can be imported, else NVIDIA apex's, else
    torch's. ``precision_aware`` keeps the main parameters, gradients and moments in the types below (distributed
    optimiser and Transformer Engine only). ``offload`` is the share of the states that live, and are updated, in host
    memory.
    """

    lr: float = Field(1e-6, gt=0)
    min_lr: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int | None = Field(None, ge=1)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    grad_clip: float = Field(1.0, ge=0, description="global norm; 0 switches clipping off")
    distributed: bool = True
    implementation: Literal["auto", "transformer_engine", "apex", "torch"] = "auto"
    precision_aware: bool = False
    main_dtype: Literal["float32", "float16"] = "float32"
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    exp_avg_dtype: Literal["float32", "float16", "bfloat16", "float8"] = "float32"
    exp_avg_sq_dtype: Literal["float32", "float16", "bfloat16", "float8"] = "float32"
    offload: float = Field(0.0, ge=0, le=1)

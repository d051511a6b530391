"""The policy: a model's directory, and how it is laid out in memory."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from megatron_cgrpo.config.section import Section

RecomputeModule = Literal["core_attn", "mlp", "moe", "moe_act", "layernorm"]


class Fp8Config(Section):
    """Matrix products of the layers in FP8, by Transformer Engine; the output layer and the loss stay in ``dtype``.

    ``recipe`` says how tensors are scaled: ``delayed`` by the largest values of the last ``amax_history`` forward
    passes of micro-batches in training, ``tensorwise`` by the tensor's own, ``blockwise`` per block of 128x128 weights
    and 1x128 activations (Hopper), ``mxfp8`` per 32 values (Blackwell). ``format: hybrid`` is E4M3 forward and E5M2
    backward. The outermost ``first_layers_bf16`` and ``last_layers_bf16`` compute in bfloat16. ``parameters`` keeps the
    weights in FP8 too, which halves what data-parallel ranks gather of them.
    """

    recipe: Literal["none", "delayed", "tensorwise", "blockwise", "mxfp8"] = "none"
    format: Literal["hybrid", "e4m3"] = "hybrid"
    amax_history: int = Field(1024, ge=1, description="forward passes of micro-batches; delayed scaling only")
    first_layers_bf16: int = Field(0, ge=0)
    last_layers_bf16: int = Field(0, ge=0)
    parameters: bool = False

    @property
    def enabled(self) -> bool:
        return self.recipe != "none"


class RecomputeConfig(Section):
    """What the backward pass computes again instead of keeping: of each layer the ``modules``, or ``layers`` whole.

    ``full``: with ``method: uniform`` every ``layers`` layers keep the input of their first alone; with ``block`` the
    first ``layers`` of a pipeline stage keep their inputs alone, and the others everything.
    """

    granularity: Literal["none", "selective", "full"] = "none"
    modules: tuple[RecomputeModule, ...] = Field(("core_attn",), min_length=1, description="selective only")
    method: Literal["uniform", "block"] = "uniform"
    layers: int = Field(1, ge=1)


class MoeConfig(Section):
    """How a mixture of experts is trained; its sizes are the model's.

    ``aux_loss`` is the coefficient of the load-balancing loss, ``z_loss`` that of the router's logits; 0 leaves them
    out, as the method does. ``replay_routing`` sends every token through the experts that vLLM chose for it.
    """

    dispatcher: Literal["alltoall", "allgather"] = "alltoall"
    router_dtype: Literal["fp32", "fp64"] = "fp32"
    aux_loss: float = Field(0.0, ge=0)
    z_loss: float = Field(0.0, ge=0)
    grouped_gemm: bool | None = Field(None, description="all experts in one product; null: with Transformer Engine")
    permute_fusion: bool | None = Field(None, description="null: with Transformer Engine")
    replay_routing: bool = False


class ModelConfig(Section):
    """``path`` is a Hugging Face directory, or a Megatron checkpoint that was converted from one or trained.

    It has config.json, tokenizer and weights; null means the task's own warm-started base model.

    ``implementation: auto`` takes Transformer Engine on CUDA and Megatron's local layers elsewhere.
    ``logprob_chunk`` is the number of tokens whose logits exist at a time.
    """

    path: Path | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    implementation: Literal["auto", "local", "transformer_engine"] = "auto"
    logprob_chunk: int = Field(1024, ge=1)
    fusions: bool = Field(
        True, description="fused RoPE, SwiGLU, softmax and gradient accumulation, where CUDA has them"
    )
    fp8: Fp8Config = Fp8Config()
    recompute: RecomputeConfig = RecomputeConfig()
    moe: MoeConfig = MoeConfig()

    @model_validator(mode="before")
    @classmethod
    def _recompute_was_a_word(cls, values: Any) -> Any:
        """Recipes of release 0.1 said yes or no: all of every layer, or nothing."""
        if isinstance(values, dict) and isinstance(values.get("recompute"), bool):
            return values | {"recompute": {"granularity": "full"} if values["recompute"] else {}}
        return values

"""The policy: a model's directory, and how it is laid out in memory."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from megatron_cgrpo.config.section import Section


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
    recompute: bool = False

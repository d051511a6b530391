"""Which GPUs compute in FP8: rules that trainers, engines and the planner share."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cgrpo.config.model import Fp8Config
from megatron_cgrpo.config.rollout import RolloutConfig

Capability = tuple[int, int]
"""Compute capability of a GPU, major and minor."""

ENGINE_FP8: Capability = (8, 9)
"""Of the first GPUs that multiply FP8, Ada and Hopper: vLLM would emulate it on others."""

_TRAINER_FP8: dict[str, tuple[Capability, Capability]] = {
    "delayed": ((8, 9), (13, 0)),
    "tensorwise": ((8, 9), (13, 0)),
    "blockwise": ((9, 0), (13, 0)),
    "mxfp8": ((10, 0), (12, 0)),
}
"""Compute capabilities, the second excluded, that Transformer Engine has a recipe's products for: Ada, Hopper,
Blackwell. Of those from 12.0 on it lacks some of MXFP8."""


def trainer_fp8_problems(fp8: Fp8Config, capability: Capability, gpus: str = "these") -> Iterator[str]:
    """A sentence of field and value, what is wrong, the remedy; ``gpus`` is what to call them."""
    if not fp8.enabled:
        return
    lowest, beyond = _TRAINER_FP8[fp8.recipe]
    if not lowest <= capability < beyond:
        yield (
            f"model.fp8.recipe={fp8.recipe}: needs GPUs of compute capability {_word(lowest)} or more and less than "
            f"{_word(beyond)}, {gpus} have {_word(capability)}: choose another recipe, or none"
        )


def engine_fp8_problems(rollout: RolloutConfig, capability: Capability, gpus: str = "these") -> Iterator[str]:
    """As ``trainer_fp8_problems``, of the policy's engines."""
    if capability >= ENGINE_FP8:
        return
    for name, without in (("quantization", "none"), ("kv_cache_dtype", "auto")):
        if getattr(rollout, name) == "fp8":
            yield (
                f"rollout.{name}=fp8: needs GPUs of compute capability {_word(ENGINE_FP8)} or more, {gpus} have "
                f"{_word(capability)}: set rollout.{name}={without}"
            )


def _word(capability: Capability) -> str:
    return ".".join(map(str, capability))

"""What a recipe does not say and a plan has to assume; all can be set by ``--assume KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, ValidationError

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.section import Section


class Assumptions(Section):
    """Shares are of 1. Efficiencies are shares of the data sheet's rate.

    The lengths and shares of failure are the task's: after a run, put its own figures here.
    """

    # The task and the policy.
    prompt_fill: float = Field(0.25, gt=0, le=1, description="mean prompt over rollout.max_prompt_tokens")
    response_fill: float = Field(0.4, gt=0, lt=1, description="mean response over rollout.max_response_tokens")
    critique_fill: float = Field(0.6, gt=0, lt=1, description="mean critique over rollout.max_critique_tokens")
    failed_share: float = Field(0.3, ge=0, le=1, description="prompts whose responses all fail")
    refined_share: float = Field(0.8, ge=0, le=1, description="critiqued groups with a refinement that trains")
    expert_imbalance: float = Field(1.3, ge=1, description="tokens of the busiest expert rank over the mean")
    # The trainer's speed.
    gemm_efficiency: float = Field(0.63, gt=0, le=1, description="of bf16 peak, wide matrices (8192 and more)")
    gemm_half_width: float = Field(500, gt=0, description="narrowest side at which matrices reach half of that")
    grouped_efficiency: float = Field(0.45, gt=0, le=1, description="the same for products of experts")
    fp8_efficiency: float = Field(0.55, gt=0, le=1, description="of FP8 peak: quantising is not free")
    attention_efficiency: float = Field(0.45, gt=0, le=1, description="of bf16 peak, causal flash attention")
    memory_efficiency: float = Field(0.8, gt=0, le=1, description="of device memory's bandwidth, element by element")
    link_efficiency: float = Field(0.7, gt=0, le=1, description="of NVLink, in collectives")
    network_efficiency: float = Field(0.75, gt=0, le=1, description="of the network, in collectives")
    overlapped: float = Field(0.8, ge=0, lt=1, description="of communication that an overlap option hides")
    expert_launch_s: float = Field(
        1.5e-3, ge=0, description="the same of a layer of experts: routing waits for the host"
    )
    layer_launch_s: float = Field(1.5e-4, ge=0, description="host time to launch a layer's kernels forward")
    first_pass: float = Field(0, ge=0, le=1, description="passes for a step's first update, whose ratios are 1")
    imbalance: float = Field(0.05, ge=0, description="time that ranks wait for the fullest micro-batch")
    # The engines' speed.
    decode_efficiency: float = Field(0.7, gt=0, le=1, description="of device memory's bandwidth while decoding")
    prefill_efficiency: float = Field(0.5, gt=0, le=1, description="of peak while reading prompts")
    decode_overhead_s: float = Field(5e-3, ge=0, description="host time per decoded token of a batch")
    sequence_overhead_s: float = Field(3e-5, ge=0, description="the same per sequence of the batch")
    allreduce_latency_s: float = Field(1.2e-5, ge=0, description="of a small all-reduce between an engine's GPUs")
    stream_overlap: float = Field(0.5, ge=0, le=1, description="of critique and refinement beside generation")
    # Transfers.
    sync_overhead_s: float = Field(1.0, ge=0, description="pausing, waking and resuming engines for a push")
    sync_tensor_s: float = Field(2e-4, ge=0, description="per tensor of a push")
    disk_bandwidth: float = Field(5e9, gt=0, description="bytes/s, of the whole shared file system")
    offload_bandwidth: float = Field(2.5e10, gt=0, description="bytes/s between device and host, per GPU")
    host_memory_bandwidth: float = Field(4e10, gt=0, description="bytes/s a rank, for updates on the host")
    # Memory.
    context_gib: float = Field(1.5, ge=0, description="CUDA context, kernels and workspaces of a process")
    communicator_gib: float = Field(0.25, ge=0, description="NCCL's buffers per process group that is used")
    fragmentation: float = Field(0.1, ge=0, description="of what is allocated and freed within a step")
    engine_reserve_gib: float = Field(3.0, ge=0, description="CUDA graphs and workspaces of an engine's worker")
    asleep_gib: float = Field(2.0, ge=0, description="what an engine's worker keeps of a GPU while it sleeps")
    host_base_gib: float = Field(6.0, ge=0, description="a rank's or worker's process: libraries, tokenizer, Ray")


def assumptions_of(given: Sequence[str]) -> Assumptions:
    """From ``key=value`` pairs. Raises ConfigError naming key, value and remedy."""
    values: dict[str, str] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or key not in Assumptions.model_fields:
            known = ", ".join(Assumptions.model_fields)
            raise ConfigError(f"--assume {pair}: is no known assumption: write KEY=VALUE with one of {known}")
        values[key] = value
    try:
        return Assumptions.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            [f"--assume {fault['loc'][0]}={fault['input']}: {fault['msg']}: change it" for fault in error.errors()]
        ) from error

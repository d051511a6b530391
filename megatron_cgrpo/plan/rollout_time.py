"""How long engines take to sample: a roofline of decoding, integrated over a batch that thins out."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.config.shape import ModelShape
from megatron_cgrpo.plan.assumptions import Assumptions
from megatron_cgrpo.plan.communication import Fabric
from megatron_cgrpo.plan.engine_memory import EngineMemory, engine_weight_bytes, held_tokens, kv_bytes_per_token
from megatron_cgrpo.plan.flops import forward_flops
from megatron_cgrpo.plan.gpus import Gpu
from megatron_cgrpo.plan.parameters import whole_model
from megatron_cgrpo.plan.workload import Stage, Workload

_POINTS = 24
"""Of the integral over the tail."""


@dataclass(frozen=True)
class RolloutTime:
    """Seconds by stage, each as if it had the engines alone, and ``total`` of the collection as it is scheduled.

    ``tokens_per_s`` of one GPU while it generates responses.
    """

    generate: float
    critique: float
    refine: float
    total: float
    tokens_per_s: float


def rollout_time(
    recipe: Recipe, shape: ModelShape, work: Workload, assume: Assumptions, gpu: Gpu, memory: EngineMemory
) -> RolloutTime:
    """Of the policy's engines, with sequences spread evenly. An own critic's engines are taken to be as fast."""
    engine = Engine(recipe, shape, assume, gpu, memory)
    generate, critique, refine = (engine.seconds(stage) for stage in (work.generate, work.critique, work.refine))
    hidden = assume.stream_overlap if recipe.rollout.schedule == "stream" else 0.0
    total = generate + (critique + refine) * (1 - hidden)
    gpus = recipe.rollout.engines * recipe.rollout.tensor_parallel
    rate = work.generate.tokens / generate / gpus if generate else 0.0
    return RolloutTime(generate, critique, refine, total, rate)


@dataclass(frozen=True)
class Engine:
    recipe: Recipe
    shape: ModelShape
    assume: Assumptions
    gpu: Gpu
    memory: EngineMemory

    def seconds(self, stage: Stage) -> float:
        """Until the last sequence of a stage has ended.

        As long as some wait, the batch is full. When the last of them has begun, its lengths are spread as those of
        all: so many are still running after x tokens as are longer than x, and the last one runs for ``limit`` tokens.
        """
        sequences = stage.sequences / self.recipe.rollout.engines
        if sequences <= 0:
            return 0.0
        batch = min(sequences, self.capacity(stage))
        queued = sequences - batch
        full = self.step(batch, held_tokens(stage, False))
        steady = queued * stage.written / batch * full
        tail, width = 0.0, stage.limit / _POINTS
        for point in range(_POINTS):
            at = (point + 0.5) * width
            running = max(batch * (1 - (at / stage.limit) ** stage.power), 1.0)
            tail += width * self.step(running, stage.context + at)
        return steady + tail + self.prefill(stage)

    def capacity(self, stage: Stage) -> float:
        """Sequences that an engine runs at once: bound by the recipe and by the cache."""
        held = held_tokens(stage, self.recipe.rollout.prefix_caching)
        fits = self.memory.kv_tokens / held
        return max(min(self.recipe.rollout.max_concurrent_sequences, fits), 1.0)

    def step(self, batch: float, context: float) -> float:
        """Seconds to decode one token of ``batch`` sequences with ``context`` tokens each in the cache.

        Weights are read once, of experts those that any of the batch chose; the cache is read whole.
        """
        workers = self.recipe.rollout.tensor_parallel
        weights = self._weights_read(batch) / workers
        cache = batch * context * kv_bytes_per_token(self.recipe, self.shape)
        read = (weights + cache) / (self.gpu.memory_bandwidth * self.assume.decode_efficiency)
        computed = forward_flops(self.shape, batch, 0.0).total / workers / self._rate
        return max(read, computed) + self._sent(batch) + self._overhead(batch)

    def prefill(self, stage: Stage) -> float:
        """Seconds to read the prompts; one that siblings share is read once where prefixes are cached."""
        cached = self.recipe.rollout.prefix_caching
        read = stage.context - stage.shared * (1 - 1 / stage.siblings) * cached
        sequences = stage.sequences / self.recipe.rollout.engines
        work = forward_flops(self.shape, sequences * read, sequences * read**2)
        return (work.total - work.head) / self.recipe.rollout.tensor_parallel / self._rate

    @property
    def _rate(self) -> float:
        fp8 = self.recipe.rollout.quantization == "fp8"
        return (self.gpu.fp8_flops if fp8 else self.gpu.bf16_flops) * self.assume.prefill_efficiency

    def _weights_read(self, batch: float) -> float:
        whole = engine_weight_bytes(self.recipe, self.shape)
        experts = self.shape.experts
        if experts is None:
            return whole
        count = whole_model(self.shape)
        untouched: float = (1 - experts.per_token / experts.count) ** batch
        return whole * (1 - count.experts / count.total * untouched)

    def _sent(self, batch: float) -> float:
        """Two all-reduces a layer between an engine's workers."""
        workers = self.recipe.rollout.tensor_parallel
        if workers == 1:
            return 0.0
        each = 2 * batch * self.shape.hidden * 2 * (workers - 1) / workers
        bandwidth = Fabric.of(self.gpu, self.assume).bandwidth(workers, 1)
        nodes = -(-workers // self.gpu.gpus_per_node)
        return 2 * self.shape.layers * (self.assume.allreduce_latency_s * nodes + each / bandwidth)

    def _overhead(self, batch: float) -> float:
        return self.assume.decode_overhead_s + batch * self.assume.sequence_overhead_s

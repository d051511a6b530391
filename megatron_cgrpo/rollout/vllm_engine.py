"""One vLLM engine, as the body of a Ray actor: token-in/token-out generation and the weight-update control plane."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from megatron_cgrpo.config.fp8_gpus import ENGINE_FP8
from megatron_cgrpo.rollout.engine_control import EngineControl
from megatron_cgrpo.rollout.engine_spec import EngineSpec, engine_args
from megatron_cgrpo.rollout.protocol import EngineDied, EngineStartError, GenerateRequest, RequestKey
from megatron_cgrpo.rollout.stderr_tail import StderrTail
from megatron_cgrpo.types import Completion, FinishReason, Routes, VersionSpan

if TYPE_CHECKING:
    import numpy as np
    from vllm import CompletionOutput, RequestOutput

T = TypeVar("T")

LIVENESS_POLL_S = 0.5
"""A call into a dead engine core never returns, so every wait looks up this often whether the core still lives."""


class VllmEngine:
    """Serves nothing before the first complete weight update, nor after one that failed (``EngineControl``).

    With ``spec.own_weights`` it serves the model's weights from the start, and is sent none.

    vLLM is imported when the engine is made, after the actor's runtime environment is in place. Raises
    EngineStartError with the root cause, which vLLM's engine core tells on its standard error only.
    """

    def __init__(self, spec: EngineSpec) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        if spec.on_gpu and spec.fp8:
            check_fp8_device()
        if spec.return_routes and not spec.on_gpu:
            # What it adds to vLLM on CPUs is for the configuration too, which is made before any worker.
            from megatron_cgrpo.rollout import vllm_worker  # noqa: F401
        self._spec = spec
        stderr = StderrTail()
        try:
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args(spec)))
        except Exception as error:
            own = " ".join(f"{type(error).__name__}: {error}".split())
            raise EngineStartError(stderr.last_error() or own) from error
        self._control = EngineControl(
            self._llm,
            serving=spec.own_weights,
            frees_memory=spec.on_gpu,
            must_join=spec.transfer_backend != "file",
        )
        self._request_ids = itertools.count()
        self._starting = asyncio.Lock()
        self._expected: set[str] = set()

    async def ready(self) -> None:
        """Returns once the engine core answers. The first time, a colocated engine leaves its devices to the trainer:
        it has no weights yet, and the push that brings them wakes it."""
        async with self._starting:
            per_worker: list[list[str]] = await self._alive(self._llm.collective_rpc("checkpoint_names"))
            if self._spec.colocated and not self._expected:
                await self._alive(self._control.sleep())
            self._expected = set().union(*per_worker)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """``request.n`` completions, in seed order. Waits while weights are updated, and goes on with the new ones.

        Raises EngineNotReady, also when an update fails while the request waits or runs, and EngineDied.
        """
        output = await self._alive(self._answer(request), self._control.check_open)
        outputs = sorted(output.outputs, key=lambda output: output.index)
        # Nothing else trains in the context that it was sampled in.
        prompt = len(request.prompt_ids) if request.key is not None and request.key.stage == "generate" else None
        return [completion(output, self._spec.own_weights, prompt) for output in outputs]

    async def decoded(self) -> int:
        """As far as vLLM's front end, in this process, has heard from the core, which is not asked."""
        states = self._llm.output_processor.request_states.values()
        return sum(state.detokenizer.num_output_tokens() for state in states)

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Once more where another engine was started again: all join a transfer that is opened anew."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._alive(self._control.join(WeightTransferInitRequest(init_info)))

    async def start_weight_update(self) -> None:
        """Freezes running requests; with the caches cleared they go on with recomputed keys and values.

        Raises EngineNotJoined in an engine that was started again since the transfer was opened.
        """
        if not self._expected:  # the process was replaced since, and nobody has asked whether it is ready
            await self.ready()
        await self._alive(self._control.start_update())

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._alive(self._control.update(update_info["names"], WeightTransferUpdateRequest(update_info)))

    async def finish_weight_update(self, version: int) -> None:
        """Raises IncompleteWeights naming what is missing; the engine then stays closed until a complete push."""
        await self._alive(self._control.finish_update(version, self._expected))

    async def sleep(self) -> None:
        """Frees the device's memory until the next push. Raises RuntimeError in an engine that cannot wake by one."""
        if not self._spec.colocated:
            raise RuntimeError("this engine has its device to itself: only rollout.placement=colocated lets it sleep")
        await self._alive(self._control.sleep())

    async def shutdown(self) -> None:
        self._llm.shutdown()

    async def until_ended(self) -> None:
        """Never returns: who waits for it hears of the end of the process."""
        await asyncio.Event().wait()

    def _submit(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = request.temperature == 0
        params = SamplingParams(
            n=request.n,
            temperature=request.temperature,
            top_p=1.0,
            top_k=-1,
            seed=None if greedy else request.seed,
            max_tokens=request.max_tokens,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": request.prompt_ids}
        request_id = f"{_name(request.key)}.{next(self._request_ids)}"
        outputs: AsyncIterator[RequestOutput] = self._llm.generate(
            prompt, params, request_id, priority=request.priority
        )
        return outputs

    async def _answer(self, request: GenerateRequest) -> RequestOutput:
        await self._control.admitted()
        async for output in self._submit(request):
            last = output
        return last

    async def _alive(self, call: Awaitable[T], check: Callable[[], None] = lambda: None) -> T:
        """Awaits ``call`` for as long as the engine core lives. Raises EngineDied when it does not.

        ``check`` may raise as well, while the call waits; the call is then cancelled.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=LIVENESS_POLL_S))[0]:
                if self._llm.errored:
                    raise EngineDied(f"the engine core of {self._spec.model_dir} died: see its log in the Ray session")
                check()
            return task.result()
        except EngineDeadError as error:
            raise EngineDied(f"the engine core of {self._spec.model_dir} died: {error}") from error
        finally:
            task.cancel()


def check_fp8_device() -> None:
    """Raises EngineStartError on a GPU that would emulate FP8, or have no kernel for it."""
    from vllm.platforms import current_platform

    if not current_platform.has_device_capability(ENGINE_FP8):
        raise EngineStartError(
            f"rollout.quantization=fp8 or rollout.kv_cache_dtype=fp8: {current_platform.get_device_name()} has no FP8 "
            "products (compute capability 8.9 or newer): set them to none and auto"
        )


def _name(key: RequestKey | None) -> str:
    """What a request is called in vLLM's logs."""
    return "request" if key is None else f"{key.stage}-{key.step}-{key.prompt_id}-{key.index}"


def completion(output: CompletionOutput, own_weights: bool, routed_prompt: int | None = None) -> Completion:
    """vLLM's result in our terms. vLLM's spans cover the sampled tokens one after the other.

    Its experts, where it returned any, are kept behind a prompt of ``routed_prompt`` tokens.
    """
    spans = [] if own_weights else output.weight_versions or []
    token_ids = list(output.token_ids)
    return Completion(
        token_ids=token_ids,
        logprobs=[position[token].logprob for position, token in zip(output.logprobs, token_ids, strict=True)],
        finish_reason=FinishReason(output.finish_reason),
        versions=tuple(VersionSpan(int(span.version), span.end - span.start) for span in spans),
        routes=None if routed_prompt is None else routes(output.routed_experts, routed_prompt + len(token_ids) - 1),
    )


def routes(experts: np.ndarray | None, tokens: int) -> Routes | None:
    """vLLM's uint8 or uint16 [tokens, layers, per token]. Raises RuntimeError where it is of other ``tokens``."""
    if experts is None:
        return None
    if len(experts) != tokens:
        raise RuntimeError(f"vLLM returned the experts of {len(experts)} tokens where it computed {tokens}")
    wide = experts.dtype.itemsize == 2
    return Routes(experts.astype("<u2" if wide else "u1").tobytes(), *experts.shape[1:], wide)

"""One vLLM engine, as the body of a Ray actor: token-in/token-out generation and the weight-update control plane."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from megatron_cgrpo.rollout.engine_spec import EngineSpec, engine_args
from megatron_cgrpo.rollout.protocol import EngineDied, EngineNotReady, EngineStartError, GenerateRequest
from megatron_cgrpo.rollout.stderr_tail import StderrTail
from megatron_cgrpo.rollout.weight_names import check_complete
from megatron_cgrpo.types import NOT_TRAINED, Completion, FinishReason

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput

T = TypeVar("T")

LIVENESS_POLL_S = 0.5
"""A call into a dead engine core never returns, so every wait looks up this often whether the core still lives."""


class VllmEngine:
    """Serves nothing before the first complete weight update, nor after one that failed.

    With ``spec.own_weights`` it serves the model's weights from the start, and is sent none.

    vLLM is imported when the engine is made, after the actor's runtime environment is in place. Raises
    EngineStartError with the root cause, which vLLM's engine core tells on its standard error only.
    """

    def __init__(self, spec: EngineSpec) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._spec = spec
        stderr = StderrTail()
        try:
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args(spec)))
        except Exception as error:
            own = " ".join(f"{type(error).__name__}: {error}".split())
            raise EngineStartError(stderr.last_error() or own) from error
        self._request_ids = itertools.count()
        self._expected: set[str] = set()
        self._received: set[str] | None = None
        self._version: int | None = NOT_TRAINED if spec.own_weights else None

    async def ready(self) -> None:
        """Returns once the engine core answers."""
        per_worker: list[list[str]] = await self._alive(self._llm.collective_rpc("checkpoint_names"))
        self._expected = set().union(*per_worker)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """``request.n`` completions, in seed order. Raises EngineNotReady and EngineDied."""
        if self._version is None:
            raise EngineNotReady(
                "the engine has no trained weights (none were pushed since it started, or the last push failed): "
                "push weights before generating"
            )
        output = await self._alive(self._last(self._submit(request)))
        outputs = sorted(output.outputs, key=lambda output: output.index)
        return [completion(output, self._spec.own_weights) for output in outputs]

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._alive(self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info)))

    async def start_weight_update(self) -> None:
        """Freezes running requests; with the caches cleared they go on with recomputed keys and values."""
        self._version = None
        if self._received is not None:
            # The previous update was abandoned. Workers where it failed have closed it, and say so; close the others.
            with contextlib.suppress(Exception):
                await self._alive(self._llm.finish_weight_update())
        await self._alive(self._llm.pause_generation(mode="keep", clear_cache=True))
        await self._alive(self._llm.start_weight_update())
        self._received = set()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        if self._received is None:
            raise RuntimeError("update_weights without start_weight_update: start the update first")
        self._received.update(update_info["names"])
        await self._alive(self._llm.update_weights(WeightTransferUpdateRequest(update_info)))

    async def finish_weight_update(self, version: int) -> None:
        """Raises IncompleteWeights naming what is missing; the engine then stays closed until a complete push."""
        if self._received is None:
            raise RuntimeError("finish_weight_update without start_weight_update: start the update first")
        received, self._received = self._received, None
        await self._alive(self._llm.finish_weight_update(str(version)))
        check_complete(self._expected, received)
        self._version = version
        await self._alive(self._llm.resume_generation())

    async def shutdown(self) -> None:
        self._llm.shutdown()

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
        outputs: AsyncIterator[RequestOutput] = self._llm.generate(prompt, params, f"r{next(self._request_ids)}")
        return outputs

    @staticmethod
    async def _last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
        async for output in outputs:
            last = output
        return last

    async def _alive(self, call: Awaitable[T]) -> T:
        """Awaits ``call`` for as long as the engine core lives. Raises EngineDied when it does not."""
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=LIVENESS_POLL_S))[0]:
                if self._llm.errored:
                    raise EngineDied(f"the engine core of {self._spec.model_dir} died: see its log in the Ray session")
            return task.result()
        except EngineDeadError as error:
            raise EngineDied(f"the engine core of {self._spec.model_dir} died: {error}") from error
        finally:
            task.cancel()


def completion(output: CompletionOutput, own_weights: bool) -> Completion:
    """vLLM's result in our terms; a sample over several weight versions counts as one of the oldest."""
    versions = [] if own_weights else [int(span.version) for span in output.weight_versions]
    token_ids = list(output.token_ids)
    return Completion(
        token_ids=token_ids,
        logprobs=[position[token].logprob for position, token in zip(output.logprobs, token_ids, strict=True)],
        finish_reason=FinishReason(output.finish_reason),
        weight_version=min(versions, default=NOT_TRAINED),
    )

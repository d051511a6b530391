"""A critic behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Callable

from megatron_cgrpo.config.critic import ApiConfig
from megatron_cgrpo.critique.chat_client import ChatClient, Refusal
from megatron_cgrpo.critique.generated import Draft
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.critique.usage import Usage

Question = Callable[[CritiqueRequest], str]


class ApiWriter:
    """``critique.generated.Writer`` over chat completions. The key is read from the environment once, when made."""

    def __init__(self, config: ApiConfig, question: Question, max_tokens: int, temperature: float) -> None:
        self._config, self._question = config, question
        self._max_tokens, self._temperature = max_tokens, temperature
        self._client = ChatClient.with_key_of_environment(config)

    async def write(self, request: CritiqueRequest) -> Draft | CritiqueFailure:
        reply = await self._client.ask(self._question(request), request.seed, self._max_tokens, self._temperature)
        if isinstance(reply, Refusal):
            return CritiqueFailure(reply.cause, final=True)  # the client has asked as often as makes sense
        return Draft(reply.text, None, reply.truncated, reply.generated_tokens, bill=reply.usage)

    def charge(self, bill: Usage) -> None:
        """Counts what was paid by an earlier process."""
        self._client.usage.add(bill)

    def new_step(self) -> None:
        """A server that has not answered is asked again."""
        self._client.new_step()

    def take_metrics(self) -> dict[str, float]:
        """What was used since the last call."""
        usage, self._client.usage = self._client.usage, Usage()
        return usage.metrics(self._config.price_in, self._config.price_out)

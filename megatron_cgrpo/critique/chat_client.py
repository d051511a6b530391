"""Chat completions over HTTP, in the protocol that OpenAI's servers, vLLM, llama.cpp and others share."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from megatron_cgrpo.config.critic import ApiConfig
from megatron_cgrpo.critique.backoff import backoff_s, retry_after_s
from megatron_cgrpo.critique.breaker import Breaker
from megatron_cgrpo.critique.usage import Usage

logger = logging.getLogger(__name__)

_UNANSWERED = ("timeout", "unreachable")  # causes
_SHOWN = 200  # characters of a server's error message


@dataclass(frozen=True)
class ChatReply:
    """``usage`` is what this one cost, attempts that failed before included."""

    text: str
    truncated: bool
    generated_tokens: int
    usage: Usage


@dataclass(frozen=True)
class Refusal:
    """No reply. ``again`` says whether asking again may help; ``wait_s`` is what the server asks to wait before."""

    cause: str
    detail: str
    again: bool = False
    wait_s: float = 0.0


class ChatClient:
    """Asks one model, ``config.concurrency`` requests at a time. ``usage`` counts since it was last replaced.

    Causes: ``timeout``, ``unreachable``, ``rate_limited``, ``http_<code>``, ``error`` for an answer that is no chat
    completion, and ``server_down`` for what was not asked because the server had left ``config.down_after`` requests in
    a row unanswered, to the end of the step (``Breaker``). The key is sent in a header and appears nowhere else.
    """

    def __init__(self, config: ApiConfig, api_key: str | None) -> None:
        self._config, self._key = config, api_key
        self._url = f"{(config.base_url or '').rstrip('/')}/chat/completions"
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._tls = httpx.create_ssl_context()
        self._in_flight = 0
        self._breaker = Breaker(config.concurrency, config.down_after)
        self._told: set[str] = set()
        self.usage = Usage()

    @classmethod
    def with_key_of_environment(cls, config: ApiConfig) -> Self:
        """The key is read once, from the variable ``config.api_key_env``. Raises KeyError where that is not set."""
        return cls(config, None if config.api_key_env is None else os.environ[config.api_key_env])

    def new_step(self) -> None:
        """A server that is down is asked again."""
        self._breaker.new_step()

    async def ask(self, question: str, seed: int, max_tokens: int, temperature: float) -> ChatReply | Refusal:
        """Asks until there is a reply, a refusal that more of the same will not change, or no time left."""
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        used = Usage()
        try:
            # A request that waits to be made again keeps its slot: a server short of breath is asked less.
            async with self._slot() as client:
                outcome = await self._insist(client, body, seed, used)
        finally:
            self.usage.add(used)  # what is given up was asked too
        if isinstance(outcome, Refusal):
            self._tell(outcome)
        return outcome

    async def _insist(
        self, client: httpx.AsyncClient, body: dict[str, Any], seed: int, used: Usage
    ) -> ChatReply | Refusal:
        time = asyncio.get_running_loop().time
        until = time() + self._config.deadline_s
        outcome = await self._once(client, body, until, used)
        for attempt in range(self._config.retries):
            if isinstance(outcome, ChatReply) or not outcome.again or outcome.wait_s > self._config.timeout_s:
                break
            wait_s = max(outcome.wait_s, backoff_s(seed, attempt))
            if self._breaker.down or time() + wait_s >= until:
                break
            await asyncio.sleep(wait_s)
            used.retries += 1
            outcome = await self._once(client, body, until, used)
        return outcome

    async def _once(
        self, client: httpx.AsyncClient, body: dict[str, Any], until: float, used: Usage
    ) -> ChatReply | Refusal:
        """``until``: when there must be a reply, by the event loop's clock."""
        if self._breaker.down:
            return Refusal("server_down", f"{self._config.down_after} requests in a row without an answer")
        latest = asyncio.get_running_loop().time() + self._config.timeout_s
        outcome = await self._post(client, body, min(latest, until), used)
        self._breaker.note(isinstance(outcome, ChatReply) or outcome.cause not in _UNANSWERED)
        return outcome

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[httpx.AsyncClient]:
        """Connections live while requests are in flight: they must not outlive the event loop."""
        if self._in_flight == 0:
            self._client = httpx.AsyncClient(headers=self._headers, verify=self._tls, timeout=None)
        self._in_flight += 1
        try:
            async with self._breaker.slot():
                yield self._client
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                await self._client.aclose()

    async def _post(
        self, client: httpx.AsyncClient, body: dict[str, Any], until: float, used: Usage
    ) -> ChatReply | Refusal:
        used.requests += 1
        try:
            async with asyncio.timeout_at(until):
                response = await client.post(self._url, json=body)
        except TimeoutError:
            limits = f"timeout_s={self._config.timeout_s:g} and deadline_s={self._config.deadline_s:g}"
            return Refusal("timeout", f"no answer within {limits}", again=True)
        except httpx.TransportError as error:
            return Refusal("unreachable", f"{type(error).__name__}: {error}", again=True)
        except httpx.HTTPError as error:
            return Refusal("error", f"{type(error).__name__}: {error}")
        if response.status_code != httpx.codes.OK:
            return _refused(response)
        try:
            return _read(response.json(), used)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            return Refusal("error", f"the answer is no chat completion ({error!r}): {response.text}")

    def _tell(self, refusal: Refusal) -> None:
        """The first of every cause, with what the metrics cannot hold."""
        if refusal.cause not in self._told:
            self._told.add(refusal.cause)
            detail = refusal.detail.replace(self._key, "***") if self._key else refusal.detail
            logger.warning("chat server at %s: %s: %s", self._config.base_url, refusal.cause, detail[:_SHOWN])


def _read(payload: Any, used: Usage) -> ChatReply:
    """Raises what indexing and converting raise where ``payload`` is no chat completion."""
    choice = payload["choices"][0]
    text = choice["message"]["content"] or ""
    if not isinstance(text, str):
        raise TypeError("content is no text")
    reported = payload.get("usage") or {}
    prompt, generated = (int(reported.get(name, 0)) for name in ("prompt_tokens", "completion_tokens"))
    used.unmetered += not reported
    used.prompt_tokens += prompt
    used.generated_tokens += generated
    return ChatReply(text, choice.get("finish_reason") == "length", generated, used)


def _refused(response: httpx.Response) -> Refusal:
    code = response.status_code
    wait_s = retry_after_s(response.headers.get("Retry-After"), datetime.now(UTC))
    again = code in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS) or code >= 500
    cause = "rate_limited" if code == httpx.codes.TOO_MANY_REQUESTS else f"http_{code}"
    return Refusal(cause, response.text, again, wait_s)

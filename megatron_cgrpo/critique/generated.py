"""Chain-of-thought critiques that a language model writes, wherever that model runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.critique.conclusion import parse_conclusion
from megatron_cgrpo.critique.critics import Encode
from megatron_cgrpo.critique.protocol import CritiqueFailure, CritiqueRequest
from megatron_cgrpo.critique.usage import Usage
from megatron_cgrpo.types import Critique


@dataclass(frozen=True)
class Draft:
    """What a model wrote. ``truncated``: it ran into its token limit.

    ``prompt_tokens`` went through engines of ours; 0 for somebody else's server, whose own count is in its bill.
    ``token_ids`` are the sampled ones where the model has the policy's vocabulary, else None. ``bill`` is what a server
    counted for it.
    """

    text: str
    token_ids: list[int] | None
    truncated: bool
    generated_tokens: int
    prompt_tokens: int = 0
    bill: Usage | None = field(default=None, compare=False)


class Writer(Protocol):
    """A model that criticises; a request that it cannot answer is a failure with a cause."""

    async def write(self, request: CritiqueRequest) -> Draft | CritiqueFailure: ...


class PaidWriter(Writer, Protocol):
    """A server that wants to be paid. Its drafts have a ``bill``."""

    def charge(self, bill: Usage) -> None:
        """Counts what was paid before, by a process that has not lived to report it."""
        ...


class GeneratedCritic:
    """Makes critiques of drafts.

    Causes beside the writer's: ``empty``, ``truncated``, the parser's, and ``unencodable`` for a text that the policy's
    vocabulary cannot write.

    A draft that concluded before it ran into the limit has said all that is asked of it, so it is used.
    """

    kind = "cot"

    def __init__(self, writer: Writer, encode: Encode) -> None:
        self._writer, self._encode = writer, encode

    async def critique(self, request: CritiqueRequest) -> Critique | CritiqueFailure:
        draft = await self._writer.write(request)
        if isinstance(draft, CritiqueFailure):
            return draft
        conclusion = parse_conclusion(draft.text)
        if conclusion.cause is not None:
            cause = _cause(draft, conclusion.cause)
            return CritiqueFailure(cause, (), draft.generated_tokens, draft.prompt_tokens)
        try:
            token_ids = self._encode(draft.text) if draft.token_ids is None else draft.token_ids
        except ConfigError:
            return CritiqueFailure("unencodable", (), draft.generated_tokens, draft.prompt_tokens)
        return Critique(
            self.kind,
            draft.text,
            token_ids,
            conclusion.correct,
            draft.generated_tokens,
            prompt_tokens=draft.prompt_tokens,
        )


def _cause(draft: Draft, unconcluded: str) -> str:
    if not draft.text.strip():
        return "empty"
    return "truncated" if draft.truncated and unconcluded == "no_conclusion" else unconcluded

"""Prompts as token ids: rendered, wrapped in the tokenizer's chat template, with sampled tokens put in as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.config.task import FileTaskConfig
from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.tasks.problems.templates import Templates
from megatron_cgrpo.tasks.segments import without_eos


class PromptWriter:
    """Writes the three prompts of a problem. Sampled texts are never rendered or encoded again.

    A template is rendered with a mark in place of each sampled text; the finished text is split at the marks, the
    pieces are encoded, and the sampled ids (less a final EOS) go between them. Marks are chosen that the text does not
    contain otherwise.

    Raises ``ConfigError`` for templates that ``Templates`` refuses, and for ``task.chat=on`` with a tokenizer that has
    no chat template.
    """

    def __init__(self, config: FileTaskConfig, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._templates = tokenizer, Templates(config.domain, config.templates)
        self._system = config.system
        self._chat = tokenizer.has_chat_template if config.chat == "auto" else config.chat
        if self._chat and not tokenizer.has_chat_template:
            raise ConfigError("task.chat=on: the model's tokenizer has no chat template: set task.chat=off")

    def answer(self, question: str, system: str | None = None) -> list[int]:
        """``system`` is the problem's own system message, which ``task.system`` replaces."""
        return self._tokenizer.encode(self._framed(self._templates.render("answer", question=question), system))

    def critique(
        self, question: str, response_ids: list[int], hint: Mapping[str, str], system: str | None = None
    ) -> list[int]:
        """``hint`` holds ``sees`` and what it names, as ``critique_text`` takes it."""
        return self._spliced("critique", {"response": response_ids}, {"question": question, **hint}, system)

    def critique_text(self, question: str, response: str, hint: Mapping[str, str]) -> str:
        """The same question for a model that is reached by text; its server knows how to wrap it."""
        return self._templates.render("critique", question=question, response=response, **hint)

    def refinement(
        self, question: str, response_ids: list[int], critique_ids: list[int], system: str | None = None
    ) -> list[int]:
        sampled = {"response": response_ids, "critique": critique_ids}
        return self._spliced("refinement", sampled, {"question": question}, system)

    def _spliced(
        self, purpose: str, sampled: Mapping[str, list[int]], texts: Mapping[str, str], system: str | None
    ) -> list[int]:
        without = self._framed(self._templates.render(purpose, **texts, **dict.fromkeys(sampled, "")), system)
        marks = _marks(sampled, without)
        text = self._framed(self._templates.render(purpose, **texts, **marks), system)
        contents = {mark: without_eos(sampled[name], self._tokenizer.eos_token_id) for name, mark in marks.items()}
        ids: list[int] = []
        for piece in re.split(f"({'|'.join(map(re.escape, contents))})", text):
            ids += contents[piece] if piece in contents else self._tokenizer.encode(piece)
        return ids

    def _framed(self, text: str, system: str | None) -> str:
        """In a chat, one user message; else the text and a line break, after which the model goes on."""
        if not self._chat:
            return f"{text}\n" if self._system is None else f"{self._system}\n\n{text}\n"
        spoken = system if self._system is None else self._system
        before = [] if spoken is None else [{"role": "system", "content": spoken}]
        return self._tokenizer.chat([*before, {"role": "user", "content": text}])


def _marks(names: Iterable[str], text: str) -> dict[str, str]:
    """One mark a name, with a number that makes it absent from ``text``, and no letters that a filter could change."""
    number = 0
    while f"[[{number}:" in text:
        number += 1
    return {name: f"[[{number}:{index}]]" for index, name in enumerate(names)}

"""What the model is asked, as token ids. Responses and critiques are embedded as they were sampled."""

from __future__ import annotations

from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.tasks.misconceptions import language


class PromptFormat:
    """Three questions that share a beginning: answer, criticise an attempt, answer again with its critique in view."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_id
        self._question, self._attempt, self._critique, self._answer = (
            tokenizer.encode(text) for text in (language.QUESTION, language.ATTEMPT, language.CRITIQUE, language.ANSWER)
        )

    def answer(self, question: str) -> list[int]:
        return self._asked(question) + self._answer

    def critique(self, question: str, response_ids: list[int]) -> list[int]:
        return self._asked(question) + self._attempt + self._open(response_ids) + self._critique

    def refinement(self, question: str, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        return self.critique(question, response_ids) + self._open(critique_ids) + self._answer

    def _asked(self, question: str) -> list[int]:
        return self._question + self._tokenizer.encode(question)

    def _open(self, ids: list[int]) -> list[int]:
        """Without a final end-of-sequence: the text goes on."""
        return ids[:-1] if ids and ids[-1] == self._eos else ids

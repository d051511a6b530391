"""What the model is asked, as token ids. Responses and critiques are embedded as they were sampled."""

from __future__ import annotations

from megatron_cgrpo.data.tokenizer import Tokenizer
from megatron_cgrpo.tasks.misconceptions import language
from megatron_cgrpo.tasks.segments import without_eos


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

    def critique(self, question: str, response_ids: list[int], hint: str = "") -> list[int]:
        """``hint`` is what the critic is shown beside question and attempt."""
        attempt = self._attempt + without_eos(response_ids, self._eos)
        return self._asked(question) + attempt + self._tokenizer.encode(hint) + self._critique

    def refinement(self, question: str, response_ids: list[int], critique_ids: list[int]) -> list[int]:
        return self.critique(question, response_ids) + without_eos(critique_ids, self._eos) + self._answer

    def _asked(self, question: str) -> list[int]:
        return self._question + self._tokenizer.encode(question)

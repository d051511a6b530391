"""Whether the working of a refinement leads to its answer, as far as text alone can show."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from megatron_cgrpo.rewards.final_answer import STATEMENT

COPIED = 0.95
"""Share of words in common (difflib's ratio) from which the working counts as the attempt's own."""

SHORTEST_WORKING = 5
"""Words. Less than a sentence derives nothing."""

_STATED = re.compile(rf"(?i:\b(?:the\s+)?(?:final\s+)?{STATEMENT})[^\n]*")
_WORD = re.compile(r"\w+|[^\w\s]")


def supported(refinement: str, attempt: str) -> bool:
    """False where a right refinement of a wrong attempt has no working of its own.

    That is: without its statement of the answer it has fewer than ``SHORTEST_WORKING`` words, or its words are (nearly)
    those of the attempt, whose steps led to another answer. Such a refinement can only have been told the answer. The
    rule is lenient by design: wrong steps that are newly written pass.
    """
    new, old = working(refinement), working(attempt)
    if sum(word[0].isalnum() for word in new) < SHORTEST_WORKING:
        return False
    return SequenceMatcher(None, new, old, autojunk=False).quick_ratio() < COPIED or _ratio(new, old) < COPIED


def working(text: str) -> list[str]:
    """The words and signs before the last box, without the sentence that announces the answer."""
    boxes = list(re.finditer(r"\\boxed\s*\{", text))
    steps = text[: boxes[-1].start()] if boxes else text
    return _WORD.findall(_STATED.sub("", steps))


def _ratio(new: list[str], old: list[str]) -> float:
    return SequenceMatcher(None, new, old, autojunk=False).ratio()

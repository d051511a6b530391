"""What a refinement changed in the response that it refines, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import chain, groupby, takewhile
from operator import itemgetter

SAME, GONE, NEW = "same", "gone", "new"
_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")


def word_diff(old: str, new: str) -> list[tuple[str, str]]:
    """(kind, text) in reading order: ``same`` and ``gone`` together are ``old``, ``same`` and ``new`` are ``new``.

    A word is compared with the white space after it. Between what both begin and end with, words that are frequent in
    a long text do not start a match: that keeps the time near linear and the result readable.
    """
    before, after = _WORD.findall(old), _WORD.findall(new)
    head = _common(before, after)
    begin, before, after = before[:head], before[head:], after[head:]
    tail = _common(before[::-1], after[::-1])
    end, before, after = before[len(before) - tail :], before[: len(before) - tail], after[: len(after) - tail]
    parts = [(SAME, begin)]
    for operation, i, j, k, m in SequenceMatcher(None, before, after).get_opcodes():
        parts += [(SAME, before[i:j])] if operation == "equal" else [(GONE, before[i:j]), (NEW, after[k:m])]
    return _joined([*parts, (SAME, end)])


def _joined(parts: list[tuple[str, list[str]]]) -> list[tuple[str, str]]:
    """Neighbours of one kind are one part."""
    runs = (
        (kind, "".join(chain.from_iterable(words for _, words in run))) for kind, run in groupby(parts, itemgetter(0))
    )
    return [(kind, text) for kind, text in runs if text]


def _common(one: list[str], other: list[str]) -> int:
    """How many words both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

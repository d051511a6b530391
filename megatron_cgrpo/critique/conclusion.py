"""The verdict that closes a chain-of-thought critique."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONCLUSION = re.compile(r"Conclusion:\s*(correct|incorrect)\s*\[END\]", re.IGNORECASE)


@dataclass(frozen=True)
class Conclusion:
    """``correct`` is None when the text has no usable verdict; ``cause`` then says why."""

    correct: bool | None
    cause: str | None = None


def parse_conclusion(text: str) -> Conclusion:
    """Reads ``Conclusion: correct [END]`` or ``Conclusion: incorrect [END]`` (arXiv 2506.03106, critique prompts).

    A text that says both has contradicted itself (cause ``contradictory``); one that says neither, or never reached
    ``[END]``, has concluded nothing (cause ``no_conclusion``). Repeating the same verdict is no contradiction.
    """
    verdicts = {match.lower() for match in _CONCLUSION.findall(text)}
    if len(verdicts) != 1:
        return Conclusion(None, "contradictory" if verdicts else "no_conclusion")
    return Conclusion(verdicts == {"correct"})

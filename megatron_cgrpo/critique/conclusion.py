"""The verdict that closes a chain-of-thought critique."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONCLUSION = re.compile(r"Conclusion[*_`]*:[\s*_`'\"]*(correct|incorrect)[\s*_`'\".!]*\[END\]", re.IGNORECASE)


@dataclass(frozen=True)
class Conclusion:
    """``correct`` is None when the text has no usable verdict; ``cause`` then says why."""

    correct: bool | None
    cause: str | None = None


def parse_conclusion(text: str) -> Conclusion:
    """Reads ``Conclusion: correct [END]`` or ``Conclusion: incorrect [END]`` (arXiv 2506.03106, critique prompts).

    Emphasis, quotation marks and a full stop around the verdict are let pass. What a reasoning model thought, up to the
    last ``</think>``, concludes nothing. Of the rest, a text that says both has contradicted itself (cause
    ``contradictory``), whichever came last: the refiner reads all of it. One that says neither, or never reached
    ``[END]``, has concluded nothing (cause ``no_conclusion``). Repeating the same verdict is no contradiction.
    """
    said = text.rpartition("</think>")[2]
    if said.lstrip().startswith("<think>"):  # and never stopped thinking
        said = ""
    verdicts = {match.lower() for match in _CONCLUSION.findall(said)}
    if len(verdicts) != 1:
        return Conclusion(None, "contradictory" if verdicts else "no_conclusion")
    return Conclusion(verdicts == {"correct"})

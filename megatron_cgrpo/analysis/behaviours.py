"""Six cognitive behaviours in English mathematical prose, found by rule.

Planning is ``subgoals`` and ``summary``; reflection is ``verification``, ``backtracking``, ``backward_chaining`` and
``anticipation`` (arXiv 2506.03106). The rules are phrases in which writers announce what they do. They are meant to be
precise: a behaviour without its usual words is missed. ``tests/analysis/labelled_behaviours.jsonl`` measures both, and
docs/analysis.md has the figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PLANNING = ("subgoals", "summary")
REFLECTION = ("verification", "backtracking", "backward_chaining", "anticipation")
BEHAVIOURS = PLANNING + REFLECTION

DEFINITIONS: Mapping[str, str] = {
    "subgoals": "divides the problem into parts, or announces what will be found before something else",
    "summary": "draws together what has been established so far, or the results of several parts",
    "verification": "checks a result or a step: recomputes it, substitutes it back, tests it on a case",
    "backtracking": "finds that a step or an approach was wrong, and corrects or abandons it",
    "backward_chaining": "reasons from the wanted result back to what would give it",
    "anticipation": "foresees a difficulty, an exception or a special case before it does harm",
}

MIN_WORDS = 5
"""Words of two letters or more that make a response prose. Without prose there is nothing for these rules to read."""

_I = r"(?:I|we|let us|let's|I'll|we'll)"
_CHECK = r"(?:check|double[- ]check|verify|confirm|recheck)"
_FIND = r"(?:find|determine|compute|calculate|count|solve|express|establish|identify|isolate|set up|figure out)"
_OBSTACLE = r"(?:extraneous|twice|double[- ]count\w*|undefined|divid\w+ by zero|overlap\w*|degenerate|overlook\w*)"
_MUST = r"(?:we need|we must|must|has to|have to|needs? to)"

_PHRASES: Mapping[str, tuple[str, ...]] = {
    "subgoals": (
        r"\bstep (?:\d+|one|two|three)\s*[:.)]",
        rf"\bfirst(?:ly)?,? (?:{_I} )?(?:will |shall |can |(?:need|have|want) to )?{_FIND}\b",
        rf"{_I} (?:will |shall |need to |must |can )?first (?:need to |have to )?{_FIND}\b",
        r"\b(?:begin|start) (?:by|with) (?:\w+ing|the)\b.{0,80}(?:\bthen\b|\bafter that\b|\bnext\b)",
        rf"\bbefore {_I} (?:can |could )?{_FIND}\b",
        r"\bbreak(?:ing)? (?:\w+ ){0,3}(?:down|into)\b",
        r"\b(?:split|divide|separate) the (?:problem|calculation|task|proof|solution|question) into\b",
        r"\bto do (?:two|three|four|several) things\b",
        r"\bproceed in (?:two|three|four|several|\d+) (?:steps|stages|parts)\b",
        r"\b(?:the|my|our|a) (?:plan|strategy|approach)(?: here)?(?: is to\b|\s*:| will be to\b)",
    ),
    "summary": (
        r"\b(?:in|to) (?:summary|summari[sz]e|conclusion|conclude|recap)\b",
        r"\b(?:so|thus) far,? (?:we|I) (?:have|know|found)\b",
        r"\b(?:putting|bringing) (?:it|this|everything|these|them)(?: all)? together\b",
        r"\bcombining (?:these|the|both|all)(?: \w+)? (?:results|facts|cases|equations|parts)\b",
        r"(?:^|[.!?\n]\s*)overall,",
        r"\bto sum up\b",
    ),
    "verification": (
        rf"(?:\blet me|\blet's|\blet us|\bI(?:'ll| will)?|\bwe(?:'ll| will| can)?|\bto|\bnow) {_CHECK}\b"
        r"(?! (?:for|in|out|into|your|with)\b)",
        r"(?:^|[.!?\n]\s*)(?:checking|verifying|verification|check)\s*[:,]",
        r"\b(?:substitut\w+|plug\w*|put\w*) .{1,40}\bback\b",
        r"\bsanity check\b",
        r"\b(?:is|was) (?:this|that|it) (?:correct|right)\s*\?",
        r"\brecompute\b",
        r"\b(?:which|this|that) (?:indeed )?(?:matches|agrees with) (?:the|our)\b",
        r", as (?:it|they) should\b",
    ),
    "backtracking": (
        r"\bwait\s*[,.!]",
        r"\bhold on\b",
        r"\b(?:that|this|it)(?:'s| is| was) (?:not right|wrong|incorrect|not correct|a mistake)\b",
        r"\b(?:my|our) (?:\w+ )?(?:claim|step|result|answer|assumption)s? (?:is|was|were) (?:wrong|incorrect)\b",
        r"\b(?:I|we) (?:have )?(?:made|make) (?:a|an) (?:\w+ )?(?:mistake|error)\b",
        r"\b(?:I|we) (?:forgot|misread|miscounted|miscalculated|overlooked|misapplied)\b",
        r"\b(?:I|we) used the wrong\b",
        r"\b(?:approach|method|idea) (?:does not|doesn't|did not|didn't|will not|won't) work\b",
        r"\b(?:that|this) leads nowhere\b",
        r"\btry (?:a different|another|something else|again)\b",
        r"\b(?:going|go) back to the (?:first|second|third|previous|original|last|start|beginning)\b",
        r"\bon second thought\b",
        r"\bscratch that\b",
        r"\boops\b",
        r"\bactually, (?:no|that|this|I|we)\b",
        r"\bstart over\b",
        r"\bredo\b",
    ),
    "backward_chaining": (
        r"\bwork(?:ing)? (?:it |this )?backwards?\b",
        r"\bin reverse\b",
        rf"\bto (?:get|obtain|reach|make|have|end up with) [^.;\n]{{1,50}}, [^.;\n]{{0,30}}\b{_MUST}\b",
        rf"\bin order (?:to|for) [^.;\n]{{1,60}}, [^.;\n]{{0,30}}\b{_MUST}\b",
        r"\bit (?:suffices|is (?:enough|sufficient)) to (?:show|prove|find|check)\b",
        r"\bstart(?:ing)? (?:from|with) the (?:desired|wanted|final|target|required) (?:result|answer|value)\b",
    ),
    "anticipation": (
        r"(?:^|[.!?\n]\s*)careful\b",
        r"\b(?:be|being) careful\b",
        r"\bkeep in mind\b",
        r"\bwhat (?:if|would happen if|happens if)\b",
        r"\b(?:may|might|could|can) (?:introduce|produce|lead to|cause|fail|be) [^.\n]{0,60}" + _OBSTACLE,
        rf"\b{_OBSTACLE}[^.\n]{{0,40}}\b(?:may|might|could)\b",
        r"\b(?:may|might|could) fail\b",
        r"\b(?:must not|cannot|should not|not to) (?:divide by zero|double[- ]count|forget|overlook)\b",
        r"\b(?:potential|possible) (?:pitfall|issue|problem|trap|difficulty)\b",
        r"\b(?:edge|corner|special|degenerate) case\b[^.\n]{0,40}\b(?:separately|in which|where|when)\b",
        r"\b(?:consider|treat|handle|mind) the (?:edge|corner|special|degenerate) case\b",
        r"\b(?:has|have|needs?) to be treated separately\b",
        r"\bwatch out\b",
    ),
}
_RULES = {name: re.compile("|".join(_PHRASES[name]), re.IGNORECASE) for name in BEHAVIOURS}
_MATHS = re.compile(r"\\[a-zA-Z]+|\$[^$]*\$")
_WORD = re.compile(r"[a-zA-Z]{2,}")


def is_prose(text: str) -> bool:
    """Whether there are words to read, formulas aside."""
    return len(_WORD.findall(_MATHS.sub(" ", text))) >= MIN_WORDS


def find_behaviours(text: str) -> frozenset[str]:
    """The behaviours, of ``BEHAVIOURS``, that ``text`` announces at least once."""
    return frozenset(name for name, rule in _RULES.items() if rule.search(text))

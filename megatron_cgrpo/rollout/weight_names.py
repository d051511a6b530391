"""Is a weight update complete?"""

from __future__ import annotations

from megatron_cgrpo.weights.families import HF_HEAD


class IncompleteWeights(RuntimeError):
    """The names of an update are not those that the engine's model needs."""


def check_complete(expected: set[str], received: set[str]) -> None:
    """Raises IncompleteWeights naming what is missing or unknown (a tied ``lm_head.weight`` may come or not)."""
    missing = sorted(expected - received)
    unknown = sorted(received - expected - {HF_HEAD})
    problems = [f"missing {', '.join(missing)}"] if missing else []
    problems += [f"unknown {', '.join(unknown)}"] if unknown else []
    if problems:
        raise IncompleteWeights(f"the weight update is refused: {'; '.join(problems)}. Push every weight of the model")

"""Pass@k without bias."""

from collections.abc import Sequence
from math import comb
from statistics import fmean


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that ``k`` of ``samples`` answers, drawn without replacement, hold a correct one.

    ``1 - C(n - c, k) / C(n, k)``: the unbiased estimate of 1 - (1 - p)^k (Chen et al., arXiv 2107.03374, eq. 1), in
    whole numbers up to the one division, so that it is the nearest double for any number of samples. Raises ValueError
    unless ``0 <= correct <= samples`` and ``1 <= k <= samples``.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"correct={correct}: is not within 0 and samples={samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: is not within 1 and samples={samples}: draw more samples")
    draws = comb(samples, k)
    return (draws - comb(samples - correct, k)) / draws


def mean_pass_at_k(correct: Sequence[int], samples: int) -> dict[str, float]:
    """``pass_at_<k>`` for the powers of two up to ``samples``, over problems with ``correct`` right answers each."""
    powers = [1 << power for power in range(samples.bit_length())]
    return {f"pass_at_{k}": fmean(pass_at_k(samples, c, k) for c in correct) for k in powers}

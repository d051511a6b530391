"""Pass@k without bias."""

from collections.abc import Mapping, Sequence
from math import comb


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


def mean_pass_at_k(counts: Sequence[tuple[int, int]]) -> dict[int, float]:
    """By k, for the powers of two up to the fewest answers that a problem has: the mean over problems.

    ``counts`` are (answers, right ones among them), one pair a problem; there is at least one.
    """
    fewest = min(samples for samples, _ in counts)
    powers = [1 << power for power in range(fewest.bit_length())]
    return {k: sum(pass_at_k(samples, correct, k) for samples, correct in counts) / len(counts) for k in powers}


def read_pass_at_k(scores: Mapping[str, float], prefix: str = "") -> dict[int, float]:
    """By k, what ``scores`` have as ``<prefix>pass_at_<k>``; parts of the problems (``pass_at_1_…``) are left out."""
    start = f"{prefix}pass_at_"
    named = {key.removeprefix(start): value for key, value in scores.items() if key.startswith(start)}
    return {int(k): float(value) for k, value in named.items() if k.isdigit()}

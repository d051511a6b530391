"""Pass@k without bias."""

from math import comb


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that ``k`` of ``samples`` answers, drawn without replacement, hold a correct one.

    ``1 - C(n - c, k) / C(n, k)``: the unbiased estimate of 1 - (1 - p)^k (Chen et al., arXiv 2107.03374, eq. 1).
    Raises ValueError unless ``0 <= correct <= samples`` and ``1 <= k <= samples``.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"correct={correct}: is not within 0 and samples={samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: is not within 1 and samples={samples}: draw more samples")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)

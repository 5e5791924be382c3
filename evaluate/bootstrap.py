"""How sure a test-set number is: 1,000 bootstrap replicates of it, comparable between checkpoints.

The resampled indices depend only on the test set's hash, so replicate r of two checkpoints resamples the same images,
and a paired difference is replicate minus replicate, with no metric code in the report (DESIGN §5).
"""

import numpy as np

NUM_REPLICATES = 1000


def replicate_means(values: np.ndarray, *, manifest_sha256: str) -> np.ndarray:
    """Bootstrap replicates of the mean of `values`.

    values: (N,) one number a test sample (1.0 for correct, 0.0 for wrong, say). Returns (1000,) float64, same unit.
    """
    num_samples = len(values)
    rng = np.random.default_rng(int(manifest_sha256[:16], 16))
    means = np.empty(NUM_REPLICATES)
    for replicate in range(NUM_REPLICATES):
        means[replicate] = values[rng.integers(0, num_samples, num_samples)].mean()
    return means


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The central 95 % of the replicates (percentile interval)."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return float(low), float(high)

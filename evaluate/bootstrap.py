"""How sure a test-set number is: 1,000 bootstrap replicates of it, comparable between checkpoints.

The resampled indices depend only on the test set's hash, so replicate r of two checkpoints resamples the same images,
and a paired difference is replicate minus replicate, with no metric code in the report (DESIGN §5).
"""

from collections.abc import Iterator

import numpy as np

NUM_REPLICATES = 1000


def replicate_means(values: np.ndarray, *, manifest_sha256: str) -> np.ndarray:
    """Bootstrap replicates of the mean of `values`.

    values: (N,) one number a test sample (1.0 for correct, 0.0 for wrong, say). Returns (1000,) float64, same unit.
    """
    means = np.empty(NUM_REPLICATES)
    for replicate, drawn in enumerate(_resamples(len(values), manifest_sha256)):
        means[replicate] = values[drawn].mean()
    return means


def resample_counts(num_samples: int, *, manifest_sha256: str) -> np.ndarray:
    """How often each replicate draws each test sample, for a metric that is no mean (average precision, IoU).

    Returns (1000, num_samples) uint16, every row summing to num_samples: the same draws as `replicate_means`.
    """
    counts = np.empty((NUM_REPLICATES, num_samples), dtype=np.uint16)  # a count near 65,536 has probability nil
    for replicate, drawn in enumerate(_resamples(num_samples, manifest_sha256)):
        counts[replicate] = np.bincount(drawn, minlength=num_samples)
    return counts


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The central 95 % of the replicates (percentile interval)."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return float(low), float(high)


def _resamples(num_samples: int, manifest_sha256: str) -> Iterator[np.ndarray]:
    """The (num_samples,) indices of one replicate after the other. Every stored interval depends on this stream."""
    rng = np.random.default_rng(int(manifest_sha256[:16], 16))
    for _ in range(NUM_REPLICATES):
        yield rng.integers(0, num_samples, num_samples)

"""Bootstrap replicates: paired between checkpoints, centred, and as wide as theory says."""

import numpy as np

from evaluate.bootstrap import NUM_REPLICATES, interval, replicate_means

SHA = "0123456789abcdef" * 4


def test_the_interval_is_as_wide_as_the_binomial_one() -> None:
    values = np.array([1.0] * 600 + [0.0] * 400)
    replicates = replicate_means(values, manifest_sha256=SHA)
    low, high = interval(replicates)
    assert len(replicates) == NUM_REPLICATES
    assert abs((high - low) / 2 - 1.96 * np.sqrt(0.6 * 0.4 / 1000)) < 0.003
    assert abs(replicates.mean() - 0.6) < 0.003


def test_replicates_of_two_checkpoints_resample_the_same_images() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(500) < 0.5).astype(float)
    shifted = replicate_means(first + 1.0, manifest_sha256=SHA) - replicate_means(first, manifest_sha256=SHA)
    np.testing.assert_allclose(shifted, 1.0)  # a paired difference of a constant has no spread


def test_another_test_set_has_other_replicates() -> None:
    values = np.arange(50.0)
    other = replicate_means(values, manifest_sha256="f" * 64)
    assert not np.array_equal(replicate_means(values, manifest_sha256=SHA), other)

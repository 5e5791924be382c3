"""Bootstrap replicates: paired between checkpoints, centred, and as wide as theory says."""

import numpy as np

from evaluate.bootstrap import NUM_REPLICATES, interval, replicate_means, resample_counts

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


def test_the_draws_are_those_of_every_interval_ever_stored() -> None:
    values = np.random.default_rng(1).normal(size=137)
    rng = np.random.default_rng(0x0123456789ABCDEF)
    expected = np.array([values[rng.integers(0, 137, 137)].mean() for _ in range(1000)])
    np.testing.assert_array_equal(replicate_means(values, manifest_sha256=SHA), expected)


def test_counts_are_the_same_draws_as_the_means() -> None:
    values = np.random.default_rng(2).normal(size=300)
    counts = resample_counts(300, manifest_sha256=SHA)
    assert counts.shape == (NUM_REPLICATES, 300) and counts.dtype == np.uint16
    np.testing.assert_allclose(counts @ values / 300, replicate_means(values, manifest_sha256=SHA), rtol=0, atol=1e-12)


def test_counts_hold_for_test_sets_beyond_16_bits() -> None:
    counts = resample_counts(70_000, manifest_sha256=SHA)
    assert (counts.sum(axis=1, dtype=np.int64) == 70_000).all()
    assert counts[:, 65_536:].any(axis=0).all() and counts.max() < 30


def test_one_sample_is_drawn_every_time() -> None:
    assert (resample_counts(1, manifest_sha256=SHA) == 1).all()

"""The batched SVM solver against LinearSVC, against its own definition, and at its edges."""

import re
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from evaluate import svm_newton, svm_solver
from evaluate.svm_solver import ConvergenceError, Fit, Precision, relative_gradient, solve, solve_reference
from zoo.errors import ConfigError, DataError, NonFiniteError, ZooError

COSTS = (1e3, 1e-6, 1.0, 0.03, 1e-3)  # not sorted: positions count


def data(
    seed: int, rows: int, dims: int, tasks: int, *, decay: float = 0.0, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """L2-normalised rows whose spectrum falls to 10^-decay, and labels that half follow them, some of them 0."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(1, 10.0**-decay, dims)
    features = (rng.normal(size=(rows, dims)) + 0.5) * scales
    scores = features @ (rng.normal(size=(dims, tasks)) / scales[:, None]) / dims**0.5 + noise * rng.normal(
        size=(rows, tasks)
    )
    targets = np.where(scores > np.quantile(scores, 0.7, axis=0), 1, -1).astype(np.int8)
    targets[rng.random((rows, tasks)) < 0.1] = 0
    return features / np.linalg.norm(features, axis=1, keepdims=True), targets


def solved(
    features: np.ndarray,
    targets: np.ndarray,
    costs: Sequence[float] = COSTS,
    *,
    precision: Precision = "fp64",
    tolerance: float = 1e-9,
    memory_mb: int = 600,
) -> dict[tuple[int, int], Fit]:
    """(task, cost) → its own Fit."""
    found: dict[tuple[int, int], Fit] = {}
    for fit in solve(
        features, targets, costs, positive_weight=2.0, precision=precision, tolerance=tolerance, memory_mb=memory_mb
    ):
        for i, task in enumerate(fit.tasks):
            one = slice(i, i + 1)
            assert (int(task), fit.cost) not in found
            found[int(task), fit.cost] = Fit(
                tasks=fit.tasks[one],
                cost=fit.cost,
                weights=fit.weights[one],
                bias=fit.bias[one],
                iterations=fit.iterations[one],
                gradient=fit.gradient[one],
                converged=fit.converged[one],
            )
    assert sorted(found) == [(t, c) for t in range(targets.shape[1]) for c in range(len(costs))]
    return found


SHAPES = {
    "large, N > D": (300, 40, 0.0),
    "large, D > N": (260, 400, 0.0),
    "large, ill-conditioned": (320, 80, 3.0),
    "small": (60, 90, 0.0),
    "small, ill-conditioned": (90, 30, 3.0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_what_is_claimed_at_every_cost(shape: str) -> None:
    rows, dims, decay = SHAPES[shape]
    features, targets = data(0, rows, dims, 3, decay=decay)
    for (task, cost), fit in solved(features, targets).items():
        own = targets[:, task] != 0
        true = relative_gradient(
            features[own], targets[own, task], fit.weights[0], fit.bias[0], cost=COSTS[cost], positive_weight=2.0
        )
        assert true <= 1.1e-9 and fit.gradient[0] <= 1e-9 and fit.converged.all()
        assert abs(true - fit.gradient[0]) <= 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_linear_svc_at_a_tight_tolerance(shape: str) -> None:
    rows, dims, decay = SHAPES[shape]
    features, targets = data(1, rows, dims, 2, decay=decay)
    own = solved(features, targets, (1e-6, 1e-3, 1.0, 30.0))
    for (task, cost), fit in own.items():
        keep = targets[:, task] != 0
        model = LinearSVC(
            C=(1e-6, 1e-3, 1.0, 30.0)[cost],
            class_weight={1: 2.0, -1: 1.0},
            dual=True,  # pyright: ignore[reportArgumentType]
            tol=1e-10,
            max_iter=200_000,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whether it got there is what is compared here
            model.fit(features[keep], targets[keep, task])
        expected = np.append(model.coef_, model.intercept_)
        found = np.append(fit.weights, fit.bias)
        assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
        aps = [average_precision_score(targets[keep, task] > 0, features[keep] @ w[:-1]) for w in (found, expected)]
        assert abs(aps[0] - aps[1]) < 5e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_reaches_its_tolerance_and_ranks_as_fp64(shape: str) -> None:
    rows, dims, decay = SHAPES[shape]
    features, targets = data(2, rows, dims, 2, decay=decay)
    single = solved(features.astype(np.float32), targets, (1e-6, 1e-2, 1.0, 100.0), precision="fp32", tolerance=1e-5)
    double = solved(features, targets, (1e-6, 1e-2, 1.0, 100.0))
    for (task, cost), fit in single.items():
        own = targets[:, task] != 0
        assert fit.weights.dtype == np.float32
        true = relative_gradient(
            features[own],
            targets[own, task],
            fit.weights[0],
            float(fit.bias[0]),
            cost=(1e-6, 1e-2, 1.0, 100.0)[cost],
            positive_weight=2.0,
        )
        assert true <= 2e-5
        aps = [
            average_precision_score(targets[own, task] > 0, features[own] @ w)
            for w in (fit.weights[0], double[task, cost].weights[0])
        ]
        assert abs(aps[0] - aps[1]) < 5e-4


def test_two_points_by_hand() -> None:
    # x = ±1, C = 1, s = (2, 1). Both rows active: stationarity is w = 4(1 − w − b) + 2(1 − w + b), b = 4(1 − w − b)
    # − 2(1 − w + b), i.e. 7w + 2b = 6 and 2w + 7b = 2; so w = 38/45, b = 2/45.
    features, targets = np.array([[1.0], [-1.0]]), np.array([[1], [-1]], dtype=np.int8)
    fit = solved(features, targets, (1.0,))[0, 0]
    assert fit.weights[0, 0] == pytest.approx(38 / 45, abs=1e-8) and fit.bias[0] == pytest.approx(2 / 45, abs=1e-8)
    start = relative_gradient(features, targets[:, 0], np.zeros(1), 0.0, cost=1.0, positive_weight=2.0)
    assert start == 1.0


def test_rows_outside_a_task_have_no_say() -> None:
    features, targets = data(3, 400, 30, 4)
    targets[200:, 0] = 0
    changed = features.copy()
    changed[200:] = changed[200:][::-1]
    one, other = solved(features, targets, (1.0,))[0, 0], solved(changed, targets, (1.0,))[0, 0]
    alone = solved(features[:200], targets[:200, :1], (1.0,))[0, 0]
    for fit in (other, alone):
        np.testing.assert_allclose(fit.weights, one.weights, atol=1e-7)


def test_less_memory_splits_the_work_and_changes_nothing() -> None:
    features, targets = data(4, 300, 20, 40)
    targets[:, 20:][30:] = 0
    targets[:2, 20:] = [[1], [-1]]
    with pytest.raises(ConfigError) as refused:
        solved(features, targets, memory_mb=1)
    match = re.search(r"at least (\d+) for 300 rows and tasks of up to \d+, found 1", str(refused.value))
    assert match is not None
    least = svm_solver._plan(targets, num_features=20, num_costs=5, itemsize=8, mb=int(match[1]))
    plenty = svm_solver._plan(targets, num_features=20, num_costs=5, itemsize=8, mb=4096)
    assert len(least.batches) >= len(plenty.batches) == 1
    whole, split = solved(features, targets, memory_mb=4096), solved(features, targets, memory_mb=int(match[1]))
    for key, fit in whole.items():
        np.testing.assert_allclose(split[key].weights, fit.weights, atol=1e-6 * np.abs(fit.weights).max())


def test_direct_and_iterated_steps_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = data(5, 300, 60, 4)
    found = []
    for price in (0.0, 1e9):  # always Cholesky; never
        monkeypatch.setattr(svm_newton, "DIRECT_COST", price)
        found.append(solved(features, targets))
    for key, fit in found[0].items():
        np.testing.assert_allclose(found[1][key].weights, fit.weights, atol=1e-6 * np.abs(fit.weights).max())


def test_the_same_call_gives_the_same_bits() -> None:
    features, targets = data(6, 250, 20, 5)
    once, again = solved(features, targets), solved(features, targets)
    assert all((fit.weights == again[key].weights).all() for key, fit in once.items())


def test_separable_data_score_100_and_shuffled_labels_chance() -> None:
    features, _ = data(7, 600, 10, 1)
    positive = features[:, 0] > np.quantile(features[:, 0], 0.7)
    labels = np.where(positive, 1, -1).astype(np.int8)[:, None]
    features[:, 0] += np.where(positive, 0.5, 0.0)  # a gap
    shuffled = np.random.default_rng(0).permutation(labels)
    for given, low, high in ((labels, 1.0, 1.0), (shuffled, 0.2, 0.45)):
        fit = solved(features[:400], given[:400], (10.0,))[0, 0]
        ap = average_precision_score(given[400:, 0] > 0, features[400:] @ fit.weights[0])
        assert low <= ap <= high


def test_degenerate_features_are_solved_too() -> None:
    features = np.zeros((300, 4))
    features[:, 0] = 1.0
    targets = np.ones((300, 1), dtype=np.int8)
    targets[:200] = -1  # with weight 2 on 100 positives everything cancels: w = 0 is the solution
    fit = solved(features, targets, (1e-3, 1.0))[0, 1]
    np.testing.assert_allclose(fit.weights, 0, atol=1e-6)


def test_progress_counts_every_fit() -> None:
    features, targets = data(8, 60, 5, 3)
    for run in (
        lambda told: solve(
            features,
            targets,
            (1.0, 2.0),
            positive_weight=2.0,
            precision="fp64",
            tolerance=1e-6,
            memory_mb=600,
            progress=told.append,
        ),
        lambda told: solve_reference(
            features,
            targets,
            (1.0, 2.0),
            positive_weight=2.0,
            tolerance=1e-4,
            max_iterations=2000,
            num_workers=0,
            progress=told.append,
        ),
    ):
        told: list[int] = []
        list(run(told))
        assert sum(told) == 6


def test_the_reference_is_linear_svc_and_tells_what_did_not_converge() -> None:
    features, targets = data(9, 120, 200, 2)
    fits = list(
        solve_reference(
            features, targets, (1e-3, 100.0), positive_weight=2.0, tolerance=1e-8, max_iterations=20, num_workers=0
        )
    )
    assert [(int(fit.tasks[0]), fit.cost) for fit in fits] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [bool(fit.converged[0]) for fit in fits] == [True, False, True, False]
    assert fits[1].iterations[0] == 20 and fits[1].gradient[0] > 1e-6 > fits[0].gradient[0]
    np.testing.assert_allclose(solved(features, targets, (1e-3,))[1, 0].weights, fits[2].weights, rtol=1e-4, atol=1e-9)


def test_failing_to_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = data(10, 300, 40, 8)
    targets[targets == 0] = -1  # the same rows: one block
    fits = solve(
        features,
        targets,
        (1.0, 1000.0),
        positive_weight=2.0,
        precision="fp64",
        tolerance=1e-9,
        memory_mb=600,
        max_iterations=1,
    )
    with pytest.raises(ConvergenceError) as caught:
        list(fits)
    message = str(caught.value)
    assert isinstance(caught.value, ZooError) and "relative gradient 1e-09 in 1 Newton steps; choose fp64" in message
    assert "task 0, cost 1.0: reached " in message and "and 11 more" in message, message


def test_wrong_settings_are_told_together_and_at_once() -> None:
    features, targets = data(11, 20, 3, 1)
    with pytest.raises(ConfigError) as caught:
        solve(features, targets, (1.0, -1.0), positive_weight=0.0, precision="fp32", tolerance=1e-7, memory_mb=1)
    message = str(caught.value)
    assert "costs: expected positive finite numbers, found [-1.0]" in message
    assert "positive_weight: expected a positive finite number, found 0.0" in message
    assert "tolerance: expected at least 1e-05 in fp32, found 1e-07; choose fp64" in message
    with pytest.raises(ConfigError, match="costs: expected at least one, found none\n.*num_workers: .*found -1"):
        solve_reference(features, targets, (), positive_weight=2.0, tolerance=1e-4, max_iterations=10, num_workers=-1)


def wrong(features: np.ndarray, targets: np.ndarray) -> None:
    solve(features, targets, (1.0,), positive_weight=2.0, precision="fp64", tolerance=1e-6, memory_mb=600)


def test_wrong_data_are_refused() -> None:
    features, targets = data(12, 400, 3, 3)
    with pytest.raises(DataError, match=r"the same N, none empty; found \(399, 3\) and \(400, 3\)"):
        wrong(features[1:], targets)
    with pytest.raises(DataError, match="expected float32 or float64, found float16"):
        wrong(features.astype(np.float16), targets)
    with pytest.raises(DataError, match=r"expected -1, 0 and \+1 only, found \[2\]"):
        wrong(features, np.where(targets > 0, 2, targets))
    one_sided = targets.copy()
    one_sided[one_sided[:, 1] > 0, 1] = 0
    with pytest.raises(DataError, match=r"task 1: 0 positives, \d+ negatives"):
        wrong(features, one_sided)
    bad = features.copy()
    bad[301, 1] = np.inf
    with pytest.raises(NonFiniteError, match="NaN or infinity in row 301"):
        wrong(bad, targets)

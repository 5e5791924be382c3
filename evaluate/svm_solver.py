"""How are all the linear SVMs of a benchmark solved, every class, fold and cost of them?

The problem of a task t (a column of `targets`: one class on one fold or low-shot set) and a cost C is liblinear's
L2-regularised squared-hinge SVM with a regularised bias, scikit-learn's LinearSVC(dual=True, intercept_scaling=1)
(protocols §2.6, §2.7):

    min over (w, b) of  ½(|w|² + b²) + C Σ sᵢ max(0, 1 − yᵢ(w·xᵢ + b))²,   sᵢ = positive_weight for yᵢ = +1, 1 for −1,

over the rows with y ≠ 0. `solve` is ours: K = XXᵀ + 1 is formed once; tasks over nearly the same rows (the classes of
one fold) share its sub-matrix, tasks of few rows (low-shot) get one of their own each; svm_newton.py derives how a
block is solved along its costs. `solve_reference` is LinearSVC, one fit at a time, for comparison and as a back end.

Convergence of both is told as |∇F(w, b)| / |∇F(0, 0)| at the same cost. Measured: fp32 reached 1e-5 in every fit of
5,011 x 2,048 features, three folds and the 19 costs of §2.6; fp64 is tested to 1e-9 on a few hundred rows.

Blocks, and so the order of operations, follow from the arguments alone: no process count enters.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evaluate import svm_newton
from zoo.errors import ConfigError, DataError, NonFiniteError, ZooError, several

Precision = Literal["fp32", "fp64"]
REACHABLE = {"fp32": 1e-5, "fp64": 1e-11}  # smaller tolerances are refused: rounding is too near
SMALL_ROWS = 192  # tasks of at most this many rows are factorised whole, many together
SAME_ROWS = 0.9  # tasks share a sub-kernel if this part of their rows is common
FEW_TASKS, MANY_ROWS = 8, 0.2  # fewer alike, with this part of all rows: they share all of K, for larger products
BLOCK_TASKS = 128
COLUMNS = 1024  # of the features, read at once
NEWTON_VECTORS = 32  # (n, m) arrays alive at once in a block, from above
SHOWN = 5  # problems listed before "and n more"


class ConvergenceError(ZooError):
    """A support vector machine was not solved to the tolerance asked for."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Solutions of some tasks at one cost.

    tasks: (t,) int64 columns of `targets`. cost: position in `costs`. weights: (t, D) and bias: (t,), in the solver's
    precision. iterations: (t,) int64 Newton steps, or liblinear's passes. gradient: (t,) float64
    |∇F(w, b)| / |∇F(0, 0)|. converged: (t,) bool; always true from `solve`, which raises otherwise.
    """

    tasks: np.ndarray
    cost: int
    weights: np.ndarray
    bias: np.ndarray
    iterations: np.ndarray
    gradient: np.ndarray
    converged: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Gram:
    """K = XXᵀ + 1 (N, N) in fp64, for several calls of `solve` with the same features."""

    kernel: Tensor
    sketches: dict[torch.dtype, svm_newton.Sketch] = field(default_factory=dict)

    def sketch(self, dtype: torch.dtype) -> svm_newton.Sketch:
        """K's leading part, found once for each precision."""
        if dtype not in self.sketches:
            self.sketches[dtype] = svm_newton.sketch(self.kernel.to(dtype))
        return self.sketches[dtype]


def make_gram(features: np.ndarray, *, device: torch.device | None = None) -> Gram:
    """What `solve` makes of (N, D) features before anything else. Raises DataError, NonFiniteError as it does."""
    _check_features(features)
    device = device or torch.device("cpu")
    kernel = torch.ones(len(features), len(features), dtype=torch.float64, device=device)  # the bias: a feature of 1
    for _, part in _columns(features, device):
        kernel.addmm_(part, part.T)
    return Gram(kernel=kernel)


def _columns(features: np.ndarray, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """The features in fp64, COLUMNS at a time."""
    for start in range(0, features.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        yield part, torch.tensor(np.ascontiguousarray(features[:, part]), dtype=torch.float64, device=device)


def solve(
    features: np.ndarray,
    targets: np.ndarray,
    costs: Sequence[float],
    *,
    positive_weight: float,
    precision: Precision,
    tolerance: float,
    memory_mb: int,
    device: torch.device | None = None,
    progress: Callable[[int], None] | None = None,
    max_iterations: int = 100,
    gram: Gram | None = None,
) -> Iterator[Fit]:
    """All (task, cost) pairs, each once, to |∇F| ≤ tolerance·|∇F(0)|.

    features: (N, D) floats, may be memory-mapped. targets: (N, T) in {−1, 0, +1}, 0 = not in the task. memory_mb bounds
    what is held beyond `features` and the Fits already handed out. progress: called with the number of fits finished
    since its last call. gram: of the same features, where it is there already. max_iterations: Newton steps a fit.
    Arguments are checked at the call, before any work. Raises ConfigError (costs, weight, tolerance, memory), DataError
    (shapes, labels, a task without positives or negatives), NonFiniteError; ConvergenceError at `max_iterations`.
    """
    problems = _settings_problems(costs, positive_weight, tolerance, max_iterations)
    if tolerance < REACHABLE[precision]:
        advice = "; choose fp64" if precision == "fp32" and tolerance >= REACHABLE["fp64"] else ""
        problems.append(
            f"tolerance: expected at least {REACHABLE[precision]} in {precision}, found {tolerance}{advice}"
        )
    if problems:
        raise ConfigError(several("The SVM solver's settings are wrong:", problems))
    _check_data(features, targets, is_known_finite=gram is not None)
    dtype = torch.float32 if precision == "fp32" else torch.float64
    plan = _plan(targets, num_features=features.shape[1], num_costs=len(costs), itemsize=dtype.itemsize, mb=memory_mb)
    return _solve(
        features,
        targets,
        [float(cost) for cost in costs],
        plan=plan,
        positive_weight=positive_weight,
        dtype=dtype,
        tolerance=tolerance,
        max_iterations=max_iterations,
        device=device or torch.device("cpu"),
        progress=progress,
        gram=gram,
    )


def _settings_problems(costs: Sequence[float], weight: float, tolerance: float, max_iterations: int) -> list[str]:
    problems = [] if len(costs) else ["costs: expected at least one, found none"]
    wrong = [cost for cost in costs if not (cost > 0 and math.isfinite(cost))]
    if wrong:
        problems.append(f"costs: expected positive finite numbers, found {wrong}")
    for name, value in (("positive_weight", weight), ("tolerance", tolerance), ("max_iterations", max_iterations)):
        if not (value > 0 and math.isfinite(value)):
            problems.append(f"{name}: expected a positive finite number, found {value}")
    return problems


def _check_features(features: np.ndarray) -> None:
    if features.dtype not in (np.float32, np.float64):
        raise DataError(f"features: expected float32 or float64, found {features.dtype}; convert them first.")
    for start in range(0, len(features), 256):
        bad = np.flatnonzero(~np.isfinite(features[start : start + 256]).all(1))
        if len(bad):
            raise NonFiniteError(
                f"features: expected finite values, found NaN or infinity in row {start + bad[0]}; the network that "
                "made them has diverged, or the file is damaged: extract the features again."
            )


def _check_data(features: np.ndarray, targets: np.ndarray, *, is_known_finite: bool = False) -> None:
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets) or 0 in features.shape + targets.shape:
        raise DataError(
            f"expected features (N, D) and targets (N, T) of the same N, none empty; found {features.shape} and "
            f"{targets.shape}; use the labels of the images that the features came from."
        )
    if not is_known_finite:
        _check_features(features)
    values = np.unique(targets)
    if not np.isin(values, (-1, 0, 1)).all():
        raise DataError(f"targets: expected -1, 0 and +1 only, found {values[~np.isin(values, (-1, 0, 1))].tolist()}.")
    positives, negatives = (targets > 0).sum(0), (targets < 0).sum(0)
    one_sided = np.flatnonzero((positives == 0) | (negatives == 0))
    if len(one_sided):
        problems = [f"task {t}: {positives[t]} positives, {negatives[t]} negatives" for t in one_sided[:SHOWN]]
        if len(one_sided) > SHOWN:
            problems.append(f"and {len(one_sided) - SHOWN} more")
        title = "Every task needs a positive and a negative row; leave these classes out or use more images:"
        raise DataError(several(title, problems))


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Tasks solved together. rows: (1, m) shared by all, or (t, m) one set a task, filled up with row 0."""

    tasks: np.ndarray
    rows: np.ndarray

    @property
    def shared(self) -> bool:
        return len(self.rows) == 1 and self.rows.shape[1] > SMALL_ROWS


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Batches of blocks whose solutions are turned into weights together."""

    batches: list[list[_Block]]


def _plan(targets: np.ndarray, *, num_features: int, num_costs: int, itemsize: int, mb: int) -> _Plan:
    """Blocks and batches that fit into `mb` megabytes. Raises ConfigError naming what is needed."""
    num_rows, num_tasks = targets.shape
    sizes = (targets != 0).sum(0)
    rank = min(num_rows, svm_newton.RANK)
    largest = int(sizes.max())
    double = 8 // itemsize
    per_task = num_costs * (double * num_rows + num_features + 1)  # a finished task: alpha and weights at every cost
    per_column = NEWTON_VECTORS * largest  # a task being solved
    # K in fp64 and once rounded for its leading part; that; a sub-kernel in both, a Cholesky matrix; the pairs
    fixed = (double + 1) * num_rows**2 + num_rows * (2 * rank + 32)
    fixed += (double + 2) * largest**2 + largest * rank * (rank + 1) // 2
    fixed += 2 * svm_newton.DENSE_ELEMENTS if (sizes <= SMALL_ROWS).any() else 0
    spare = mb * 2**20 // itemsize - fixed - 2 * double * num_rows * min(num_features, COLUMNS)
    width = min(BLOCK_TASKS, num_tasks)  # a block's tasks are a matter of the tasks alone: memory moves no bit
    least = width * per_task + max(width, svm_newton.WAVE_COLUMNS) * per_column
    if spare < least:
        needed = math.ceil((fixed + least + 2 * double * num_rows * min(num_features, COLUMNS)) * itemsize / 2**20)
        raise ConfigError(
            f"memory_mb: expected at least {needed} for {num_rows} rows and tasks of up to {largest}, found {mb}."
        )
    per_batch = max(width, (spare - max(width, svm_newton.WAVE_COLUMNS) * per_column) // per_task)
    blocks = _blocks(targets, sizes, width=width)
    batches: list[list[_Block]] = []
    for block in blocks:
        if not batches or sum(len(b.tasks) for b in batches[-1]) + len(block.tasks) > per_batch:
            batches.append([])
        batches[-1].append(block)
    return _Plan(batches=batches)


def _blocks(targets: np.ndarray, sizes: np.ndarray, *, width: int) -> list[_Block]:
    """Every task in one block of at most `width`: small ones with those of their size, others of their rows."""
    blocks: list[_Block] = []
    small = np.flatnonzero(sizes <= SMALL_ROWS)
    buckets = -(-sizes // 8)  # filling up costs at most 7 rows a task
    for bucket in np.unique(buckets[small]):
        alike = small[buckets[small] == bucket]
        for start in range(0, len(alike), width):
            tasks = alike[start : start + width]
            rows = np.zeros((len(tasks), sizes[tasks].max()), dtype=np.int64)
            for position, task in enumerate(tasks):
                rows[position, : sizes[task]] = np.flatnonzero(targets[:, task])
            blocks.append(_Block(tasks=tasks, rows=rows))
    large = np.flatnonzero(sizes > SMALL_ROWS)
    groups: list[list[int]] = []
    for task in large:
        mine = targets[:, task] != 0
        for group in groups:
            bigger = max(sizes[group[0]], sizes[task])
            if len(group) < width and min(sizes[group[0]], sizes[task]) >= SAME_ROWS * bigger:
                if np.count_nonzero(mine & (targets[:, group[0]] != 0)) >= SAME_ROWS * bigger:
                    group.append(int(task))
                    break
        else:
            groups.append([int(task)])
    lonely = [group for group in groups if len(group) < FEW_TASKS and sizes[group[0]] >= MANY_ROWS * len(targets)]
    for group in groups:
        if group not in lonely:
            rows = np.flatnonzero((targets[:, group] != 0).any(1))
            blocks.append(_Block(tasks=np.array(group, dtype=np.int64), rows=rows[None]))
    rest = np.array([task for group in lonely for task in group], dtype=np.int64)
    blocks += [
        _Block(tasks=rest[start : start + width], rows=np.arange(len(targets))[None])
        for start in range(0, len(rest), width)
    ]
    return blocks


def _solve(
    features: np.ndarray,
    targets: np.ndarray,
    costs: list[float],
    *,
    plan: _Plan,
    positive_weight: float,
    dtype: torch.dtype,
    tolerance: float,
    max_iterations: int,
    device: torch.device,
    progress: Callable[[int], None] | None,
    gram: Gram | None,
) -> Iterator[Fit]:
    # rounding of large alphas: see svm_newton
    exact = [2 * cost * max(1.0, positive_weight) > svm_newton.DRIFT for cost in costs]
    gram = gram or make_gram(features, device=device)
    kernel = gram.kernel
    leading = gram.sketch(dtype) if any(block.shared for batch in plan.batches for block in batch) else None
    for batch in plan.batches:
        tasks = np.concatenate([block.tasks for block in batch])
        alpha = torch.zeros(len(costs), len(tasks), len(features), dtype=torch.float64, device=device)
        iterations = np.empty((len(costs), len(tasks)), dtype=np.int64)
        gradient = np.empty((len(costs), len(tasks)), dtype=np.float64)
        done = 0
        for block in batch:
            here = slice(done, done + len(block.tasks))
            labels = targets[block.rows, block.tasks[:, None]].astype(np.int8)  # (t, m); shared rows broadcast
            filling = np.arange(block.rows.shape[1]) >= (targets[:, block.tasks] != 0).sum(0)[:, None]
            if not block.shared:
                labels[filling] = 0
            signs = torch.tensor(labels, device=device).to(dtype)
            weights = torch.where(signs > 0, positive_weight, 1.0).to(dtype) * signs.abs()
            rows = torch.tensor(block.rows, device=device)
            found = svm_newton.solve_path(
                _kernel(kernel, leading if block.shared else None, rows, dtype),
                signs,
                weights,
                costs,
                tolerance=tolerance,
                max_iterations=max_iterations,
                together=block.shared,
            )
            for index, solved in found.items():
                # added, not written: row 0 as filling has alpha 0
                alpha[index, here].scatter_add_(1, rows.expand(len(block.tasks), -1), solved.alpha)
                iterations[index, here] = solved.iterations.cpu().numpy()
                gradient[index, here] = solved.gradient.double().cpu().numpy()
            _require_convergence(block.tasks, costs, gradient[:, here], tolerance, max_iterations)
            done += len(block.tasks)
            if progress is not None:
                progress(len(block.tasks) * len(costs))
        weights = np.empty((len(costs), len(tasks), features.shape[1]), dtype=np.dtype(str(dtype).split(".")[1]))
        for part, values in _columns(features, device):
            rounded = values.to(dtype)
            for index, double in enumerate(exact):
                product = alpha[index] @ values if double else alpha[index].to(dtype) @ rounded
                weights[index, :, part] = product.cpu().numpy()
        bias = alpha.sum(2).to(dtype).cpu().numpy()
        for index in range(len(costs)):
            yield Fit(
                tasks=tasks,
                cost=index,
                weights=weights[index],
                bias=bias[index],
                iterations=iterations[index],
                gradient=gradient[index],
                converged=np.ones(len(tasks), dtype=bool),
            )


def _kernel(
    kernel: Tensor, leading: svm_newton.Sketch | None, rows: Tensor, dtype: torch.dtype
) -> svm_newton.SharedKernel | svm_newton.StackedKernels:
    if leading is None:
        return svm_newton.StackedKernels(kernel[rows[:, :, None], rows[:, None, :]], dtype)
    if rows.shape[1] == len(kernel):
        return svm_newton.SharedKernel(kernel, leading)
    part = svm_newton.Sketch(phi=leading.phi[rows[0]], rest=leading.rest)
    return svm_newton.SharedKernel(kernel[rows[0]][:, rows[0]], part)


def _require_convergence(
    tasks: np.ndarray, costs: Sequence[float], gradient: np.ndarray, tolerance: float, max_iterations: int
) -> None:
    missed = np.argwhere(~(gradient <= tolerance))  # NaN counts as missed
    if len(missed):
        problems = [f"task {tasks[t]}, cost {costs[c]}: reached {gradient[c, t]:.1e}" for c, t in missed[:SHOWN]]
        if len(missed) > SHOWN:
            problems.append(f"and {len(missed) - SHOWN} more")
        title = (
            f"SVM fits did not reach the relative gradient {tolerance} in {max_iterations} Newton steps; choose fp64, "
            "or a larger tolerance:"
        )
        raise ConvergenceError(several(title, problems))


def solve_reference(
    features: np.ndarray,
    targets: np.ndarray,
    costs: Sequence[float],
    *,
    positive_weight: float,
    tolerance: float,
    max_iterations: int,
    num_workers: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Fit]:
    """The same by LinearSVC (liblinear, dual, random_state 0), a task in each Fit; fp64.

    tolerance and max_iterations are liblinear's own (tol: largest projected gradient in the dual; protocols §2.6: 1e-4
    and 2000). liblinear often stops at max_iterations, as it did for published numbers: that is told in
    `Fit.converged`, not raised. num_workers: processes of one BLAS thread each; 0: this one. Errors as `solve`.
    """
    problems = _settings_problems(costs, positive_weight, tolerance, max_iterations)
    if num_workers < 0:
        problems.append(f"num_workers: expected 0 or more, found {num_workers}")
    if problems:
        raise ConfigError(several("The SVM solver's settings are wrong:", problems))
    _check_data(features, targets)
    return _solve_reference(
        features,
        targets,
        costs,
        positive_weight=positive_weight,
        tolerance=tolerance,
        max_iterations=max_iterations,
        num_workers=num_workers,
        progress=progress,
    )


def _solve_reference(
    features: np.ndarray,
    targets: np.ndarray,
    costs: Sequence[float],
    *,
    positive_weight: float,
    tolerance: float,
    max_iterations: int,
    num_workers: int,
    progress: Callable[[int], None] | None,
) -> Iterator[Fit]:
    from joblib import Parallel, delayed, parallel_config

    # workers map the features instead of getting copies
    pairs = ((task, index) for task in range(targets.shape[1]) for index in range(len(costs)))
    with parallel_config(backend="loky", inner_max_num_threads=1):
        fits = Parallel(n_jobs=max(1, num_workers), return_as="generator")(
            delayed(_reference_fit)(
                features, targets[:, task], task, index, float(costs[index]), positive_weight, tolerance, max_iterations
            )
            for task, index in pairs
        )
    for fit in fits:
        assert fit is not None  # the stubs' doubt, not joblib's
        if progress is not None:
            progress(1)
        yield fit


def _reference_fit(
    features: np.ndarray,
    labels: np.ndarray,
    task: int,
    index: int,
    cost: float,
    positive_weight: float,
    tolerance: float,
    max_iterations: int,
) -> Fit:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    rows = np.flatnonzero(labels)
    x, y = features[rows], labels[rows]
    model = LinearSVC(
        C=cost,
        class_weight={1: positive_weight, -1: 1.0},
        dual=True,  # pyright: ignore[reportArgumentType]  # its stubs know 'auto' only
        tol=tolerance,
        max_iter=max_iterations,
        intercept_scaling=1,
        random_state=0,
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    weights, bias = model.coef_[0], float(np.ravel(model.intercept_)[0])
    return Fit(
        tasks=np.array([task], dtype=np.int64),
        cost=index,
        weights=weights[None],
        bias=np.array([bias]),
        iterations=np.array([model.n_iter_], dtype=np.int64),
        gradient=np.array([relative_gradient(x, y, weights, bias, cost=cost, positive_weight=positive_weight)]),
        converged=np.array([not any(issubclass(w.category, ConvergenceWarning) for w in warned)]),
    )


def relative_gradient(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: float, *, cost: float, positive_weight: float
) -> float:
    """|∇F(w, b)| / |∇F(0, 0)|, by the definition above. features: (M, D), labels: (M,) ±1; in float64."""
    costs = cost * np.where(labels > 0, positive_weight, 1.0)
    slack = np.maximum(0.0, 1.0 - labels * (features @ weights.astype(np.float64) + bias))
    norms = []
    for start, pull in ((np.append(weights, bias), costs * labels * slack), (0.0, costs * labels)):
        norms.append(np.linalg.norm(start - 2 * np.append(pull @ features, pull.sum())))
    return float(norms[0] / norms[1])

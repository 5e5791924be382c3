"""How well do linear SVMs on frozen features tell which classes a picture shows, with all and with few examples?

*Full* (protocols §2.6): for every layer and class a squared-hinge SVM; its cost is the one with the best mean average
precision over stratified, unshuffled folds (scikit-learn's AP; ties to the first in list order), and it is fitted again
on all training images. Every (class, cost) is fitted on all of them too, so that the record shows test mAP by cost.
*Low-shot* (§2.7): for every k, five fixed draws of k positives and 19 k negatives a class, on one layer.

Difficult images are negatives in full training and in its cross-validation (D15), are in no low-shot set, and are left
out of every test. Metrics are means over classes of every-point AP, in percent:
    svm_<layer>         the layer's own
    svm                 as published: the feature map that is best on the test images (label best_layer; avgpool is
                        measured, but no candidate)
    low_shot_k<k>       as published: on that layer, the one cost whose mean over classes and trials is best on the test
                        images
    svm_clean, low_shot_clean_k<k>   nothing chosen on test images: the layer by cross-validated mAP (label
                        best_layer_clean), a cost for each draw by cross-validation within it, shared by the classes.
                        k=1 cannot be cross-validated and has none
details["trials"] holds the spread over the five draws (std with n - 1; the published tools divide by n). Bootstrap
replicates resample the test images with every chosen layer and cost held fixed.

Processes share out the layers, then the (layer, k) pairs; each is computed by one process as it would be alone, and
all return the same Measurement (a process with fewer threads may round the scores' last bits otherwise; with 1, 2 and 4
processes on the embedded world every metric was equal). A process holds one layer's training and test rows in the
solver's precision.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator

from evaluate.ap import mean_over_classes
from evaluate.bootstrap import resample_counts
from evaluate.job import FeatureSpec, Job, LayerName
from evaluate.low_shot import check_pinned, low_shot_sets, read_sets, write_sets
from evaluate.ranking import average_precision_every_point, average_precision_step, bootstrap_average_precision
from zoo.benchmark import BenchmarkConfig
from zoo.config import Strict
from zoo.datasets import Manifest, class_names, manifest
from zoo.errors import ConfigError, DataError, NonFiniteError, several
from zoo.files import ROOT
from zoo.record import Measurement

if TYPE_CHECKING:
    import torch

    from evaluate.svm_solver import Fit, Gram
    from zoo.distributed import World

log = logging.getLogger(__name__)
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Costs = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
Key = TypeVar("Key")
Value = TypeVar("Value")
ENGINE = None
ROW_BLOCK = 1024  # rows normalised together in fp64


class Newton(Strict):
    """All problems at once (evaluate.svm_solver)."""

    back_end: Literal["newton"]
    precision: Literal["fp32", "fp64"]
    tolerance: PositiveFloat  # relative gradient norm; not reaching it is an error


class Liblinear(Strict):
    """scikit-learn's LinearSVC, one problem after the other: the reference."""

    back_end: Literal["liblinear"]
    tolerance: PositiveFloat  # liblinear's own; the protocol's 1e-4 is not always reached in 2000 iterations
    max_iterations: Positive


class LowShot(Strict):
    k: Annotated[tuple[Positive, ...], Field(min_length=1)]
    trials: Literal[5]  # the published number is a mean over five draws, never over fewer
    negatives_per_positive: Positive
    costs: Costs
    layer: Literal["best"] | LayerName  # best: that of `svm`, and for the clean metrics that of `svm_clean`
    seed: Annotated[int, Field(ge=0)] | None  # of the draw (evaluate.low_shot); null: execution.low_shot_files
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None  # of the sets; null: whatever the seed gives

    @model_validator(mode="after")
    def _consistent(self) -> "LowShot":
        if list(self.k) != sorted(set(self.k)):
            raise ValueError(f"k: expected increasing values, found {list(self.k)}")
        if self.seed is None and self.sha256 is None:
            raise ValueError("sha256: sets read from files (seed: null) must be pinned by their hash")
        return self


class Settings(Strict):
    train_split: str
    test_split: str
    features: FeatureSpec
    norm_eps: Annotated[float, Field(ge=0)]  # rows become x / (|x| + norm_eps), in fp64
    costs: Costs
    folds: Annotated[int, Field(ge=2)]
    positive_weight: PositiveFloat  # of a positive's loss; a negative's is 1
    solver: Annotated[Newton | Liblinear, Field(discriminator="back_end")]
    low_shot: LowShot | None

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        layers = self.features.layers
        if not _candidates(layers):
            raise ValueError("features.layers: expected at least one of feature1 to feature5, the candidates for best")
        if self.low_shot is not None and self.low_shot.layer not in ("best", *layers):
            raise ValueError(f"low_shot.layer: expected best or one of {', '.join(layers)}")
        for where, costs in (("costs", self.costs), ("low_shot.costs", self.low_shot.costs if self.low_shot else ())):
            if len(set(costs)) < len(costs):
                raise ValueError(f"{where}: expected different values, found one twice")
        return self


class Execution(Strict):
    memory_mb: Positive  # the solver's, beside the features, in each process
    low_shot_files: str | None  # published-format sets, a path with {sample} and {k}, where low_shot.seed is null


def roles(settings: Settings) -> dict[str, str]:
    return {"train": settings.train_split, "test": settings.test_split}


def features(settings: Settings) -> dict[str, FeatureSpec]:
    return {"train": settings.features, "test": settings.features}


def deterministic(settings: Settings) -> bool:
    return True


def run(job: Job) -> Measurement:
    """Full and low-shot SVM mAP in percent; see above for the metrics' names.

    Raises ConfigError or DataError for classes with too few images and for low-shot sets that are not usable,
    NonFiniteError for a feature that is NaN or infinite, the solver's error when it does not converge.
    """
    from zoo.distributed import share

    settings: Settings = job.settings
    train, test = job.manifests["train"], job.manifests["test"]
    names = class_names(train.dataset)
    _check_labels(train, test, names, settings.folds)
    sets = None
    sets_hash = None
    if settings.low_shot is not None:
        sets, sets_hash = obtain_sets(settings.low_shot, job.execution.low_shot_files, train, names)
    scoring = _Scoring(
        positive=test.labels == 1,
        keep=test.labels != -1,
        counts=resample_counts(len(test), manifest_sha256=test.sha256),
    )

    layers = list(settings.features.layers)
    mine = {layer: _full(job, _rows(job, layer), scoring) for layer in share(layers, job.me)}
    full = _gathered(mine, layers, job.me)
    candidates = _candidates(layers)
    best = max(candidates, key=lambda layer: full[layer].test_map)  # max takes the first of equals
    clean = max(candidates, key=lambda layer: full[layer].cv_map)

    metrics = {"svm": full[best].test_map, "svm_clean": full[clean].test_map}
    metrics |= {f"svm_{layer}": full[layer].test_map for layer in layers}
    replicates = {"svm": full[best].replicates, "svm_clean": full[clean].replicates}
    replicates |= {f"svm_{layer}": full[layer].replicates for layer in layers}
    details: dict[str, Any] = {"full": {layer: full[layer].describe(names, settings.costs) for layer in layers}}
    if settings.low_shot is not None and sets is not None:
        wanted = settings.low_shot.layer
        published_on, clean_on = (best, clean) if wanted == "best" else (wanted, wanted)
        shots = _all_low_shot(job, sets, scoring, published_on, clean_on)
        details["low_shot"] = {"sha256": sets_hash, "layer": published_on, "layer_clean": clean_on, "k": {}}
        details["trials"] = {}
        for k in settings.low_shot.k:
            outcomes = {f"low_shot_k{k}": shots[published_on, k].published}
            if (clean_on, k) in shots and (found := shots[clean_on, k].clean) is not None:
                outcomes[f"low_shot_clean_k{k}"] = found
            for name, outcome in outcomes.items():
                metrics[name], replicates[name] = outcome.mean, outcome.replicates
                details["trials"][name] = outcome.spread()
            details["low_shot"]["k"][str(k)] = {
                layer: found.details for (layer, of_k), found in shots.items() if of_k == k
            }
    return Measurement(
        metrics=metrics,
        labels={"best_layer": best, "best_layer_clean": clean},
        num_scored=len(test),
        selection="SVM: cost by cross-validation, layer by test mAP; low-shot: cost by test mAP; clean: all by "
        "cross-validation on training images",
        per_sample={"scores": full[best].scores.astype(np.float32)},
        replicates=replicates,
        details=details,
    )


def obtain_sets(
    settings: LowShot, files: str | None, train: Manifest, names: tuple[str, ...]
) -> tuple[np.ndarray, str]:
    """The low-shot sets, (5, len(k), N, C) int8, and their hash. Raises ConfigError or DataError (evaluate.low_shot).

    files: execution.low_shot_files, from the repository's root where it is relative.
    """
    if (settings.seed is None) != (files is not None):
        raise ConfigError(
            "low-shot sets: expected either settings.low_shot.seed (drawn) or execution.low_shot_files with seed null "
            f"(read), found seed {settings.seed} and files {files}"
        )
    if files is not None and not ("{sample}" in files and "{k}" in files):
        raise ConfigError(f"execution.low_shot_files: expected a path with {{sample}} and {{k}}, found {files}")
    options: dict[str, Any] = {
        "ks": settings.k,
        "trials": settings.trials,
        "negatives_per_positive": settings.negatives_per_positive,
    }
    if files is not None:
        sets = read_sets(str(ROOT / files), train.labels, **options)
    else:
        ids = [Path(path).stem for path in train.paths]
        sets = low_shot_sets(ids, train.labels, names, seed=settings.seed or 0, **options)
    return sets, check_pinned(sets, settings.k, settings.sha256)


def write_low_shot_sets(config: BenchmarkConfig[Settings, Execution], folder: Path) -> tuple[list[Path], str]:
    """Write the benchmark's low-shot sets in the published format; the files and the sets' hash. Raises ConfigError."""
    low_shot = config.settings.low_shot
    if low_shot is None:
        raise ConfigError("settings.low_shot: expected low-shot settings, found null; this benchmark has no sets.")
    train = manifest(config.dataset, config.settings.train_split)
    sets, found = obtain_sets(low_shot, config.execution.low_shot_files, train, class_names(config.dataset))
    return write_sets(folder, sets, low_shot.k), found


def _candidates(layers: Iterable[LayerName]) -> list[LayerName]:
    """The layers that "Best Layer" can be, in the network's order."""
    return sorted(layer for layer in layers if layer != "avgpool")


def _check_labels(train: Manifest, test: Manifest, names: tuple[str, ...], folds: int) -> None:
    """Raise one DataError for all that keeps a class from being cross-validated or tested."""
    for part in (train, test):
        if part.labels.ndim != 2 or part.labels.shape[1] != len(names):
            raise DataError(
                f"dataset '{part.dataset}', {part.split}: expected labels of {len(names)} classes an image, found "
                f"an array of shape {part.labels.shape}; voc_svm needs a multi-label dataset."
            )
    problems: list[str] = []
    for column, name in enumerate(names):
        num_positive = int((train.labels[:, column] == 1).sum())
        if min(num_positive, len(train) - num_positive) < folds:
            problems.append(
                f"{name}: expected at least {folds} positive and {folds} other images in {train.split}, one a fold, "
                f"found {num_positive} and {len(train) - num_positive}"
            )
        if not (test.labels[:, column] == 1).any():
            problems.append(f"{name}: expected a positive image in {test.split}, found none")
    if problems:
        title = f"dataset '{train.dataset}': average precision is not defined for every class; leave these classes out:"
        raise DataError(several(title, problems))


@dataclass(frozen=True, kw_only=True)
class _Scoring:
    """The test images' truth and their bootstrap."""

    positive: np.ndarray  # (N, C) bool
    keep: np.ndarray  # (N, C) bool: not difficult
    counts: np.ndarray  # (1000, N) how often each replicate draws each image

    def average_precision(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """(N, t) scores of the given (t,) classes → (t,) AP in percent."""
        return 100.0 * average_precision_every_point(scores, self.positive[:, classes], self.keep[:, classes])

    def replicates(self, scores: np.ndarray) -> np.ndarray:
        """(N, T·C) scores, class by class within each trial → (1000,) mean over trials of mAP in percent.

        A class none of whose positives a replicate draws is left out of that replicate's mean.
        """
        repeats = scores.shape[1] // self.positive.shape[1]
        ap = bootstrap_average_precision(
            scores, np.tile(self.positive, repeats), np.tile(self.keep, repeats), counts=self.counts
        )
        return 100.0 * mean_over_classes(ap.reshape(len(ap), repeats, -1)).mean(1)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """One layer's normalised features, on the host and where scores are computed."""

    layer: LayerName
    train: np.ndarray  # (N, D) in the solver's precision
    train_there: "torch.Tensor"
    test_there: "torch.Tensor"
    gram: "Gram | None"  # for the batched solver: the training rows' products with one another


def _rows(job: Job, layer: LayerName) -> _Rows:
    import torch

    from evaluate.svm_solver import make_gram

    solver = job.settings.solver
    dtype = np.float32 if isinstance(solver, Newton) and solver.precision == "fp32" else np.float64
    rows = {
        role: _normalised(job.features[role][layer], job.manifests[role], layer, eps=job.settings.norm_eps, dtype=dtype)
        for role in ("train", "test")
    }
    assert all(len(rows[role]) == len(job.manifests[role]) for role in rows), layer
    return _Rows(
        layer=layer,
        train=rows["train"],
        train_there=torch.from_numpy(rows["train"]).to(job.me.device),
        test_there=torch.from_numpy(rows["test"]).to(job.me.device),
        gram=make_gram(rows["train"], device=job.me.device) if isinstance(solver, Newton) else None,
    )


def _normalised(rows: np.ndarray, listed: Manifest, layer: str, *, eps: float, dtype: type) -> np.ndarray:
    """(N, D) rows as x / (|x| + eps), computed in fp64. Raises NonFiniteError naming the first bad row."""
    result = np.empty(rows.shape, dtype=dtype)
    for start in range(0, len(rows), ROW_BLOCK):
        block = rows[start : start + ROW_BLOCK].astype(np.float64)
        finite = np.isfinite(block).all(1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise NonFiniteError(
                f"{layer}, {listed.split} row {row} ({listed.paths[row]}): the features are NaN or infinite "
                f"({int((~finite).sum())} of {len(block)} rows in this block); the checkpoint overflows on them."
            )
        result[start : start + ROW_BLOCK] = block / (np.linalg.norm(block, axis=1, keepdims=True) + eps)
    return result


@dataclass(frozen=True, kw_only=True)
class _Solved:
    """What became of T training columns at K costs."""

    cv_ap: np.ndarray  # (T, K) mean over folds, percent; NaN without folds
    test_ap: np.ndarray  # (T, K) percent
    test_scores: np.ndarray  # (K, T, N) of the test images
    convergence: dict[str, Any]


def _solve(job: Job, rows: _Rows, targets: np.ndarray, costs: Costs, folds: int, scoring: _Scoring) -> _Solved:
    """Fit every column at every cost, on all its rows and (folds > 0) on all but each fold; score fold and test images.

    targets: (N, T) int8: 1, -1, or 0 for a row that is not in the column's problem. Column t is of class t mod C. The
    solver's fits are consumed as they come; only test scores are kept, 4 or 8 bytes a (cost, column, image).
    """
    num_columns, num_classes = targets.shape[1], scoring.positive.shape[1]
    num_cv = folds * num_columns
    fold_targets, held = _folds(targets, folds)
    cv_ap = np.full((num_cv, len(costs)), np.nan)
    test_ap = np.full((num_columns, len(costs)), np.nan)
    test_scores = np.empty((len(costs), num_columns, len(rows.test_there)), dtype=rows.train.dtype)
    convergence = _Convergence()
    for fit in _fits(job, rows, np.concatenate([fold_targets, targets], axis=1), costs):
        convergence.add(fit)
        of_fold = fit.tasks < num_cv
        if of_fold.any():
            tasks = fit.tasks[of_fold]
            seen = np.flatnonzero(held[:, tasks].any(1))
            scores = _scores(rows.train_there[seen], fit, of_fold)
            positive = targets[np.ix_(seen, tasks % num_columns)] == 1
            cv_ap[tasks, fit.cost] = 100.0 * average_precision_step(scores, positive, held[np.ix_(seen, tasks)])
        if not of_fold.all():
            columns = fit.tasks[~of_fold] - num_cv
            scores = _scores(rows.test_there, fit, ~of_fold)
            test_ap[columns, fit.cost] = scoring.average_precision(scores, columns % num_classes)
            test_scores[fit.cost, columns] = scores.T
    assert not np.isnan(cv_ap).any() and not np.isnan(test_ap).any(), "a fit is missing or a class has no positive"
    mean_cv = cv_ap.reshape(folds, num_columns, -1).mean(0) if folds else np.full(test_ap.shape, np.nan)
    return _Solved(cv_ap=mean_cv, test_ap=test_ap, test_scores=test_scores, convergence=convergence.describe())


def _folds(targets: np.ndarray, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Each column's stratified folds, as scikit-learn cuts its labels without shuffling.

    targets: (N, T). Returns (N, folds·T) int8, fold by fold: the targets with the fold's rows taken out, and (N,
    folds·T) bool: the rows that were.
    """
    from sklearn.model_selection import StratifiedKFold

    num_rows, num_columns = targets.shape
    held = np.zeros((folds, num_columns, num_rows), dtype=bool)
    for column in range(num_columns if folds else 0):
        rows = np.flatnonzero(targets[:, column])
        splits = StratifiedKFold(folds, shuffle=False).split(rows[:, None], targets[rows, column])
        for fold, (_, test) in enumerate(splits):
            held[fold, column, rows[test]] = True
    held = np.ascontiguousarray(held.reshape(folds * num_columns, num_rows).T)
    return np.where(held, np.int8(0), np.tile(targets, folds)), held


def _fits(job: Job, rows: _Rows, targets: np.ndarray, costs: Costs) -> "Iterator[Fit]":
    from evaluate import svm_solver

    settings: Settings = job.settings
    if isinstance(settings.solver, Liblinear):
        return svm_solver.solve_reference(
            rows.train,
            targets,
            costs,
            positive_weight=settings.positive_weight,
            tolerance=settings.solver.tolerance,
            max_iterations=settings.solver.max_iterations,
            num_workers=job.num_workers,
        )
    return svm_solver.solve(
        rows.train,
        targets,
        costs,
        positive_weight=settings.positive_weight,
        precision=settings.solver.precision,
        tolerance=settings.solver.tolerance,
        memory_mb=job.execution.memory_mb,
        device=job.me.device,
        gram=rows.gram,
    )


def _scores(rows: "torch.Tensor", fit: "Fit", which: np.ndarray) -> np.ndarray:
    """(n, D) rows → (n, t) decision values of the fit's chosen tasks, in the rows' precision."""
    import torch

    weights = torch.from_numpy(np.ascontiguousarray(fit.weights[which])).to(rows)
    bias = torch.from_numpy(np.ascontiguousarray(fit.bias[which])).to(rows)
    return torch.addmm(bias, rows, weights.T).cpu().numpy()


class _Convergence:
    """How far the solver got, over all the fits of one call."""

    def __init__(self) -> None:
        self.fits = self.not_converged = self.most_iterations = 0
        self.worst_gradient = 0.0

    def add(self, fit: "Fit") -> None:
        self.fits += len(fit.tasks)
        self.not_converged += int((~fit.converged).sum())
        self.most_iterations = max(self.most_iterations, int(fit.iterations.max(initial=0)))
        self.worst_gradient = max(self.worst_gradient, float(fit.gradient.max(initial=0.0)))

    def describe(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "not_converged": self.not_converged,
            "most_iterations": self.most_iterations,
            "worst_gradient": self.worst_gradient,
        }


@dataclass(frozen=True, kw_only=True)
class _Full:
    """The full SVM on one layer."""

    dimensions: int
    chosen: np.ndarray  # (C,) which cost
    cv_ap: np.ndarray  # (C, K) percent
    test_ap: np.ndarray  # (C, K) percent
    scores: np.ndarray  # (N, C) of the test images, each class at its cost
    replicates: np.ndarray  # (1000,) of test_map
    convergence: dict[str, Any]

    @property
    def cv_map(self) -> float:
        return float(self.cv_ap[np.arange(len(self.chosen)), self.chosen].mean())

    @property
    def test_map(self) -> float:
        return float(self.test_ap[np.arange(len(self.chosen)), self.chosen].mean())

    def describe(self, names: tuple[str, ...], costs: Costs) -> dict[str, Any]:
        classes = {
            name: {"cost": costs[cost], "cv_ap": float(cv[cost]), "test_ap": float(test[cost])}
            | {"cv_ap_by_cost": cv.round(4).tolist(), "test_ap_by_cost": test.round(4).tolist()}
            for name, cost, cv, test in zip(names, self.chosen.tolist(), self.cv_ap, self.test_ap, strict=True)
        }
        return {
            "dimensions": self.dimensions,
            "cv_map": self.cv_map,
            "cv_map_by_cost": self.cv_ap.mean(0).tolist(),
            "test_map_by_cost": self.test_ap.mean(0).tolist(),
            "classes": classes,
            "solver": self.convergence,
        }


def _full(job: Job, rows: _Rows, scoring: _Scoring) -> _Full:
    settings: Settings = job.settings
    clock = time.monotonic()
    # D15: difficult images (-1) are negatives here, absent ones (0) of course too
    targets = np.where(job.manifests["train"].labels == 1, 1, -1).astype(np.int8)
    solved = _solve(job, rows, targets, settings.costs, settings.folds, scoring)
    chosen = solved.cv_ap.argmax(1)  # the first of equals
    scores = np.ascontiguousarray(solved.test_scores[chosen, np.arange(len(chosen))].T)
    result = _Full(
        dimensions=rows.train.shape[1],
        chosen=chosen,
        cv_ap=solved.cv_ap,
        test_ap=solved.test_ap,
        scores=scores,
        replicates=scoring.replicates(scores),
        convergence=solved.convergence,
    )
    log.info(
        "voc_svm: %s, %d values: mAP %.2f (cross-validated %.2f), %d fits, %.1f s",
        rows.layer,
        result.dimensions,
        result.test_map,
        result.cv_map,
        solved.convergence["fits"],
        time.monotonic() - clock,
    )
    return result


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """One way to choose the low-shot costs."""

    maps: np.ndarray  # (trials,) percent
    replicates: np.ndarray  # (1000,) of their mean

    @property
    def mean(self) -> float:
        return float(self.maps.mean())

    def spread(self) -> dict[str, Any]:
        """zoo.record.Trials as a dict."""
        return {
            "n": len(self.maps),
            "std": float(self.maps.std(ddof=1)),
            "min": float(self.maps.min()),
            "max": float(self.maps.max()),
        }


@dataclass(frozen=True, kw_only=True)
class _Shots:
    """The low-shot SVM on one layer with one k."""

    published: _Outcome
    clean: _Outcome | None  # None where the clean metrics are not of this layer, and for k=1
    details: dict[str, Any]


def _all_low_shot(
    job: Job, sets: np.ndarray, scoring: _Scoring, published_on: LayerName, clean_on: LayerName
) -> dict[tuple[LayerName, int], _Shots]:
    from zoo.distributed import share

    ks: tuple[int, ...] = job.settings.low_shot.k
    keys: list[tuple[LayerName, int]] = [(published_on, k) for k in ks]
    if clean_on != published_on:
        keys.extend((clean_on, k) for k in ks if k > 1)
    mine: dict[tuple[LayerName, int], _Shots] = {}
    rows: _Rows | None = None
    for layer, k in share(keys, job.me):
        if rows is None or rows.layer != layer:
            rows = _rows(job, layer)
        mine[layer, k] = _low_shot(job, rows, sets[:, ks.index(k)], k, scoring, clean=layer == clean_on)
    return _gathered(mine, keys, job.me)


def _low_shot(job: Job, rows: _Rows, sets: np.ndarray, k: int, scoring: _Scoring, *, clean: bool) -> _Shots:
    """sets: (trials, N, C) int8, 1, 0 or -1 for not in the set."""
    clock = time.monotonic()
    low_shot: LowShot = job.settings.low_shot
    costs, trials = low_shot.costs, len(sets)
    shots = np.concatenate(list(sets), axis=1)  # (N, trials·C), trial by trial
    targets = np.select([shots == 1, shots == 0], [np.int8(1), np.int8(-1)], np.int8(0))
    folds = min(job.settings.folds, k) if clean and k > 1 else 0
    solved = _solve(job, rows, targets, costs, folds, scoring)
    test_map = solved.test_ap.reshape(trials, -1, len(costs)).mean(1)  # (trials, K)
    best = int(test_map.mean(0).argmax())
    published = _Outcome(maps=test_map[:, best], replicates=scoring.replicates(solved.test_scores[best].T))
    details: dict[str, Any] = {
        "cost": costs[best],
        "test_map_by_trial_and_cost": test_map.tolist(),
        "std_of_published_tools": float(test_map[:, best].std()),
        "solver": solved.convergence,
    }
    chosen_clean = None
    if folds:
        cv_map = solved.cv_ap.reshape(trials, -1, len(costs)).mean(1)
        chosen = cv_map.argmax(1)
        by_trial = solved.test_scores.reshape(len(costs), trials, -1, solved.test_scores.shape[2])
        scores = by_trial[chosen, np.arange(trials)].reshape(shots.shape[1], -1).T  # (N, trials·C)
        chosen_clean = _Outcome(maps=test_map[np.arange(trials), chosen], replicates=scoring.replicates(scores))
        details |= {
            "costs_clean": [costs[index] for index in chosen],
            "cv_map_by_trial_and_cost": cv_map.tolist(),
            "folds": folds,
        }
    log.info(
        "voc_svm: low-shot k=%d on %s: mAP %.2f%s, %d fits, %.1f s",
        k,
        rows.layer,
        published.mean,
        f" (clean {chosen_clean.mean:.2f})" if chosen_clean else "",
        solved.convergence["fits"],
        time.monotonic() - clock,
    )
    return _Shots(published=published, clean=chosen_clean, details=details)


def _gathered(mine: dict[Key, Value], keys: Sequence[Key], me: "World") -> dict[Key, Value]:
    """The results of all processes on every process, in the order of `keys`."""
    if me.size == 1:
        return mine
    import torch.distributed as dist

    parts: list[dict[Key, Value] | None] = [None] * me.size
    dist.all_gather_object(parts, mine)
    found = {key: value for part in parts if part is not None for key, value in part.items()}
    return {key: found[key] for key in keys}

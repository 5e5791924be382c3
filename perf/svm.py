"""How much faster than LinearSVC are the VOC07 SVM and low-shot SVM solved, and do the average precisions agree?

    python -m perf.svm [--dims 2048 --dims 9216] [--quick] [--repeats 1] [--out FILE]

Rival: scikit-learn's LinearSVC as the protocol sets it (§2.6), two processes of one BLAS thread; ours: two threads.
The rival is timed on some classes at all costs and multiplied up ("extrapolated"); ours runs whole. Synthetic features:
rectified mixtures of latents with a power-law spectrum, L2-normalised; classes of 4-40 % of the images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from evaluate.svm_solver import Gram, make_gram, solve, solve_reference
from perf.measure import medians, print_table, write_json

COSTS = (1.0, 10.0, 100.0, *(0.5**i for i in range(4, 20)))
SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
FOLDS, TRIALS, WEIGHT, TOLERANCE = 3, 5, 2.0, 1e-5  # the tolerance: as in configs/benchmarks/voc07_svm.yaml


def synthetic(rows: int, dims: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, dims) float32 and labels (rows, classes) ±1, by rising frequency."""
    rng, latents, told = np.random.default_rng(seed), 256, 40
    z = rng.standard_normal((rows, latents), dtype=np.float32)
    mixed = (z * np.arange(1, latents + 1, dtype=np.float32) ** -0.5) @ rng.standard_normal((latents, dims), np.float32)
    mixed = mixed / mixed.std() + 0.5 * rng.standard_normal((rows, dims), dtype=np.float32)
    features = np.maximum(mixed - rng.uniform(0, 1, dims), 0) * rng.lognormal(0, 0.7, dims)
    labels = np.empty((rows, classes), dtype=np.int8)
    for c, frequency in enumerate(np.geomspace(0.04, 0.40, classes)):
        direction = rng.standard_normal(told)
        score = z[:, :told] @ (direction / np.linalg.norm(direction)) + 0.15 * rng.standard_normal(rows)
        labels[:, c] = np.where(score > np.quantile(score, 1 - frequency), 1, -1)
    return (features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)).astype(np.float32), labels


def fold_targets(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, classes·FOLDS): class c without fold f in column FOLDS·c + f."""
    targets = np.zeros((len(labels), labels.shape[1] * FOLDS), dtype=np.int8)
    for c in range(labels.shape[1]):
        for f, (train, _) in enumerate(StratifiedKFold(FOLDS).split(features, labels[:, c])):
            targets[train, FOLDS * c + f] = labels[train, c]
    return targets


def shot_targets(labels: np.ndarray, k: int) -> np.ndarray:
    """(N, TRIALS·classes): k positives and 19k negatives of a class, in every trial anew."""
    rng, classes = np.random.default_rng(k), labels.shape[1]
    targets = np.zeros((len(labels), TRIALS * classes), dtype=np.int8)
    for column in range(TRIALS * classes):
        for sign, count in ((1, k), (-1, 19 * k)):
            rows = rng.choice(np.flatnonzero(labels[:, column % classes] == sign), count, replace=False)
            targets[rows, column] = sign
    return targets


def ours(
    features: np.ndarray, targets: np.ndarray, costs: Sequence[float], gram: Gram
) -> dict[tuple[int, int], np.ndarray]:
    """(task, cost) → (w, b)."""
    found = {}
    fits = solve(
        features,
        targets,
        costs,
        positive_weight=WEIGHT,
        precision="fp32",
        tolerance=TOLERANCE,
        memory_mb=2048,
        gram=gram,
    )
    for fit in fits:
        for i, task in enumerate(fit.tasks):
            found[int(task), fit.cost] = np.append(fit.weights[i], fit.bias[i])
    return found


def rival(features: np.ndarray, targets: np.ndarray, costs: Sequence[float]) -> int:
    """Fits that did not converge."""
    fits = solve_reference(
        features, targets, costs, positive_weight=WEIGHT, tolerance=1e-4, max_iterations=2000, num_workers=2
    )
    return sum(not fit.converged.all() for fit in fits)


def exact(features: np.ndarray, labels: np.ndarray, cost: float) -> np.ndarray:
    """(w, b) by liblinear's primal Newton method, to 1e-8: the same problem, another program."""
    model = LinearSVC(C=cost, class_weight={1: WEIGHT, -1: 1.0}, dual=False, tol=1e-8, max_iter=10_000)  # pyright: ignore[reportArgumentType]
    model.fit(features, labels)
    return np.append(model.coef_, model.intercept_)


def select(features: np.ndarray, labels: np.ndarray, targets: np.ndarray, fits: dict) -> list[int]:
    """Each class's cost with the highest mean AP on the held-out folds; ties to the first."""
    chosen = []
    for c in range(labels.shape[1]):
        means = []
        for cost in range(len(COSTS)):
            out = [(targets[:, t] == 0, fits[t, cost]) for t in range(FOLDS * c, FOLDS * (c + 1))]
            means.append(np.mean([average_precision_score(labels[o, c], features[o] @ w[:-1]) for o, w in out]))
        chosen.append(int(np.argmax(means)))
    return chosen


def full(features: np.ndarray, labels: np.ndarray, targets: np.ndarray, chosen: list[int]) -> None:
    """Every fold at every cost, and each class on all rows at its own."""
    gram = make_gram(features)
    ours(features, targets, COSTS, gram)
    for cost in sorted(set(chosen)):
        ours(features, labels[:, [c for c, own in enumerate(chosen) if own == cost]], [COSTS[cost]], gram)


def agreement(features: np.ndarray, labels: np.ndarray, targets: np.ndarray, fits: dict, sample: list[int]) -> float:
    """Largest difference in AP points, stepwise and every-point, on fold 0 of the sampled classes, over all costs."""
    worst = 0.0
    for c in sample:
        task, wanted = FOLDS * c, labels[:, c] > 0
        train, held = targets[:, task] != 0, targets[:, task] == 0
        for index, cost in enumerate(COSTS):
            scores = [
                features[held] @ w[:-1] for w in (fits[task, index], exact(features[train], labels[train, c], cost))
            ]
            steps = [average_precision_score(wanted[held], s) for s in scores]
            points = [_every_point(s, wanted[held]) for s in scores]
            worst = max(worst, 100 * abs(steps[0] - steps[1]), 100 * abs(points[0] - points[1]))
    return worst


def _every_point(scores: np.ndarray, positive: np.ndarray) -> float:
    hits = np.cumsum(positive[np.argsort(-scores, kind="stable")])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((precision * np.diff(hits, prepend=0)).sum() / hits[-1])


def low_shot_rows(
    features: np.ndarray, labels: np.ndarray, shots: Sequence[int], repeats: int
) -> list[dict[str, object]]:
    """A row a k, and all together; what all k share (K) is counted once, in the last."""
    tasks, classes, size = TRIALS * labels.shape[1], labels.shape[1], features.shape[1]
    picked = [0, classes // 2 + classes, 2 * classes + classes - 1]
    shared = medians({"gram": lambda: make_gram(features)}, repeats=repeats)["gram"]
    gram = make_gram(features)
    rows: list[dict[str, object]] = []
    mine, theirs = shared, 0.0
    for k in shots:
        targets = shot_targets(labels, k)
        seconds = medians(
            {
                "ours": lambda t=targets: ours(features, t, COSTS, gram),
                "rival": lambda t=targets: rival(features, t[:, picked], COSTS),
            },
            repeats=repeats,
        )
        whole = seconds["rival"] * tasks / len(picked)
        rows.append(_row(f"low-shot, {size}-d, k={k}", tasks * len(COSTS), seconds["ours"], whole, None))
        mine, theirs = mine + seconds["ours"], theirs + whole
    rows.append(_row(f"low-shot, {size}-d", tasks * len(shots) * len(COSTS), mine, theirs, None))
    return rows


def main(
    dims: Annotated[list[int] | None, typer.Option(help="feature sizes; 2048 and 9216 unless told")] = None,
    only_low_shot: Annotated[bool, typer.Option("--only-low-shot", help="leave out the full SVM")] = False,
    quick: Annotated[bool, typer.Option(help="a tenth of the work, for trying the script")] = False,
    repeats: Annotated[int, typer.Option(help="runs of each, of which the median counts")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
) -> None:
    torch.set_num_threads(2)
    rows: list[dict[str, object]] = []
    num_rows, classes, shots = (1200, 4, SHOTS[:3]) if quick else (5011, 20, SHOTS)
    sample = [classes // 4, 3 * classes // 4]
    for size in dims or [2048, 9216]:
        features, labels = synthetic(num_rows, size, classes)
        rival(
            features[:200], np.sign(np.arange(200)[:, None] - 99.5).astype(np.int8), [1.0] * 2
        )  # starts its processes
        if only_low_shot:
            rows += low_shot_rows(features, labels, shots, repeats)
            continue
        targets = fold_targets(features, labels)
        fits = ours(features, targets, COSTS, make_gram(features))  # a warm-up too
        chosen = select(features, labels, targets, fits)

        def full_rival(features=features, targets=targets) -> None:
            rival(features, targets[:, [FOLDS * c for c in sample]], COSTS)

        def refit_rival(features=features, labels=labels, chosen=chosen) -> None:
            for c in sample:
                rival(features, labels[:, [c]], [COSTS[chosen[c]]] * 2)  # two: one a process

        def full_ours(features=features, labels=labels, targets=targets, chosen=chosen) -> None:
            full(features, labels, targets, chosen)

        seconds = medians({"ours": full_ours, "rival": full_rival}, repeats=repeats)
        refits = medians({"rival": lambda run=refit_rival: run()}, repeats=repeats)["rival"]
        cv = seconds["rival"] * FOLDS * classes / len(sample)
        whole = cv + refits / 2 * classes / len(sample)
        worst = agreement(features, labels, targets, fits, sample)
        rows.append(_row(f"full, {size}-d", classes * (FOLDS * len(COSTS) + 1), seconds["ours"], whole, worst))
        if size == 2048 or quick:
            rows += low_shot_rows(features, labels, shots, repeats)
    print_table(
        "Linear SVMs of the VOC07 protocols: batched Newton against LinearSVC",
        list(rows[0]),
        [tuple(row.values()) for row in rows],
    )
    if out is not None:
        write_json(out, {"repeats": repeats, "rows": rows})


def _row(what: str, fits: int, mine: float, theirs: float, worst: float | None) -> dict[str, object]:
    return {
        "what": what,
        "fits": fits,
        "ours s": mine,
        "LinearSVC s (extrapolated)": theirs,
        "ratio": theirs / mine,
        "AP difference": "" if worst is None else f"{worst:.4f}",
    }


if __name__ == "__main__":
    typer.run(main)

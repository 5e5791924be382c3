"""How well do the nearest training images vote for a test image's class?

Weighted k-nearest-neighbour classification (protocols §2.5; Wu et al. 2018, as in mmselfsup's knn_classifier and DINO's
eval_knn): L2-normalised features, dot-product similarity, each neighbour votes for its class with exp(similarity / T).
All k share one pass over the bank: the neighbours of a smaller k are a prefix of those of the largest.

Exact search in blocks of the bank, so memory is bounded by `block_mb` whatever the bank's size. Queries are searched in
fixed blocks and the blocks shared among processes: any number of processes computes the same products.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from evaluate.bootstrap import replicate_means
from evaluate.job import FeatureSpec, Job
from zoo.config import Strict
from zoo.errors import ConfigError, NonFiniteError
from zoo.record import Measurement

if TYPE_CHECKING:
    import torch

QUERY_BLOCK = 1024  # rows searched together; fixed, so that results do not depend on the number of processes
BackEnd = Literal["faiss", "torch"]
ENGINE = None


class Settings(Strict):
    bank_split: str
    query_split: str
    features: FeatureSpec  # the test transform, for the bank too (§2.5)
    k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _increasing(self) -> "Settings":
        if list(self.k) != sorted(set(self.k)):
            raise ValueError(f"k: expected increasing values, found {list(self.k)}")
        return self


class Execution(Strict):
    back_end: BackEnd
    block_mb: Annotated[int, Field(gt=0)]


def roles(settings: Settings) -> dict[str, str]:
    return {"bank": settings.bank_split, "test": settings.query_split}


def features(settings: Settings) -> dict[str, FeatureSpec]:
    return {"bank": settings.features, "test": settings.features}


def deterministic(settings: Settings) -> bool:
    return True


def run(job: Job) -> Measurement:
    """Top-1 and top-5 for every k, in percent. Raises ConfigError when k exceeds the bank."""
    from zoo.distributed import gather_by_index, share

    settings: Settings = job.settings
    test = job.manifests["test"]
    blocks = [range(len(test))[rows] for rows in _blocks(len(test), QUERY_BLOCK)]
    mine = np.array([index for block in share(blocks, job.me) for index in block], dtype=np.int64)
    ranked = classify(
        job.features["test"][mine],
        job.features["bank"],
        job.manifests["bank"].labels,
        ks=settings.k,
        num_classes=int(job.manifests["bank"].labels.max()) + 1,
        temperature=settings.temperature,
        back_end=job.execution.back_end,
        block_mb=job.execution.block_mb,
        device=job.me.device,
    )
    metrics: dict[str, float] = {}
    replicates: dict[str, np.ndarray] = {}
    per_sample: dict[str, np.ndarray] = {}
    for k in settings.k:
        classes = gather_by_index(mine, ranked[k], total=len(test), me=job.me)  # (N, min(5, k, classes))
        hits = classes == test.labels[:, None]
        for name, right in ((f"top1_k{k}", hits[:, 0]), (f"top5_k{k}", hits.any(1))):
            metrics[name] = 100.0 * float(right.mean())
            replicates[name] = 100.0 * replicate_means(right.astype(float), manifest_sha256=test.sha256)
        per_sample[f"predicted_k{k}"] = classes[:, 0].astype(np.int32)
    return Measurement(
        metrics=metrics,
        num_scored=len(test),
        selection="none: nothing is trained or chosen",
        per_sample=per_sample,
        replicates=replicates,
        details={"bank": len(job.manifests["bank"])},
    )


def classify(
    queries: np.ndarray,
    bank: np.ndarray,
    bank_labels: np.ndarray,
    *,
    ks: Sequence[int],
    num_classes: int,
    temperature: float,
    back_end: BackEnd,
    block_mb: int,
    device: "torch.device | None" = None,
) -> dict[int, np.ndarray]:
    """The most voted classes of each query, best first, for every k.

    queries: (Q, D) float32. bank: (N, D) float32, may be memory-mapped. bank_labels: (N,) integers below num_classes.
    Returns k → (Q, min(5, k, num_classes)) int64. Ties go to the lower class. Raises ConfigError when max(ks) > N,
    NonFiniteError when a feature is not finite.
    """
    if max(ks) > len(bank):
        raise ConfigError(f"k: expected at most the bank's size, {len(bank)}, found {max(ks)}; choose a smaller k.")
    similarities, neighbours = search(queries, bank, k=max(ks), back_end=back_end, block_mb=block_mb, device=device)
    ranked: dict[int, np.ndarray] = {}
    for k in ks:
        ranked[k] = np.empty((len(queries), min(5, k, num_classes)), dtype=np.int64)
        for rows in _blocks(len(queries), QUERY_BLOCK):
            weights = np.exp(similarities[rows, :k].astype(np.float64) / temperature)
            ranked[k][rows] = _vote(weights, bank_labels[neighbours[rows, :k]], num_classes)
    return ranked


def _vote(weights: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(q, k) weights and labels → (q, min(5, k, num_classes)) classes by falling sum of weights."""
    num_queries, k = labels.shape
    cells = (np.arange(num_queries)[:, None] * num_classes + labels).ravel()
    scores = np.bincount(cells, weights=weights.ravel(), minlength=num_queries * num_classes)
    order = np.argsort(-scores.reshape(num_queries, num_classes), axis=1, kind="stable")
    return order[:, : min(5, k, num_classes)]


def search(
    queries: np.ndarray,
    bank: np.ndarray,
    *,
    k: int,
    back_end: BackEnd,
    block_mb: int,
    device: "torch.device | None" = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar bank rows of each query: similarities (Q, k) float32, falling, and row numbers (Q, k) int64.

    queries: (Q, D) float32. bank: (N, D) float32, read once, block by block; both are L2-normalised on the way.
    Equal similarities: lower row first.
    """
    queries = _normalised(queries, "query", 0)
    block_rows = max(k, block_mb * 2**20 // (4 * (bank.shape[1] + QUERY_BLOCK)))  # a bank block and its similarities
    top = _top_faiss if back_end == "faiss" else _top_torch(device)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), len(bank), dtype=np.int64)
    for bank_rows in _blocks(len(bank), block_rows):
        block = _normalised(bank[bank_rows], "bank", bank_rows.start)
        for query_rows in _blocks(len(queries), QUERY_BLOCK):
            found, where = top(queries[query_rows], block, min(k, len(block)))
            all_best = np.concatenate([best[query_rows], found], axis=1)
            all_rows = np.concatenate([rows[query_rows], where + bank_rows.start], axis=1)
            order = np.lexsort((all_rows, -all_best), axis=1)[:, :k]
            best[query_rows] = np.take_along_axis(all_best, order, 1)
            rows[query_rows] = np.take_along_axis(all_rows, order, 1)
    return best, rows


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


Top = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def _top_faiss(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    return faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)


def _top_torch(device: "torch.device | None") -> Top:
    import torch

    def top(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        left = torch.from_numpy(queries).to(device)
        found = (left @ torch.from_numpy(block).to(device).T).topk(k, dim=1)
        return found.values.cpu().numpy(), found.indices.cpu().numpy()

    return top


def _normalised(rows: np.ndarray, what: str, start: int) -> np.ndarray:
    """(n, D) contiguous float32 copy with unit rows. Raises NonFiniteError naming the first bad row."""
    rows = np.array(rows, dtype=np.float32, order="C")
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise NonFiniteError(
            f"{what} feature {start + int(np.argmin(finite))} is NaN or infinite ({int((~finite).sum())} of "
            f"{len(rows)} in this block); the checkpoint overflows on these images."
        )
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows

"""How well do the nearest training images vote for a test image's class?

Weighted k-nearest-neighbour classification (protocols §2.5; Wu et al. 2018, as in mmselfsup's knn_classifier and DINO's
eval_knn): L2-normalised features, dot-product similarity, each neighbour votes for its class with exp(similarity / T).
All k share one pass over the bank: the neighbours of a smaller k are a prefix of those of the largest.

Exact search. A product of fixed blocks of queries and bank is the unit of work: one thread computes it, and blocks of
queries are shared among threads and processes. So neither their number nor `block_mb` changes a bit, and memory does
not grow with the bank (docs/knn_scale.md).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from evaluate.bootstrap import replicate_means
from evaluate.job import FeatureSpec, Job
from zoo.config import Strict
from zoo.errors import ConfigError, DataError, NonFiniteError, several
from zoo.record import Measurement

if TYPE_CHECKING:
    import torch

# the two sides of one product; fixed, because the last bit of a product's entries can depend on its shape
QUERY_BLOCK = 512
BANK_BLOCK = 4096
BackEnd = Literal["faiss", "torch"]
ENGINE = None


class Settings(Strict):
    bank_split: str
    query_split: str
    features: FeatureSpec  # the test transform, for the bank too (§2.5)
    k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if len(self.features.layers) != 1:
            raise ValueError(f"features.layers: expected one layer, found {', '.join(self.features.layers)}")
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
    (layer,) = settings.features.layers
    blocks = [range(len(test))[rows] for rows in _blocks(len(test), QUERY_BLOCK)]
    mine = np.array([index for block in share(blocks, job.me) for index in block], dtype=np.int64)
    ranked = classify(
        job.features["test"][layer][mine],
        job.features["bank"][layer],
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

    bank_labels: (N,) integers below num_classes. The other arguments are those of `search`.
    Returns k → (Q, min(5, k, num_classes)) int64. Ties go to the lower class. Raises as `search` does.
    """
    similarities, neighbours = search(queries, bank, k=max(ks), back_end=back_end, block_mb=block_mb, device=device)
    ranked = {k: np.empty((len(queries), min(5, k, num_classes)), dtype=np.int64) for k in ks}
    for rows in _blocks(len(queries), QUERY_BLOCK):
        near = similarities[rows].astype(np.float64)
        weights = np.exp((near - near[:, :1]) / temperature)  # a factor common to a query's votes: no overflow
        labels = bank_labels[neighbours[rows]]
        for k in ks:
            ranked[k][rows] = _vote(weights[:, :k], labels[:, :k], num_classes)
    return ranked


def _vote(weights: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(q, k) weights and labels → (q, min(5, k, num_classes)) classes by falling sum of weights."""
    num_queries, k = labels.shape
    each = np.arange(num_queries)
    cells = (each[:, None] * num_classes + labels).ravel()
    scores = np.bincount(cells, weights=weights.ravel(), minlength=num_queries * num_classes)
    scores = scores.reshape(num_queries, num_classes)
    ranked = np.empty((num_queries, min(5, k, num_classes)), dtype=np.int64)
    for place in range(ranked.shape[1]):  # a few passes are many times faster than sorting all the classes
        ranked[:, place] = scores.argmax(1)  # the lowest class of equal ones
        scores[each, ranked[:, place]] = -1.0
    return ranked


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

    queries: (Q, D). bank: (N, D). Each float32 or float16, and memory-mapped if it likes; both become unit rows of
    float32 on the way. Equal similarities: lower row first. The bank is read once for as many queries as fit, with
    their neighbours, into `block_mb` MiB; at least for one block of queries.
    Raises ConfigError when k > N, DataError when the arrays do not fit each other, NonFiniteError naming the first row
    that is not finite.
    """
    import torch

    _check(queries, bank, k)
    offer = _faiss_offer(device) if back_end == "faiss" else _torch_offer
    where = device if back_end == "torch" else None  # faiss takes arrays, and moves them itself
    similarities = np.empty((len(queries), k), dtype=np.float32)
    neighbours = np.empty((len(queries), k), dtype=np.int64)
    width = bank.shape[1]
    at_once = block_mb * 2**20 // (QUERY_BLOCK * (4 * width + 12 * k)) * QUERY_BLOCK
    room = torch.empty((min(BANK_BLOCK, len(bank)), width), device=where)
    with _spread(device) as spread:
        for some in _blocks(len(queries), max(QUERY_BLOCK, at_once)):
            parts = list(_blocks(some.stop, QUERY_BLOCK, some.start))
            found = [_Found.nothing(part.stop - part.start, width, k, where) for part in parts]
            spread(lambda mine, part: _fill(mine.queries, queries, part, "query"), found, parts)
            for rows in _blocks(len(bank), BANK_BLOCK):
                block = room[: rows.stop - rows.start]
                pieces = list(_blocks(rows.stop, QUERY_BLOCK, rows.start))
                spread(lambda unit, piece: _fill(unit, bank, piece, "bank"), block.split(QUERY_BLOCK), pieces)
                spread(partial(offer, block=block, start=rows.start), found)
            for part, mine in zip(parts, found, strict=True):
                similarities[part], neighbours[part] = mine.similarities.cpu().numpy(), mine.rows.cpu().numpy()
    return similarities, neighbours


def _check(queries: np.ndarray, bank: np.ndarray, k: int) -> None:
    problems = [
        f"{what} features: expected a matrix of float32 or float16, found shape {rows.shape} of {rows.dtype}"
        for what, rows in (("query", queries), ("bank", bank))
        if rows.ndim != 2 or rows.dtype not in (np.float32, np.float16)
    ]
    if not problems and queries.shape[1] != bank.shape[1]:
        problems = [f"a query has {queries.shape[1]} features, a bank row {bank.shape[1]}"]
    if problems:
        raise DataError(several("kNN needs bank and queries from one extraction; extract both again:", problems))
    if k > len(bank):
        raise ConfigError(f"k: expected at most the bank's size, {len(bank)}, found {k}; choose a smaller k.")


def _blocks(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


@contextmanager
def _spread(device: "torch.device | None") -> Iterator[Callable[..., object]]:
    """A `map` over as many threads as torch would use, each with one thread for its products; on a GPU just `map`.

    Several threads in one product may split its sums, and then the bits depend on how many they are.
    """
    import torch

    if device is not None and device.type != "cpu":
        yield lambda work, *items: list(map(work, *items))
        return

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda work, *items: list(pool.map(work, *items))
    finally:
        torch.set_num_threads(threads)  # a worker's setting reaches threads that have not asked for one


def _fill(unit: "torch.Tensor", features: np.ndarray, rows: slice, what: str) -> None:
    """Set `unit` (n, D) to some rows, L2-normalised in float32. Raises NonFiniteError naming the first bad row."""
    import torch

    unit.copy_(torch.from_numpy(np.array(features[rows], order="C")))
    norms = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    bad = (~norms.isfinite()).flatten().nonzero()
    if len(bad):
        raise NonFiniteError(
            f"{what} feature {rows.start + int(bad[0])} is NaN or infinite, or too large to be squared ({len(bad)} of "
            f"{len(unit)} in this block); the checkpoint overflows on these images."
        )
    unit.div_(norms.clamp_min_(1e-12))


@dataclass(kw_only=True)
class _Found:
    """A block of queries and what each has found so far: most similar first, of equal ones the lower row first."""

    queries: "torch.Tensor"  # (q, D) float32 unit rows
    similarities: "torch.Tensor"  # (q, k) float32; -inf: nothing found yet
    rows: "torch.Tensor"  # (q, k) int64

    @classmethod
    def nothing(cls, count: int, width: int, k: int, device: "torch.device | None") -> "_Found":
        import torch

        return cls(
            queries=torch.empty((count, width), device=device),
            similarities=torch.full((count, k), -torch.inf, device=device),
            rows=torch.zeros((count, k), dtype=torch.int64, device=device),
        )

    def add(self, similarities: "torch.Tensor", rows: "torch.Tensor") -> None:
        """Merge (q, c) candidates; their rows rise along a line and lie above all those found before. -inf: none."""
        import torch

        k = self.rows.shape[1]
        # a stable sort keeps equal ones in the order of their rows
        ranked, order = torch.cat([self.similarities, similarities], 1).sort(dim=1, descending=True, stable=True)
        self.similarities = ranked[:, :k].contiguous()
        self.rows = torch.cat([self.rows, rows], 1).gather(1, order[:, :k])


def _torch_offer(mine: _Found, block: "torch.Tensor", start: int) -> None:
    """Let `mine` take what is near from `block`, (n, D) bank rows from row `start` on. Blocks come in rising order.

    Only what beats a query's k-th best so far is ever sorted: after the first blocks, a handful.
    """
    k = mine.rows.shape[1]
    similarities = mine.queries @ block.T
    better = similarities > mine.similarities[:, -1:]  # an equal one has a higher row, and loses
    query, column = better.nonzero(as_tuple=True)
    counts = query.bincount(minlength=len(better))
    if int(counts.max()) > k:  # all of equal ones at the border stay: merging decides
        better &= similarities >= similarities.topk(k, dim=1).values[:, -1:]
        query, column = better.nonzero(as_tuple=True)
        counts = query.bincount(minlength=len(better))
    if not len(query):
        return
    place = column.new_ones(len(query)).cumsum(0) - 1 - (counts.cumsum(0) - counts)[query]
    found = similarities.new_full((len(counts), int(counts.max())), -np.inf)
    found[query, place] = similarities[query, column]
    rows = mine.rows.new_zeros(found.shape)
    rows[query, place] = column + start
    mine.add(found, rows)


def _faiss_offer(device: "torch.device | None") -> Callable[..., None]:
    """As `_torch_offer`, by faiss: on the CPU, or on a GPU (not run by us)."""
    import faiss
    import torch

    knn = faiss.knn
    if device is not None and device.type != "cpu":
        if not hasattr(faiss, "StandardGpuResources"):
            raise ConfigError(
                "back_end: faiss: this process has a GPU, and the installed faiss is the one for CPUs; install "
                "faiss-gpu in its place, or choose back_end: torch."
            )
        knn = partial(faiss.knn_gpu, faiss.StandardGpuResources(), device=device.index)

    def offer(mine: _Found, block: "torch.Tensor", start: int) -> None:
        k, size = mine.rows.shape[1], len(block)
        faiss.omp_set_num_threads(1)  # of this thread, see _spread
        # one more than asked for shows whether equal ones lie across the border, of which faiss keeps any
        values, columns = knn(mine.queries.numpy(), block.numpy(), min(k + 1, size), metric=faiss.METRIC_INNER_PRODUCT)
        border = values[:, k - 1 : k]
        if k < size and ((border == values[:, k:]) & (border > mine.similarities[:, -1:].numpy())).any():
            return _torch_offer(mine, block, start)
        rows, order = torch.from_numpy(columns[:, :k]).sort(dim=1)
        mine.add(torch.from_numpy(values[:, :k]).gather(1, order), rows + start)

    return offer

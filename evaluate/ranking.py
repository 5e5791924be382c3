"""How well do scores rank images that show a class above those that do not? Average precision, and its bootstrap.

Two definitions, both by falling score. *Every point* (protocols §2.6, "AP"): the area under the precision envelope, the
highest precision at this recall or more; not the 11-point rule. *Stepwise* (scikit-learn's average_precision_score,
the scorer behind §2.6's cross-validation): no envelope, and equal scores are one step.

Among equal scores the every-point rule needs an order: the later row comes first, which is what reversing a stable
ascending sort gives (the published code reverses one that is not stable, so there the order is a whim). Images that a
class ignores are put behind all others, where they change nothing. A column's result depends on that column alone, to
the last bit.
"""

from collections.abc import Iterator

import numpy as np

from zoo.errors import NonFiniteError

BLOCK_CELLS = 2**22  # (row, column) or (positive, replicate) pairs looked at together: some 100 MB


def average_precision_every_point(
    scores: np.ndarray, positive: np.ndarray, keep: np.ndarray | None = None
) -> np.ndarray:
    """AP in 0…1 of every column of scores; NaN for a column without a positive that is kept.

    scores: (M,) or (M, T) float32 or float64. positive: bool, keep (None: all rows): bool, each (M,) or like scores.
    Returns () or (T,) float64. Raises NonFiniteError naming the first score that is NaN or infinite.
    """
    return _average_precision(scores, positive, keep, envelope=True)


def average_precision_step(scores: np.ndarray, positive: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """As `average_precision_every_point`, by scikit-learn's definition."""
    return _average_precision(scores, positive, keep, envelope=False)


def bootstrap_average_precision(
    scores: np.ndarray, positive: np.ndarray, keep: np.ndarray | None = None, *, counts: np.ndarray
) -> np.ndarray:
    """Every-point AP in 0…1 of every column in every bootstrap replicate; NaN where none of its positives is drawn.

    scores, positive, keep: as `average_precision_every_point`. counts: (R, M) integers, how often each replicate draws
    each row (`evaluate.bootstrap.resample_counts`); a row drawn twice counts twice, as if it stood in the data twice.
    Returns (R,) or (R, T) float64.
    """
    flat = scores.ndim == 1
    scores, positive, keep = _columns(scores, positive, keep)
    total = int(counts.sum(1, dtype=np.int64).max(initial=0))
    drawn = np.ascontiguousarray(counts.T, dtype=np.uint16 if total < 2**16 else np.int64)  # (M, R), sums included
    ap = np.full((len(counts), scores.shape[1]), np.nan)
    for block in _blocks(scores):
        order, _ = _ranked(scores[:, block], keep[:, block])
        for column, ranks in zip(range(block.start, block.stop), order, strict=True):
            ranks = ranks[: int(keep[:, column].sum())]
            places = np.flatnonzero(positive[ranks, column])
            if len(places):
                _replicate(ranks, places, drawn, ap[:, column])
    return ap[:, 0] if flat else ap


def _average_precision(
    scores: np.ndarray, positive: np.ndarray, keep: np.ndarray | None, *, envelope: bool
) -> np.ndarray:
    flat = scores.ndim == 1
    scores, positive, keep = _columns(scores, positive, keep)
    ap = np.full(scores.shape[1], np.nan)
    for block in _blocks(scores):
        order, ranked = _ranked(scores[:, block], keep[:, block])
        hits = np.take_along_axis((positive[:, block] & keep[:, block]).T, order, axis=1)
        precision, num_positives = _precision_at_hits(hits) if envelope else _precision_at_steps(hits, ranked)
        if envelope:
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # added one after the other, so that the padding behind a column's positives changes no bit
        total = np.cumsum(precision, axis=1)[:, -1] if precision.shape[1] else np.zeros(len(precision))
        np.divide(total, num_positives, out=ap[block], where=num_positives > 0)
    return ap[0] if flat else ap


def _columns(
    scores: np.ndarray, positive: np.ndarray, keep: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All three as (M, T), the latter two by broadcasting one column to all."""
    keep = np.ones(len(scores), dtype=bool) if keep is None else keep
    scores = scores[:, None] if scores.ndim == 1 else scores
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise NonFiniteError(
            f"score of row {row}, column {column} is NaN or infinite "
            f"({int((~np.isfinite(scores)).sum()):,} of {scores.size:,}); the classifier behind it diverged."
        )
    positive, keep = (flags[:, None] if flags.ndim == 1 else flags for flags in (positive, keep))
    return scores, np.broadcast_to(positive, scores.shape), np.broadcast_to(keep, scores.shape)


def _blocks(scores: np.ndarray) -> Iterator[slice]:
    width = max(1, BLOCK_CELLS // max(1, len(scores)))
    return (slice(start, min(start + width, scores.shape[1])) for start in range(0, scores.shape[1], width))


def _ranked(scores: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, t) → each column's rows by falling score, and the scores in that order, both (t, M); ignored rows last."""
    rising = np.ascontiguousarray(np.where(keep, scores, -np.inf).T)
    order = np.argsort(rising, axis=1)[:, ::-1]
    ranked = np.take_along_axis(rising, order, axis=1)
    tied = ((ranked[:, 1:] == ranked[:, :-1]) & np.isfinite(ranked[:, 1:])).any(1)
    if tied.any():  # rare; a stable sort everywhere would take five times as long
        order[tied] = np.argsort(rising[tied], axis=1, kind="stable")[:, ::-1]
    return order, ranked


def _precision_at_hits(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(t, M) ranked hits → the precision at each, (t, most) padded with 0, and their numbers, (t,)."""
    columns, places = np.nonzero(hits)
    num_positives = hits.sum(1)
    nth = np.arange(len(columns)) - np.repeat(np.cumsum(num_positives) - num_positives, num_positives)
    precision = np.zeros((len(hits), int(num_positives.max(initial=0))))
    precision[columns, nth] = (nth + 1) / (places + 1)
    return precision, num_positives


def _precision_at_steps(hits: np.ndarray, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_precision_at_hits`, with the precision behind all scores that equal the hit's."""
    precision, num_positives = _precision_at_hits(hits)
    last = np.ones(ranked.shape, dtype=bool)  # of its equals
    last[:, :-1] = (ranked[:, 1:] != ranked[:, :-1]) | np.isinf(ranked[:, 1:])  # ignored rows form no step
    if last.all():
        return precision, num_positives
    ends = np.where(last, np.arange(ranked.shape[1]), ranked.shape[1])
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    columns, places = np.nonzero(hits)
    behind = ends[columns, places]
    nth = np.arange(len(columns)) - np.repeat(np.cumsum(num_positives) - num_positives, num_positives)
    precision[columns, nth] = np.cumsum(hits, axis=1)[columns, behind] / (behind + 1)
    return precision, num_positives


def _replicate(ranks: np.ndarray, places: np.ndarray, drawn: np.ndarray, ap: np.ndarray) -> None:
    """One column's AP in every replicate, written into `ap`, (R,). ranks: (K,) rows by falling score. places: of hits.

    Precision is looked at only behind hits, all copies of a drawn hit at once: in between it is no higher, so the
    envelope is the same.
    """
    from scipy import sparse  # here: planning imports this module, and is instant

    part = max(1, BLOCK_CELLS // len(places))
    upto = ranks[: places[-1] + 1]
    stretch = np.searchsorted(places, np.arange(len(upto)))  # the hit that a rank leads up to
    ones = np.ones(len(upto), dtype=drawn.dtype)
    sums = sparse.csr_array((ones, (stretch, upto)), shape=(len(places), len(drawn)))
    for start in range(0, drawn.shape[1], part):
        some = drawn[:, start : start + part]
        hits, taken = some[ranks[places]], sums @ some  # (P, r)
        num_hits, num_taken = np.zeros(hits.shape[1]), np.zeros(hits.shape[1])
        precision = np.empty(hits.shape)
        for row, hit, stretch_sum in zip(precision, hits, taken, strict=True):  # rows stay in the processor's cache
            num_hits += hit
            num_taken += stretch_sum
            np.divide(num_hits, np.maximum(num_taken, 1.0), out=row)
        highest, total = np.zeros(hits.shape[1]), np.zeros(hits.shape[1])
        for row, hit in zip(precision[::-1], hits[::-1], strict=True):
            np.maximum(highest, row, out=highest)
            total += highest * hit
        np.divide(total, num_hits, out=ap[start : start + part], where=num_hits > 0)

"""Is one row of a table better than another, and how sure is that? Paired differences from the stored replicates.

Replicate r of two results on the same test images resamples the same images (DESIGN §5), so the replicates of their
difference are replicate minus replicate. Every metric here is better the higher it is. docs/statistics.md derives what
follows and gives its measured coverage and error rates.

One run each: the interval is the central 95 % of the differences, and p = 2 · min(share ≤ 0, share ≥ 0), each share as
(b + 1)/(B + 1). Where no replicate lies on the other side this ends at 2/1001, a limit of counting, not of the data;
the normal tail of the differences' standard deviation replaces it there if that is smaller.

Several runs (seeds) of a row: its value and replicates are their means. To the variance of the paired differences is
added s²/n of each row's seeds; interval and p are Student's t with Welch and Satterthwaite's degrees of freedom, the
test set's part counting as known. A row with one run of a training that is random adds nothing, and the page says so.

In one table each column's best row is compared with every other measured row; p is adjusted by Holm over all of these.
In a column of many rows, those so far behind that the intervals alone settle it are not read: whatever the correlation,
the difference's standard deviation is at most the sum of the two.
"""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np

from zoo.record import ResultRecord

NUM_REPLICATES: Final = 1000  # evaluate.bootstrap's
LEVEL: Final = 0.05
POWER: Final = 0.8
_ROUNDING: Final = 2e-5  # points: replicates are stored as float32
_INTERVAL_TOLERANCE: Final = 1e-3  # points, between a record's interval and that of its stored replicates
_ENDS: Final = (0.025 * (NUM_REPLICATES - 1), 0.975 * (NUM_REPLICATES - 1))  # where the interval ends, in rising order
_SMALL: Final = 2**20  # bytes of a file that is quicker read whole than by its parts
_MANY: Final = 100  # rows of a column
_FAR: Final = 8.0  # standard deviations: p < 1e-14, which no table's Holm undoes
_SETTLED: Final = "settled by the intervals"  # in place of replicates that were not read
_NORMAL: Final = NormalDist()
_TWO_SIDED: Final = _NORMAL.inv_cdf(1 - LEVEL / 2)
_CERTAIN: Final = 1e9  # degrees of freedom of a variance that counts as known


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of numbers. rows: Row.key → the runs that count, by seed; rows without a result are not in it."""

    name: str
    metric: str
    rows: Mapping[str, tuple[ResultRecord, ...]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A column's best row against another one. Points of 100; `difference` is best minus other."""

    column: str
    best: str  # Row.key; of `Comparisons.methods`, a family
    other: str
    difference: float
    interval: tuple[float, float]  # 95 %
    p: float  # two-sided
    p_holm: float  # adjusted for all comparisons of the table
    std: float  # of the difference

    @property
    def is_significant(self) -> bool:
        return self.p_holm <= LEVEL and self.difference > 0

    @property
    def detectable(self) -> float:
        """The difference that a single comparison at 5 % would find four times in five."""
        return (_TWO_SIDED + _NORMAL.inv_cdf(POWER)) * self.std


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What can be said of one column."""

    column: str
    best: str  # Row.key
    is_bold: bool  # the best is significantly better than every other measured row
    tied: tuple[str, ...]  # rows that cannot be told apart from the best, in page order
    detectable: float | None  # between the two best rows; None when they could not be compared


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """All comparisons of one table; empty where no column has two measured rows."""

    pairs: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    uncompared: Mapping[str, tuple[str, ...]]  # why → the rows that were measured but could not be compared
    single_runs: tuple[str, ...]  # compared rows with one run of a training that is random
    methods: tuple[Comparison, ...]  # families with several pre-training seeds
    families: int  # how many families the compared rows are of
    files: int  # how many checkpoints they are

    @property
    def bold(self) -> frozenset[tuple[str, str]]:
        """(Row.key, column) of the values to be set in bold."""
        return frozenset((verdict.best, verdict.column) for verdict in self.verdicts if verdict.is_bold)


Stored = Mapping[tuple[str, str], np.ndarray | str]  # (cell id, metric) → (1000,) float32, or why there are none


def stored_replicates(columns: Sequence[Column], folder: Path) -> Stored:
    """The replicates of every column with two measured rows or more; other arrays are not read.

    folder: holds <cell id>.npz of each record. What is missing, unreadable, of another length, or does not give the
    interval that its record states is returned as the reason in words.
    """
    wanted: dict[str, tuple[ResultRecord, list[str]]] = {}
    found: dict[tuple[str, str], np.ndarray | str] = {}
    for column in columns:
        far = _far_behind(column)
        found |= {(column.rows[key][0].cell_id, column.metric): _SETTLED for key in far}
        if len(column.rows) > 1:
            for record in (record for key, runs in column.rows.items() if key not in far for record in runs):
                wanted.setdefault(record.cell_id, (record, []))[1].append(column.metric)
    for cell_id, (record, metrics) in wanted.items():
        found |= {(cell_id, metric): value for metric, value in _read(folder, record, dict.fromkeys(metrics)).items()}
    return _consistent(found, {cell_id: record for cell_id, (record, _) in wanted.items()})


def _far_behind(column: Column) -> set[str]:
    """The rows of a large column, of one run each, that lie _FAR or more behind its best."""
    if len(column.rows) <= _MANY:
        return set()
    best = _best(column)
    spread = _spread(column, best)
    if spread is None:
        return set()
    top = _value(column.rows[best], column.metric)
    far: set[str] = set()
    for key, runs in column.rows.items():
        own = _spread(column, key)
        if own is not None and top - _value(runs, column.metric) > _FAR * (spread + own) > 0:
            far.add(key)
    return far


def _spread(column: Column, row: str) -> float | None:
    """The standard deviation that a single run's interval stands for; None for several runs, or none given."""
    runs = column.rows[row]
    if len(runs) != 1 or column.metric not in runs[0].confidence:
        return None
    low, high = runs[0].confidence[column.metric]
    return (high - low) / (2 * _TWO_SIDED)


def _best(column: Column) -> str:
    """The row of the highest value, the first of equals."""
    means = {key: _value(runs, column.metric) for key, runs in column.rows.items()}
    return max(means, key=lambda key: means[key])


def _read(folder: Path, record: ResultRecord, metrics: Mapping[str, None]) -> dict[str, np.ndarray | str]:
    path = folder / f"{record.cell_id}.npz"
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes()) if path.stat().st_size < _SMALL else path) as archive:
            return {metric: _member(archive, metric) for metric in metrics}
    except FileNotFoundError:
        return dict.fromkeys(metrics, "the .npz beside the record is not there")
    except (OSError, zipfile.BadZipFile):
        return dict.fromkeys(metrics, "the .npz beside the record cannot be read")


def _member(archive: zipfile.ZipFile, metric: str) -> np.ndarray | str:
    try:
        values = _array(archive.read(f"replicates/{metric}.npy"))
    except KeyError:
        return "no replicates were stored"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return "the .npz beside the record cannot be read"
    if values.shape != (NUM_REPLICATES,):
        return f"{values.size:,} replicates were stored, expected {NUM_REPLICATES:,}"
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return "the stored replicates are not finite numbers"
    return values


def _array(content: bytes) -> np.ndarray:
    """The array of a .npy file. Raises ValueError when it is none."""
    if content.startswith(_HEADER) and len(content) == len(_HEADER) + 4 * NUM_REPLICATES:
        return np.frombuffer(content, dtype="<f4", offset=len(_HEADER))  # a quarter of the time of reading the header
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _header() -> bytes:
    """What a .npy file of replicates begins with."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(NUM_REPLICATES, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()[: -4 * NUM_REPLICATES]


_HEADER: Final = _header()


def _consistent(found: Mapping[tuple[str, str], np.ndarray | str], records: Mapping[str, ResultRecord]) -> Stored:
    """Those replicates that give their record's interval: the arrays' hash would need the whole file to be read."""
    result = dict(found)
    for (cell_id, metric), value in found.items():
        if isinstance(value, np.ndarray):
            stated = records[cell_id].confidence.get(metric)
            if stated is None or not _gives(value, stated):
                result[cell_id, metric] = "the stored replicates do not give the record's interval"
    return result


def _gives(replicates: np.ndarray, interval: tuple[float, float]) -> bool:
    """Whether an interval's ends lie between the order statistics that `_central` takes; counting needs no sorting."""
    for end, position in zip(interval, _ENDS, strict=True):
        below = int(np.count_nonzero(replicates <= end + _INTERVAL_TOLERANCE))
        above = int(np.count_nonzero(replicates >= end - _INTERVAL_TOLERANCE))
        if below <= int(position) or above < NUM_REPLICATES - int(position) - 1:
            return False
    return True


def _central(drawn: np.ndarray) -> np.ndarray:
    """(K, 1000) → (K, 2): the central 95 %, as np.percentile's, which partitions and is four times as slow."""
    ordered = np.sort(drawn, axis=1)
    ends = [ordered[:, int(at)] + (at - int(at)) * (ordered[:, int(at) + 1] - ordered[:, int(at)]) for at in _ENDS]
    return np.stack(ends, axis=1)


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """K rows (or families) of one column: means over their runs, and what the runs' spread adds."""

    keys: tuple[str, ...]
    values: np.ndarray  # (K,)
    replicates: np.ndarray  # (K, 1000)
    variances: np.ndarray  # (K,) of the mean over runs: s²/n; 0 for one run
    freedom: np.ndarray  # (K,) n - 1


def _draws(rows: Mapping[str, Sequence[tuple[float, np.ndarray]]]) -> _Draws:
    """rows: key → (value, replicates) of each run."""
    values = [np.array([value for value, _ in runs]) for runs in rows.values()]
    return _Draws(
        keys=tuple(rows),
        values=np.array([each.mean() for each in values]),
        replicates=np.stack([_mean([replicates for _, replicates in runs]) for runs in rows.values()]),
        variances=np.array([each.var(ddof=1) / len(each) if len(each) > 1 else 0.0 for each in values]),
        freedom=np.array([len(each) - 1 for each in values]),
    )


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.stack(arrays).mean(axis=0, dtype=np.float64)


def comparisons(columns: Sequence[Column], stored: Stored) -> Comparisons:
    """Each column's best row against every other measured row. stored: of `stored_replicates`."""
    pairs: list[Comparison] = []
    uncompared: dict[str, dict[str, None]] = {}
    compared: dict[str, tuple[ResultRecord, ...]] = {}
    methods: list[Comparison] = []
    judged: list[tuple[Column, str, set[str]]] = []  # column, its best row, the rows that could not be compared
    for column in columns:
        if len(column.rows) < 2:
            continue
        why = {key: reason for key, runs in column.rows.items() if (reason := _reason(runs, column.metric, stored))}
        for key, reason in why.items():
            if reason != _SETTLED:
                uncompared.setdefault(reason, {})[key] = None
        best = _best(column)
        far = {key for key, reason in why.items() if reason == _SETTLED}
        usable = {key: runs for key, runs in column.rows.items() if key not in why}
        if len(usable) > 1 and not far:
            methods += _methods(column, usable, stored)
        judged.append((column, best, set(why) - far))
        if best not in usable or len(usable) + len(far) < 2:
            continue
        if len(usable) > 1:
            found = _draws({key: _runs(runs, column.metric, stored) for key, runs in usable.items()})
            pairs += _against(column.name, found, list(usable).index(best))
        pairs += [_bound(column, best, key) for key in column.rows if key in far]
        compared |= {key: runs for key, runs in column.rows.items() if key in usable or key in far}
    pairs = _adjusted(pairs)
    by_column: dict[str, list[Comparison]] = {}
    for pair in pairs:
        by_column.setdefault(pair.column, []).append(pair)
    families: dict[str, set[str]] = {}
    for runs in compared.values():
        families.setdefault(runs[0].checkpoint.family, set()).add(runs[0].checkpoint.tensors_sha256)
    return Comparisons(
        pairs=tuple(pairs),
        verdicts=tuple(_verdict(column, best, by_column.get(column.name, ()), why) for column, best, why in judged),
        uncompared={reason: tuple(rows) for reason, rows in uncompared.items()},
        single_runs=tuple(k for k, runs in compared.items() if len(runs) == 1 and not runs[0].deterministic),
        methods=tuple(_adjusted(methods)),
        families=len(families),
        files=len(set().union(*families.values())),
    )


def difference(column: Column, first: str, second: str, stored: Stored) -> Comparison | None:
    """Row `first` minus row `second` of one column, alone (no Holm); None where one of them has no replicates."""
    rows = {key: column.rows[key] for key in (first, second)}
    if any(_reason(runs, column.metric, stored) for runs in rows.values()):
        return None
    return next(_against(column.name, _draws({k: _runs(r, column.metric, stored) for k, r in rows.items()}), 0))


def _reason(runs: Sequence[ResultRecord], metric: str, stored: Stored) -> str | None:
    found = [stored.get((record.cell_id, metric), "no replicates were read") for record in runs]
    return next((value for value in found if isinstance(value, str)), None)


def _value(runs: Sequence[ResultRecord], metric: str) -> float:
    return sum(record.metrics[metric] for record in runs) / len(runs)


def _runs(runs: Sequence[ResultRecord], metric: str, stored: Stored) -> list[tuple[float, np.ndarray]]:
    found: list[tuple[float, np.ndarray]] = []
    for record in runs:
        replicates = stored[record.cell_id, metric]
        assert isinstance(replicates, np.ndarray), replicates
        found.append((record.metrics[metric], replicates))
    return found


def _methods(column: Column, rows: Mapping[str, tuple[ResultRecord, ...]], stored: Stored) -> Iterator[Comparison]:
    """The best of the families that have several pre-training seeds against each other one: a run is a file."""
    files = {(r[0].checkpoint.family, r[0].checkpoint.pretrain_seed) for r in rows.values()}
    counts = Counter(family for family, seed in files if seed is not None)
    families: dict[str, dict[int, tuple[float, np.ndarray]]] = {}
    for runs in rows.values():
        if counts[runs[0].checkpoint.family] < 2:
            continue
        seed = runs[0].checkpoint.pretrain_seed
        if seed is not None:
            values = _runs(runs, column.metric, stored)
            file = sum(value for value, _ in values) / len(values), _mean([replicates for _, replicates in values])
            families.setdefault(runs[0].checkpoint.family, {})[seed] = file
    several = {family: list(by_seed.values()) for family, by_seed in families.items()}
    if len(several) > 1:
        found = _draws(several)
        yield from _against(column.name, found, int(found.values.argmax()))


def _against(column: str, draws: _Draws, best: int) -> Iterator[Comparison]:
    """Row number `best` against each other row, p not yet adjusted."""
    from scipy.special import stdtr, stdtrit  # half of the report's start-up time, and only needed here

    others = np.array([index for index in range(len(draws.keys)) if index != best])
    values = draws.values[best] - draws.values[others]
    drawn = draws.replicates[best].astype(np.float64) - draws.replicates[others]
    ends = _central(drawn)
    variance = drawn.var(axis=1, ddof=1)
    p = _counted(drawn, values, np.sqrt(variance))
    added = draws.variances[best] + draws.variances[others]
    has_runs = (draws.freedom[best] > 0) | (draws.freedom[others] > 0)
    total = np.sqrt(variance + added)
    if has_runs.any():
        freedom = _freedom(total, draws, best, others)
        with np.errstate(divide="ignore", invalid="ignore"):
            welch = 2 * stdtr(freedom, -np.abs(values) / total)
        half = stdtrit(freedom, 1 - LEVEL / 2) * total
        p = np.where(has_runs & (total > 0), welch, p)
        ends = np.where(has_runs[:, None], np.stack([values - half, values + half], axis=1), ends)
    for position, other in enumerate(others):
        yield Comparison(
            column=column,
            best=draws.keys[best],
            other=draws.keys[other],
            difference=float(values[position]),
            interval=(float(ends[position, 0]), float(ends[position, 1])),
            p=float(p[position]),
            p_holm=float(p[position]),
            std=float(total[position]),
        )


def _bound(column: Column, best: str, other: str) -> Comparison:
    """The best row against one far behind it: interval and p are bounds that hold whatever the correlation."""
    ends = _spread(column, best), _spread(column, other)
    std = sum(end for end in ends if end is not None)
    difference = _value(column.rows[best], column.metric) - _value(column.rows[other], column.metric)
    half = _TWO_SIDED * std
    p = 2 * _NORMAL.cdf(-difference / std)
    return Comparison(
        column=column.name,
        best=best,
        other=other,
        difference=difference,
        interval=(difference - half, difference + half),
        p=p,
        p_holm=p,
        std=std,
    )


def _counted(drawn: np.ndarray, values: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(K, B) differences → (K,) two-sided p by counting; by the normal tail where counting ends and that is smaller."""
    from scipy.special import ndtr

    fewer = np.minimum((drawn <= _ROUNDING).sum(1), (drawn >= -_ROUNDING).sum(1))
    p = np.minimum(1.0, 2 * (fewer + 1) / (drawn.shape[1] + 1))
    is_end = (fewer == 0) & (std > 0)
    tail = 2 * ndtr(-np.abs(values) / np.where(std > 0, std, 1.0))
    return np.where(is_end, np.minimum(p, tail), p)


def _freedom(total: np.ndarray, draws: _Draws, best: int, others: np.ndarray) -> np.ndarray:
    """(K,) Welch and Satterthwaite's degrees of freedom, the paired replicates' part without error."""
    error = np.zeros(len(others))
    for variance, freedom in (
        (np.broadcast_to(draws.variances[best], len(others)), np.broadcast_to(draws.freedom[best], len(others))),
        (draws.variances[others], draws.freedom[others]),
    ):
        error += np.where(freedom > 0, variance**2 / np.maximum(freedom, 1), 0.0)
    return np.where(error > 0, np.minimum(total**4 / np.where(error > 0, error, 1.0), _CERTAIN), _CERTAIN)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down rule, in their order; each at most 1."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def _adjusted(pairs: Sequence[Comparison]) -> list[Comparison]:
    found = holm([pair.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, found, strict=True)]


def _verdict(column: Column, best: str, pairs: Sequence[Comparison], unusable: set[str]) -> Verdict:
    tied = tuple(pair.other for pair in pairs if not pair.is_significant)
    closest = min(pairs, key=lambda pair: pair.difference, default=None)
    return Verdict(
        column=column.name,
        best=best,
        is_bold=bool(pairs) and not tied and not unusable,
        tied=tied,
        detectable=closest.detectable if closest else None,
    )

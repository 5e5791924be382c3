"""How a number is written, and which records may stand in a column at all.

A measured cell is "57.4 ± 0.4": the value, and half the width of the record's 95 % bootstrap interval over the test
images. Several seeds give "57.4 ± 0.4 (std 0.2, n 3)": mean and sample standard deviation over the seeds, and the mean
half-width. A metric that each run gives as the mean over random draws of its own (`ResultRecord.trials`) says how they
spread: "39.65 ± 0.40 (trials: std 0.52, n 5)"; of several seeds, with the mean of their standard deviations: "39.65 ±
0.40 (std 0.30, n 3; trials: std 0.52, n 5)". The three spreads answer different questions and are never merged (DESIGN
§5). A bold value is significantly better than every other measured row's (report.statistics). A column may show a label
instead, a word that the measurement found; seeds that differ give "feature4 / feature5".
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from report.markdown import escape
from zoo.benchmark import AnyBenchmark
from zoo.errors import RecordError
from zoo.record import ResultRecord

ABSENT: Final = "–"
Value = TypeVar("Value", str, float)


def fixed(value: float, decimals: int) -> str:
    """`value` with exactly `decimals` decimals; no negative zero."""
    return f"{value:z.{decimals}f}"


def measured(records: Sequence[ResultRecord], name: str, *, decimals: int, planned: int, is_bold: bool = False) -> str:
    """One cell (Markdown) from the results of all seeds; "–" when there is none.

    name: of a metric or a label. planned: how many seeds there should be. is_bold: set a metric's value in bold.
    Raises RecordError when a record lacks it.
    """
    runs = that_count(records)
    if not runs:
        return ABSENT
    if any(name in record.labels for record in runs):
        return " / ".join(dict.fromkeys(escape(_found(record, record.labels, name)) for record in runs))
    return _number(runs, name, decimals=decimals, planned=planned, is_bold=is_bold)


def _number(runs: Sequence[ResultRecord], metric: str, *, decimals: int, planned: int, is_bold: bool) -> str:
    values = [_found(record, record.metrics, metric) for record in runs]
    text = fixed(statistics.fmean(values), decimals)
    text = f"**{text}**" if is_bold else text
    widths = [record.confidence[metric] for record in runs if metric in record.confidence]
    if len(widths) == len(runs):
        text += f" ± {fixed(statistics.fmean((high - low) / 2 for low, high in widths), decimals)}"
    spreads = [*_over_seeds(runs, values, decimals, planned), *_over_trials(runs, metric, decimals)]
    return f"{text} ({'; '.join(spreads)})" if spreads else text


def _over_seeds(runs: Sequence[ResultRecord], values: Sequence[float], decimals: int, planned: int) -> Iterator[str]:
    if len(runs) == 1 and (planned <= 1 or runs[0].deterministic):
        return
    spread = f"std {fixed(statistics.stdev(values), decimals)}, " if len(runs) > 1 else ""
    wanted = f" of {planned}" if len(runs) < planned else ""
    yield f"{spread}n {len(runs)}{wanted}"


def _over_trials(runs: Sequence[ResultRecord], metric: str, decimals: int) -> Iterator[str]:
    trials = [record.trials[metric] for record in runs if metric in record.details.get("trials", ())]
    if len(trials) == len(runs):
        counts = " or ".join(str(count) for count in sorted({each.n for each in trials}))
        yield f"trials: std {fixed(statistics.fmean(each.std for each in trials), decimals)}, n {counts}"


def that_count(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """The runs that count, by seed: every cell once, and one for all where the seed changes nothing."""
    if len(records) < 2:
        return list(records)
    unique = {record.cell_id: record for record in sorted(records, key=lambda record: (record.seed, record.cell_id))}
    runs = list(unique.values())
    return runs[:1] if any(record.deterministic for record in runs) else runs


def _found(record: ResultRecord, values: Mapping[str, Value], name: str) -> Value:
    if name not in values:
        metrics, labels = (", ".join(sorted(names)) or "none" for names in (record.metrics, record.labels))
        raise RecordError(
            f"record {record.cell_id[:12]}… ({record.benchmark_config} on {record.checkpoint.name}): expected a metric "
            f"or label '{name}' as its benchmark's table asks for, found metrics: {metrics}; labels: {labels}."
        )
    return values[name]


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Why a record may not stand in its column."""

    kind: Literal["modified", "stale"]
    why: str


def exclusion(record: ResultRecord, config: AnyBenchmark, settings: Any = None) -> Exclusion | None:
    """None for a result of the benchmark as it is configured now; else why the record is not one.

    settings: `plain(config.settings)`, where the caller has it.
    """
    if record.modified:
        return Exclusion(kind="modified", why=", ".join(record.modified))
    if record.benchmark != config.benchmark:
        return Exclusion(kind="stale", why=f"benchmark was {record.benchmark}, is now {config.benchmark}")
    if record.protocol != config.protocol:
        return Exclusion(kind="stale", why=f"protocol was {record.protocol}, is now {config.protocol}")
    datasets = sorted({dataset.dataset for dataset in record.datasets.values()})
    if datasets != [config.dataset]:
        return Exclusion(kind="stale", why=f"dataset was {', '.join(datasets)}, is now {config.dataset}")
    if _said(record.settings) == _said(plain(config.settings) if settings is None else settings):
        return None
    then, now = dict(_flat(record.settings)), dict(_flat(config.settings))
    changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    if changed:
        listed = [f"{key} was {_shown(then, key)}, is now {_shown(now, key)}" for key in changed[:3]]
        more = [f"and {len(changed) - 3} more"] if len(changed) > 3 else []
        return Exclusion(kind="stale", why="; ".join([*listed, *more]))
    return None


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that are null: an optional one that the file or an older record does not name."""
    return {key: value for key, value in settings.items() if value is not None}


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key → scalar or list, of nested settings; YAML's tuples and JSON's lists are alike."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{at}.{key}" if at else str(key))
    else:
        yield at, _listed(value)


def plain(settings: Any) -> Any:
    """Nested settings with YAML's tuples as JSON's lists."""
    if isinstance(settings, Mapping):
        return {str(key): plain(value) for key, value in settings.items()}
    return [plain(value) for value in settings] if isinstance(settings, (tuple, list)) else settings


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return str(settings[key]) if key in settings else "absent"

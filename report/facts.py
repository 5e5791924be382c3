"""What stands behind a number on the page: its record, made small.

Everything that says how the number came about, without what only this machine knows: paths lose what stands before
the repository's or the runs' own folders, host names and the arguments of the single run are left out. What many
records share (settings, software, images) is kept once.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic_core import to_json

from zoo.record import ResultRecord

SHORT: Final = 16  # hexadecimal digits of a cell id that the page calls a record by
PRIVATE: Final = frozenset({"host", "hostname", "user", "arguments"})  # of `environment`
_ANCHORS: Final = ("runs", "configs")
_PATH = re.compile(
    r"(?P<quote>['\"])(?P<quoted>(?:file://)?(?:/|~/)[^'\"]+)(?P=quote)"
    r"|(?<![\w.:/~'\"-])(?P<bare>(?:file://)?(?:/|~/)[^\s'\",;()\[\]{}]+)"
)


def shortened(text: str) -> str:
    """`text` with every absolute path cut to what it is called inside a repository: runs/…, configs/…, or …/its-end."""

    def replaced(found: re.Match[str]) -> str:
        quote = found["quote"] or ""
        return quote + _short(found["quoted"] or found["bare"]) + quote

    return _PATH.sub(replaced, text)


def _short(path: str) -> str:
    parts = [part for part in path.removeprefix("file://").split("/") if part not in ("", "~")]
    known = [place for place, part in enumerate(parts[:-1]) if part in _ANCHORS]
    return "/".join(parts[known[-1] :] if known else ["…", *parts[-1:]])


def facts(records: Iterable[ResultRecord]) -> dict[str, Any]:
    """{"shared": [...], "records": {short id: {...}}}, JSON values only.

    In a record checkpoint, datasets, settings, environment and selection are places in "shared". metrics: [name, value,
    low, high], to four decimals, null where not finite.
    """
    places: dict[bytes, int] = {}
    shared: list[Any] = []

    def place(value: Any) -> int:
        key = to_json(value)
        if key not in places:
            places[key] = len(shared)
            shared.append(cleaned(json.loads(key)))
        return places[key]

    found: dict[str, Any] = {}
    for record in records:
        common = {
            "checkpoint": record.checkpoint,
            "datasets": record.datasets,
            "settings": record.settings,
            "environment": {name: value for name, value in record.environment.items() if name not in PRIVATE},
            "selection": record.selection,
        }
        found[record.cell_id[:SHORT]] = {name: place(value) for name, value in common.items()} | _own(record)
    return {"shared": shared, "records": found}


def _own(record: ResultRecord) -> dict[str, Any]:
    """What no other record shares with this one."""
    metrics = [
        [name, *(round(each, 4) if math.isfinite(each) else None for each in (value, *record.confidence.get(name, ())))]
        for name, value in record.metrics.items()
    ]
    return {
        "cell_id": record.cell_id,
        "benchmark": f"{record.benchmark_config} ({record.benchmark}, protocol {record.protocol})",
        "modified": [shortened(each) for each in record.modified],
        "seed": record.seed,
        "deterministic": record.deterministic,
        "labels": record.labels,
        "num_scored": record.num_scored,
        "metrics": metrics,
        "arrays_sha256": record.arrays_sha256,
        "files_sha256": record.files_sha256,
        "command": shortened(record.command),
        "started": record.started,
        "seconds": record.seconds,
    }


def cleaned(value: Any) -> Any:
    """JSON values with the paths in their texts shortened."""
    if isinstance(value, str):
        return shortened(value) if "/" in value else value
    if isinstance(value, Mapping):
        return {name: cleaned(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return value

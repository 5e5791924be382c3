"""The schema of configs/benchmarks/*.yaml: what is measured, on what, and where its numbers go on the page.

`settings` holds every value that can move a number and is part of a cell's id; `execution` holds what cannot (memory
bounds, back ends that agree); `tables` are layout. The types of the first two belong to the benchmark's own module.
Where `settings` name an engine's native file (`engine_config`, a path from the repository root), the file's merged
content takes its place: the settings hold every value, whoever reads them.
"""

from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, field_validator

from zoo.config import Strict, load
from zoo.errors import ConfigError
from zoo.files import CONFIGS
from zoo.native import resolved

Settings = TypeVar("Settings")
Execution = TypeVar("Execution")


class TableConfig(Strict):
    """One table of the page. Benchmarks may share one: columns a benchmark does not fill are null in its file."""

    id: str
    title: str
    section: str | None = None  # its heading on the full page; a published table's stands in configs/published/
    metric: str
    decimals: Annotated[int, Field(ge=0, le=4)]
    columns: dict[str, str | None]  # column title → name of a metric, or of a label, of this benchmark
    notes: tuple[str, ...] = ()  # sentences (Markdown) that stand under the table when this benchmark fills it

    @field_validator("columns")
    @classmethod
    def _filled(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        if not any(columns.values()):
            raise ValueError("expected a metric or label in at least one column; leave out a table that is not filled")
        return columns


class BenchmarkConfig(Strict, Generic[Settings, Execution]):
    """One benchmark configuration; the file's name is the benchmark's name."""

    benchmark: str  # key of evaluate.benchmarks.BENCHMARKS
    protocol: Annotated[int, Field(ge=1)]  # raised when a change of code may move the numbers
    dataset: str
    settings: Settings
    execution: Execution
    tables: Annotated[tuple[TableConfig, ...], Field(min_length=1)]

    @field_validator("tables")
    @classmethod
    def _distinct(cls, tables: tuple[TableConfig, ...]) -> tuple[TableConfig, ...]:
        ids = [table.id for table in tables]
        if len(set(ids)) < len(ids):
            raise ValueError(f"expected one entry a table id, found {', '.join(ids)}")
        return tables

    @field_validator("settings", mode="before")
    @classmethod
    def _native(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or not isinstance(settings.get("engine_config"), str):
            return settings
        try:
            return settings | {"engine_config": resolved(CONFIGS.parent / settings["engine_config"])}
        except ConfigError as error:
            raise ValueError(f"engine_config: {error}") from error


AnyBenchmark = BenchmarkConfig[dict[str, Any], dict[str, Any]]


def benchmark_path(name: str) -> Path:
    """Where benchmark `name` is described."""
    return CONFIGS / "benchmarks" / f"{name}.yaml"


def benchmark_layout(name: str) -> AnyBenchmark:
    """Benchmark `name` without its module's types: what the report needs. Raises ConfigError."""
    return load(benchmark_path(name), AnyBenchmark)

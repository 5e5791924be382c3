"""The frame that every benchmark file shares."""

from typing import Any

import pytest

from zoo.benchmark import AnyBenchmark, benchmark_layout, benchmark_path
from zoo.config import validate
from zoo.errors import ConfigError
from zoo.files import CONFIGS


def test_a_benchmark_is_named_after_its_file() -> None:
    assert benchmark_path("imagenet_knn") == CONFIGS / "benchmarks" / "imagenet_knn.yaml"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "benchmarks").glob("*.yaml")))
def test_every_file_gives_the_report_its_layout(name: str) -> None:
    layout = benchmark_layout(name)
    assert layout.tables and layout.settings
    assert all(any(table.columns.values()) and 0 <= table.decimals <= 4 for table in layout.tables)


TABLE = {"id": "a", "title": "A", "metric": "top-1", "decimals": 1, "columns": {"k=20": "top1_k20", "k=30": None}}


def with_tables(*tables: dict[str, Any]) -> AnyBenchmark:
    data = benchmark_layout("mini_knn").model_dump() | {"tables": tables}
    return validate(data, AnyBenchmark, where="mini_knn")


def test_a_benchmark_may_fill_several_tables() -> None:
    tables = with_tables(TABLE, TABLE | {"id": "b", "section": "Classification"}).tables
    assert [(table.id, table.section) for table in tables] == [("a", None), ("b", "Classification")]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ((), "tables: tuple should have at least 1 item"),
        ((TABLE, TABLE), "tables: expected one entry a table id, found a, a"),
        ((TABLE | {"columns": {"k=20": None}},), "tables.0.columns: expected a metric or label in at least one column"),
        ((TABLE | {"columns": {}},), "tables.0.columns: expected a metric or label in at least one column"),
    ],
)
def test_tables_that_say_nothing_are_refused(tables: tuple[dict[str, Any], ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_tables(*tables)
    assert message in str(caught.value)


def test_an_unknown_benchmark_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="imagenet_nkk.yaml: no such file; files there: .*imagenet_knn.yaml"):
        benchmark_layout("imagenet_nkk")

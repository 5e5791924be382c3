"""The frame that every benchmark file shares."""

import pytest

from zoo.benchmark import benchmark_layout, benchmark_path
from zoo.errors import ConfigError
from zoo.files import CONFIGS


def test_a_benchmark_is_named_after_its_file() -> None:
    assert benchmark_path("imagenet_knn") == CONFIGS / "benchmarks" / "imagenet_knn.yaml"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "benchmarks").glob("*.yaml")))
def test_every_file_gives_the_report_its_layout(name: str) -> None:
    layout = benchmark_layout(name)
    assert layout.table.columns and layout.settings and 0 <= layout.table.decimals <= 4


def test_an_unknown_benchmark_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="imagenet_nkk.yaml: no such file; files there: .*imagenet_knn.yaml"):
        benchmark_layout("imagenet_nkk")

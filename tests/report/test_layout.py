"""Everyone who fills a table must describe it alike."""

import pytest

from report.layout import Filler, fillers, table_layouts
from report.published import load_published
from zoo.benchmark import AnyBenchmark, benchmark_layout
from zoo.errors import ConfigError


def changed(name: str, **table: object) -> AnyBenchmark:
    config = benchmark_layout(name)
    return config.model_copy(update={"tables": tuple(one.model_copy(update=table) for one in config.tables)})


def test_benchmarks_and_published_tables_that_agree_share_one_layout() -> None:
    layouts = table_layouts({n: benchmark_layout(n) for n in ("imagenet_knn", "mini_knn")}, load_published())
    assert layouts["imagenet_knn"].columns == ("k=10", "k=20", "k=100", "k=200")
    assert layouts["imagenet_knn"].decimals == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"columns": {"k=20": "top1_k20", "k=10": "top1_k10"}}, "expected columns k=10, k=20, k=100, k=200"),
        ({"decimals": 2}, "expected decimals '1'"),
        ({"title": "kNN"}, "found 'kNN'"),
        ({"metric": "top-5 in percent"}, "found 'top-5 in percent'"),
        ({"section": "Detection"}, "expected section 'Classification'"),
    ],
)
def test_a_disagreement_is_refused_and_both_files_are_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match="configs/benchmarks/mini_knn.yaml") as caught:
        table_layouts({"mini_knn": changed("mini_knn", **table)}, load_published())
    assert message in str(caught.value)
    assert "configs/published/tables.yaml" in str(caught.value)


def test_two_benchmarks_of_an_unpublished_table_must_agree_too() -> None:
    one, other = changed("mini_knn", id="new"), changed("imagenet_knn", id="new", decimals=3)
    with pytest.raises(ConfigError, match="as in configs/benchmarks/one.yaml"):
        table_layouts({"one": one, "other": other}, load_published())


def test_a_published_tables_section_need_not_be_said_again_and_another_ones_must() -> None:
    one, other = changed("mini_knn", id="new", section="Classification"), changed("imagenet_knn", id="new")
    assert (
        table_layouts({"mini_knn": changed("mini_knn")}, load_published())["imagenet_knn"].section == "Classification"
    )
    assert table_layouts({"one": one}, load_published())["new"].section == "Classification"
    with pytest.raises(ConfigError, match="expected section 'Classification' as in .*one.yaml, found nothing"):
        table_layouts({"one": one, "other": other}, load_published())


def test_every_disagreement_of_every_table_is_in_one_message() -> None:
    config = changed("mini_knn", decimals=2)
    more = config.tables[0].model_copy(update={"id": "imagenet_linear"})
    with pytest.raises(ConfigError) as caught:
        table_layouts({"mini_knn": config.model_copy(update={"tables": (*config.tables, more)})}, load_published())
    assert "table 'imagenet_knn': expected decimals '1'" in str(caught.value)
    assert "table 'imagenet_linear': expected title 'ImageNet Linear Evaluation'" in str(caught.value)


def test_each_table_of_a_benchmark_has_its_own_columns() -> None:
    config = changed("mini_knn")
    more = config.tables[0].model_copy(update={"id": "new", "columns": {"Best k": "best_k", "k=1": None}})
    benchmarks = {"mini_knn": config.model_copy(update={"tables": (*config.tables, more)})}
    assert fillers(benchmarks, "new", "mini_imagenet") == {"Best k": Filler(benchmark="mini_knn", name="best_k")}
    assert list(fillers(benchmarks, "imagenet_knn", "mini_imagenet")) == ["k=10", "k=20", "k=100", "k=200"]
    assert fillers(benchmarks, "new", "imagenet") == {}


def test_a_columns_filler_depends_on_the_dataset() -> None:
    benchmarks = {name: benchmark_layout(name) for name in ("imagenet_linear", "cifar10_linear")}
    assert {column: f.benchmark for column, f in fillers(benchmarks, "imagenet_linear", "cifar10_sample").items()} == {
        "AvgPool": "cifar10_linear"
    }


def test_a_column_claimed_twice_is_refused() -> None:
    benchmarks = {"mini_knn": benchmark_layout("mini_knn"), "again": benchmark_layout("mini_knn")}
    with pytest.raises(ConfigError, match="again.yaml.*mini_knn fills column 'k=10' on mini_imagenet already"):
        fillers(benchmarks, "imagenet_knn", "mini_imagenet")

"""Results share a table only with results on the same images; published rows only with their own dataset's."""

import pytest

from report.published import load_published
from report.sheet import Cell, Row, Sheet, described, groups_of, told_apart
from tests.report.drawn import knn, record
from zoo.benchmark import benchmark_layout
from zoo.datasets import dataset_config
from zoo.record import ResultRecord

BENCHMARKS = {name: benchmark_layout(name) for name in ("imagenet_knn", "mini_knn")}


def sheet() -> Sheet:
    datasets = {name: dataset_config(name) for name in ("imagenet", "mini_imagenet", "cifar10_sample")}
    own = datasets["imagenet"].model_copy(update={"name": "own_photos"})  # no substitute, but not the published data
    return Sheet(
        rows=(),
        cells=(),
        benchmarks=BENCHMARKS,
        datasets=datasets | {"own_photos": own},
        published=load_published(),
        is_suite=False,
    )


@pytest.mark.parametrize(
    ("dataset", "joins"),
    [("imagenet", True), ("mini_imagenet", False), ("cifar10_sample", False), ("own_photos", False)],
)
def test_published_rows_join_their_own_dataset_only(dataset: str, joins: bool) -> None:
    assert (sheet().published_table("imagenet_knn", dataset) is not None) == joins


def group(result: ResultRecord) -> object:
    cell = Cell(row="a", benchmark=result.benchmark_config, seed=0, state="done", record=result)
    (found,) = groups_of(cell, result, BENCHMARKS)
    return found


def test_a_table_is_keyed_by_dataset_and_images() -> None:
    same = [record(name, "mini_knn", knn(1, 2, 3, 4)) for name in "ab"]
    assert group(same[0]) == group(same[1])
    assert group(record("a", "mini_knn", knn(1, 2, 3, 4), manifests="b")) != group(same[0])
    assert group(record("a", "imagenet_knn", knn(1, 2, 3, 4))) != group(same[0])


def test_the_roles_of_the_images_do_not_matter() -> None:
    result = record("a", "mini_knn", knn(1, 2, 3, 4))
    other = result.model_copy(update={"datasets": {"train": result.datasets["bank"], "test": result.datasets["test"]}})
    tested = result.model_copy(update={"datasets": {"test": result.datasets["test"]}})
    assert group(other) == group(result) != group(tested)  # one table; what reads no train images has its own


def test_a_dataset_that_is_no_longer_described_is_shown_by_name_only() -> None:
    result = record("a", "mini_knn", knn(1, 2, 3, 4))
    gone = {role: one.model_copy(update={"dataset": "gone"}) for role, one in result.datasets.items()}
    found = described({"mini_knn": BENCHMARKS["mini_knn"]}, [result.model_copy(update={"datasets": gone})])
    assert list(found) == ["mini_imagenet", "imagenet"]  # with the one it substitutes


def test_only_equal_labels_get_their_keys() -> None:
    rows = [Row(key=key, label=label, note=None, blank=False) for key, label in (("1", "a"), ("2", "b"), ("3", "a"))]
    assert [row.label for row in told_apart(rows)] == ["a (1)", "b", "a (3)"]

"""The rules flag what they are for, on the published tables exactly one value, and never change anything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain import untrained
from report.anomalies import is_untrained, pretraining, worth_a_look
from report.layout import Layout, table_layouts
from report.published import Published, PublishedRow, Source, load_published
from report.statistics import Column
from report.suite import suite_page
from tests.report.drawn import knn, measured, record, row, suite
from zoo.files import digest
from zoo.record import CheckpointRecord, ResultRecord

PUBLISHED = load_published()
LAYOUTS = table_layouts({}, PUBLISHED)


def card(family: str, *, epochs: int | None = 100, arch: str = "resnet18") -> CheckpointRecord:
    return CheckpointRecord(
        name=family, family=family, arch=arch, tensors_sha256=digest(family), pretrain_seed=0, epochs=epochs,
        preprocessing={},
    )  # fmt: skip


TEMPLATE = record("any", "cifar10_linear", {"m": 50.0})


def result(family: str, value: float, *, half: float = 0.5, trials: float | None = None, **kwargs: Any) -> ResultRecord:
    drawn = {"trials": {"m": {"n": 5, "std": trials, "min": 0.0, "max": 100.0}}} if trials is not None else {}
    changes = {"metrics": {"m": value}, "confidence": {"m": (value - half, value + half)}, "details": drawn}
    return TEMPLATE.model_copy(
        update=changes | {"checkpoint": card(family, **kwargs), "cell_id": digest([family, value])}
    )


def column(name: str, *results: ResultRecord) -> Column:
    return Column(name=name, metric="m", rows={one.checkpoint.family: (one,) for one in results})


def flags(table: str, *columns: Column, stored: Any = None) -> tuple[str, ...]:
    labels = {key: key for each in columns for key in each.rows}
    return worth_a_look(LAYOUTS[table], columns, labels, [], stored or {})


def published_flags(published: Published) -> list[tuple[str, str]]:
    return [
        (name, flag)
        for name, layout in table_layouts({}, published).items()
        for flag in worth_a_look(layout, [], {}, list(published.rows(name)), {})
    ]


def test_of_all_published_values_exactly_the_segmentation_outlier_is_flagged() -> None:
    assert published_flags(PUBLISHED) == [
        (
            "voc12aug_segmentation",
            "mIOU falls from 48.35 to 46.27 with longer pre-training (resnet50_8xb32-coslr-100e, "
            "resnet50_8xb32-coslr-200e)",
        )
    ]


@pytest.mark.parametrize(
    ("table", "column_name", "value", "flag"),
    [
        ("imagenet_linear", "AvgPool", 60.0, "AvgPool falls from 68.28 to 60.00 with longer pre-training"),
        ("places205_linear", "Feature4", 50.0, "Feature4 falls from 50.79 to 50.00 with longer pre-training"),
        ("voc0712_detection", "AP50", 79.79, "AP50 falls from 79.80 to 79.79 with longer pre-training"),
        ("coco2017", "mAP(Mask)", 34.5, "mAP(Mask) falls from 34.6 to 34.5 with longer pre-training"),
        ("voc07_svm", "k=4", 50.0, "resnet50_8xb32-coslr-200e: low-shot falls from 50.44 (k=2) to 50.00 (k=4)"),
        ("imagenet_linear", "Feature2", 1.0, None),  # the first maps do fall
        ("imagenet_knn", "k=20", 1.0, None),  # k is neighbours here
    ],
)
def test_a_mutated_published_value_is_flagged_where_a_rule_applies(
    table: str, column_name: str, value: float, flag: str | None
) -> None:
    def mutated(row: PublishedRow) -> PublishedRow:
        if not row.label.endswith("200e") or table not in row.results:
            return row
        return row.model_copy(update={"results": row.results | {table: row.results[table] | {column_name: value}}})

    sources = tuple(
        source.model_copy(update={"rows": tuple(mutated(row) for row in source.rows)}) for source in PUBLISHED.sources
    )
    found = published_flags(Published(tables=PUBLISHED.tables, sources=sources))
    others = [text for name, text in found if name == table]
    assert len(found) == 1 + bool(flag) and (not flag or others[0].startswith(flag))


def test_a_row_not_above_the_untrained_ones_interval_is_flagged() -> None:
    untrained_ = result("resnet18, random weights", 40.0, half=2.0, epochs=None)
    found = flags(
        "imagenet_linear", column("AvgPool", untrained_, result("a", 41.9), result("b", 42.1), result("c", 3))
    )
    assert found == (
        "a is not above the 95 % interval of resnet18, random weights in AvgPool 41.90",
        "c is not above the 95 % interval of resnet18, random weights in AvgPool 3.00",
    )


def test_untrained_rows_and_other_architectures_are_not_held_against_the_canary() -> None:
    canary = result("resnet18, random weights", 40.0, epochs=None)
    others = (
        result("resnet18, random weights, BN re-estimated", 30.0, epochs=None),
        result("raw pixels", 20.0, epochs=None, arch="raw_pixels"),
        result("deep", 30.0, arch="resnet50"),
    )
    assert flags("imagenet_linear", column("AvgPool", canary, *others)) == ()


def test_the_families_that_python_m_pretrain_untrained_writes_are_known() -> None:
    origin = untrained._origin("resnet50", 3, None)  # pyright: ignore[reportPrivateUsage]
    assert is_untrained(result(origin.family, 1.0))
    assert not is_untrained(result("mini_simsiam_r18", 1.0))


def test_low_shot_that_falls_is_flagged_beyond_what_the_draws_explain() -> None:
    def falling(std: float | None) -> tuple[str, ...]:
        columns = [column(n, result("a", v, trials=std)) for n, v in (("k=1", 40.0), ("k=2", 50.0), ("k=8", 49.0))]
        return flags("voc07_svm", *columns)

    assert falling(None) == ("a: low-shot falls from 50.00 (k=2) to 49.00 (k=8)",)
    assert falling(0.1) == falling(None)
    assert falling(2.0) == ()


@pytest.mark.parametrize(
    ("table", "name", "longer", "is_flagged"),
    [
        ("voc0712_detection", "AP50", 79.0, True),
        ("voc0712_detection", "AP50", 79.55, False),  # within the known 0.3
        ("voc0712_detection", "AP50", 79.4, False),  # beyond it, within the intervals
        ("voc12aug_segmentation", "mIOU", 77.0, True),
        ("imagenet_linear", "Feature1", 10.0, False),
    ],
)
def test_longer_pre_training_that_is_worse_is_flagged_beyond_noise(
    table: str, name: str, longer: float, is_flagged: bool
) -> None:
    rows = result("simsiam_r50_100e_x", 79.8, half=0.3), result("simsiam_r50_200e_x", longer, half=0.3, epochs=200)
    assert bool(flags(table, column(name, *rows))) is is_flagged


def test_the_paired_interval_decides_where_there_are_replicates() -> None:
    noise = np.random.default_rng(0).standard_normal(1000)
    rows = result("simsiam_r50_100e_x", 79.8), result("simsiam_r50_200e_x", 79.3, epochs=200)  # 0.5 lower, ± 0.5 each
    stored = {(one.cell_id, "m"): one.metrics["m"] + 0.25 * noise for one in rows}
    assert flags("voc0712_detection", column("AP50", *rows)) == ()
    assert flags("voc0712_detection", column("AP50", *rows), stored=stored) == (
        "AP50 falls from 79.80 to 79.30 with longer pre-training (simsiam_r50_100e_x, simsiam_r50_200e_x)",
    )


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("simsiam_r50_200e_mmselfsup0", "simsiam_r50_mmselfsup0"),
        ("swav_r50_400e_2x224_fb", "swav_r50_2x224_fb"),
        ("simsiam_r50_100e", "simsiam_r50"),
        ("vicreg_r50_fb", "vicreg_r50_fb"),
    ],
)
def test_a_pre_training_is_its_family_without_the_number_of_epochs(family: str, expected: str) -> None:
    assert pretraining(family) == expected


def test_a_flag_is_a_note_and_the_value_stays(tmp_path: Path) -> None:
    results = [
        record("resnet18, random weights", "mini_knn", knn(40, 40, 40, 40)),
        record("a", "mini_knn", knn(*[30] * 4)),
    ]
    suite(tmp_path, [row(one.checkpoint.name) for one in results], measured(*results))
    page = suite_page(tmp_path, PUBLISHED)
    assert (
        "- Worth a look: a is not above the 95 % interval of resnet18, random weights in k=10 30.0, k=20 30.0, "
        "k=100 30.0, k=200 30.0.\n"
    ) in page
    assert "| 30.0 ± 0.5 | 30.0 ± 0.5 |" in page


def test_the_layouts_of_the_rules_exist() -> None:
    from report.anomalies import GROWS, LOW_SHOT
    from report.reproduction import KNOWN

    assert {name for name in (*GROWS, *KNOWN)} - set(LAYOUTS) == {"cityscapes_segmentation"}
    assert isinstance(LAYOUTS[LOW_SHOT[0]], Layout) and all(isinstance(s, Source) for s in PUBLISHED.sources)

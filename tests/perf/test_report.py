"""The synthetic suite is one that the report builds."""

from pathlib import Path

from perf.report import BENCHMARKS, NUM_REPLICATES, make
from report import statistics
from report.published import load_published
from report.suite import suite_sheet, suite_tables


def test_the_synthetic_suite_has_every_table_filled_and_compared(tmp_path: Path) -> None:
    assert NUM_REPLICATES == statistics.NUM_REPLICATES
    make(tmp_path, 2 * len(BENCHMARKS))
    _, sheet = suite_sheet(tmp_path, load_published())
    made = suite_tables(sheet)
    assert {cell.benchmark for cell in sheet.cells} == set(BENCHMARKS)
    for table in made:
        assert table.comparisons is not None and table.comparisons.pairs and not table.comparisons.uncompared

"""What must be said under a table: units and spreads, images, protocol, and what is missing or left out, and why."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from report.layout import Filler, Layout
from report.markdown import code, counted, escape
from report.sheet import Cell, Group, Row, Sheet
from report.statistics import NUM_REPLICATES, Column, Comparison, Comparisons
from report.values import Exclusion, fixed, measured

DETECTABLE = 1.0  # points: what a reader of such tables takes for a difference
FLAGS = 12  # anomalies written out under one table
NAMED = 3  # so many rows are named one by one


def legend(layout: Layout, cells: Sequence[Cell], texts: Sequence[str]) -> str:
    """The unit, and every sign used in the cells `texts`."""
    unit = layout.metric[0].upper() + layout.metric[1:] if layout.metric.split()[0].islower() else layout.metric
    parts = [unit]
    if any("±" in text for text in texts):
        counts = sorted({cell.record.num_scored for cell in cells if cell.record is not None})
        images = " or ".join(f"{count:,}" for count in counts)
        parts[0] += f" ± half the width of the 95 % bootstrap interval over the {images} test images"
    if any("(std" in text or "(n " in text for text in texts):
        parts.append(
            "(std, n): standard deviation over n seeds, whose mean is shown; ± is then the mean of their half-widths"
        )
    if any("trials: " in text for text in texts):
        parts.append(
            "(trials: std, n): standard deviation over the n random draws whose mean each run reports; of several "
            "seeds, the mean of theirs"
        )
    if any(text == "–" for text in texts):
        parts.append("–: no result")
    return "; ".join(parts) + "."


def images(sheet: Sheet, group: Group) -> str | None:
    """Which images were scored, by manifest; None for a dataset that only published rows name."""
    if group.dataset not in sheet.datasets:
        return None
    text = f"Images: {escape(sheet.datasets[group.dataset].title)}"
    if group.images:
        listed = [f"{split.num_images:,} {split.split} ({code(split.sha256[:8])})" for split in group.images]
        text += ", " + " and ".join(listed)
    original = sheet.substitute_for(group.dataset)
    if original is None:
        return text + "."
    title = escape(sheet.datasets[original].title)
    return f"{text}. **A substitute for {title}: not comparable with published {title} numbers.**"


def protocols(sheet: Sheet, fills: Mapping[str, Filler], shown: Sequence[Cell]) -> Iterator[str]:
    """One note a benchmark: its columns, protocol number, selection and seeds."""
    names = list(dict.fromkeys(filler.benchmark for filler in fills.values()))
    for name in names:
        records = [cell.record for cell in shown if cell.record is not None and cell.benchmark == name]
        columns = [escape(column) for column, filler in fills.items() if filler.benchmark == name]
        parts = [f"protocol {sheet.benchmarks[name].protocol}"]
        if records:
            parts.append("selection: " + " / ".join(escape(text) for text in sorted({r.selection for r in records})))
            seeds = sorted({record.seed for record in records})
            named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
            parts.append("deterministic" if all(record.deterministic for record in records) else named)
        where = f" ({', '.join(columns)})" if len(names) > 1 else ""
        yield f"Measured with {code(name)}{where}: {'; '.join(parts)}."


def stated(sheet: Sheet, fills: Mapping[str, Filler], table: str) -> Iterator[str]:
    """What the benchmarks that fill the table say of it, as they are configured."""
    for name in dict.fromkeys(filler.benchmark for filler in fills.values()):
        yield from (note for one in sheet.benchmarks[name].tables if one.id == table for note in one.notes)


def remarks(rows: Mapping[str, Row], shown: Sequence[Cell]) -> Iterator[str]:
    """What the records themselves say of their values (details.notes), each sentence once, with its rows."""
    said: dict[str, list[str]] = {}
    for cell in shown:
        assert cell.record is not None
        for text in cell.record.details.get("notes", ()):
            said.setdefault(text, []).append(escape(rows[cell.row].label))
    for text, labels in said.items():
        yield f"{_listed(list(dict.fromkeys(labels)))}: {escape(text)}"


def unfilled(layout: Layout, fills: Mapping[str, Filler]) -> str | None:
    """The columns that no benchmark can fill, where another one fills some."""
    columns = [escape(column) for column in layout.columns if column not in fills]
    return f"No benchmark here fills {', '.join(columns)}." if columns and fills else None


def exclusions(
    rows: Mapping[str, Row],
    layout: Layout,
    fills: Mapping[str, Filler],
    excluded: Sequence[tuple[Cell, Exclusion]],
) -> Iterator[str]:
    """What was measured but not as configured now: overridden settings with their values, stale results without."""
    stale: dict[tuple[str, str], list[str]] = {}
    for cell, reason in excluded:
        label = escape(rows[cell.row].label)
        if reason.kind == "stale":
            stale.setdefault((cell.benchmark, reason.why), []).append(label)
            continue
        assert cell.record is not None
        values = [
            f"{escape(column)} {measured([cell.record], filler.name, decimals=layout.decimals, planned=1)}"
            for column, filler in fills.items()
            if filler.benchmark == cell.benchmark
        ]
        said = "; ".join(escape(text).rstrip(".") for text in cell.record.details.get("notes", ()))
        how = code(f"--set {reason.why}")
        yield f"Modified, so not shown above: {label} with {how}: {', '.join(values) or '–'}{said and f' ({said})'}."
    for (benchmark, why), labels in stale.items():
        listed = ", ".join(dict.fromkeys(labels))
        yield f"Stale, not shown: {code(benchmark)} of {listed} ({escape(why)}); measure again."


def unmeasured(sheet: Sheet, group: Group) -> Iterator[str]:
    """Which benchmarks could not run, and which cells failed or were skipped in rows that otherwise have results."""
    rows = {row.key: row for row in sheet.rows}
    here = dict.fromkeys(cell.benchmark for cell in sheet.cells if _belongs(sheet, group, cell))
    for name in here:
        if name in sheet.skipped:
            yield f"Skipped: {code(name)}, {escape(sheet.skipped[name])}."
    for state in ("failed", "skipped"):
        labels = [
            f"{escape(rows[cell.row].label)} with {code(cell.benchmark)}, seed {cell.seed}"
            for cell in sheet.cells
            if cell.state == state
            and cell.record is None
            and not rows[cell.row].blank
            and cell.benchmark not in sheet.skipped
            and _belongs(sheet, group, cell)
        ]
        if labels:
            yield f"{state.capitalize()}: {'; '.join(labels)}."


def _belongs(sheet: Sheet, group: Group, cell: Cell) -> bool:
    config = sheet.benchmarks[cell.benchmark]
    return config.dataset == group.dataset and any(table.id == group.table for table in config.tables)


def compared(
    found: Comparisons, layout: Layout, columns: Sequence[Column], rows: Mapping[str, Row], *, has_published: bool
) -> Iterator[str]:
    """What the paired comparisons say, of what, and what they cannot see."""
    labels = {key: escape(row.label) for key, row in rows.items()}
    if found.pairs:
        compared = {pair.column for pair in found.pairs}
        has_trials = any(
            column.metric in runs[0].details.get("trials", ())
            for column in columns
            if column.name in compared
            for runs in column.rows.values()
        )
        yield _how(found, has_trials=has_trials, has_published=has_published)
        yield from _ties(found)
        yield from _power(found, layout)
        yield from _methods(found, layout)
    for reason, keys in found.uncompared.items():
        yield f"Not compared, so no bold in their columns: {_listed([labels[key] for key in keys])} ({reason})."


def worth_a_look(flags: Sequence[str]) -> Iterator[str]:
    """What the anomaly rules found (plain text), in one note."""
    if flags:
        yield f"Worth a look: {_listed([escape(flag) for flag in flags], count=FLAGS)}."


def _how(found: Comparisons, *, has_trials: bool, has_published: bool) -> str:
    count = len(found.pairs)
    over = "one comparison" if count == 1 else f"the {count:,} comparisons of this table"
    how = f"paired bootstrap on the same test images, {NUM_REPLICATES:,} replicates; Holm over {over}, 5 %"
    better = "better than every other measured row of its column"
    parts = [f"**Bold**: {better} ({how})" if found.bold else f"Nothing is bold: no value is {better} ({how})"]
    files = "these two files" if found.files == 2 else "these files"
    alone = ": one checkpoint a family" if found.families == found.files else ""
    parts.append(f"this compares {files}, not the methods{alone}" + (" (families: below)" if found.methods else ""))
    if found.single_runs:
        parts.append("where training is random and one seed was run, that run: what another would change is not in it")
    if has_trials:
        parts.append("low-shot is compared on these draws of the training images")
    if has_published:
        parts.append("published rows have no replicates and are not compared")
    return "; ".join(parts) + "."


def _ties(found: Comparisons) -> Iterator[str]:
    columns: dict[int, list[str]] = {}
    for verdict in found.verdicts:
        if verdict.tied:
            columns.setdefault(len(verdict.tied), []).append(escape(verdict.column))
    if columns:
        parts = [
            f"{counted(count, 'row')} cannot be told apart from the best in {', '.join(named)}"
            for count, named in columns.items()
        ]
        yield "; ".join(parts) + "."


def _power(found: Comparisons, layout: Layout) -> Iterator[str]:
    """What the test set is too small for, of the columns whose best row is not settled."""
    weak = {v.column: v.detectable for v in found.verdicts if v.tied and v.detectable and v.detectable > DETECTABLE}
    if weak:
        low, high = (fixed(end(weak.values()), layout.decimals) for end in (min, max))
        span = low if low == high else f"{low} to {high}"
        yield (
            f"Power: a difference of {DETECTABLE} point cannot be seen here. The two best rows would have to differ by "
            f"{span} points to be told apart four times in five (one comparison, 5 %), in {_joined(weak)}."
        )


def _methods(found: Comparisons, layout: Layout) -> Iterator[str]:
    if found.methods:
        listed = [_difference(pair, layout) for pair in found.methods]
        yield (
            "Families with several pre-training seeds, difference of their means [95 % interval] (p after Holm), the "
            f"spread between their files included: {_listed(listed, count=12)}."
        )


def _difference(pair: Comparison, layout: Layout) -> str:
    value, low, high = (fixed(number, layout.decimals) for number in (pair.difference, *pair.interval))
    pair_of = f"{escape(pair.best)} − {escape(pair.other)}"
    return f"{escape(pair.column)}: {pair_of} = {value} [{low}, {high}] (p {pair.p_holm:.3f})"


def _joined(names: Iterable[str]) -> str:
    return ", ".join(escape(name) for name in names)


def _listed(items: Sequence[str], *, count: int = NAMED) -> str:
    rest = len(items) - count
    return "; ".join(items[:count]) + (f" and {rest:,} more" if rest > 0 else "")

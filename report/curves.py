"""How did pre-training go? Loss, spread, gradient and kNN of several runs as one picture, and kNN per epoch as a table.

Reads the log.jsonl that `python -m pretrain` leaves in each run's folder. The picture holds no date and no random
identifiers: the same logs, the same bytes.
"""

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from zoo.errors import RecordError
from zoo.files import write_atomic

Entry = dict[str, Any]
HEALTHY = 1.0  # std of z/|z| times √d of outputs spread evenly (protocols §1.2)

PANELS = (  # key in the log, title; one that no log has is left out
    ("loss", "loss"),
    ("std_sqrt_d", "std(z/|z|)·√d (1: evenly spread)"),
    ("effective_rank", "effective rank of z/|z|"),
    ("gradient_norm", "norm of the gradient"),
)


def read_log(folder: Path) -> list[Entry]:
    """A run's log.jsonl, a dict a line. Raises RecordError naming the line that cannot be read."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise RecordError(f"{path}: no such file; expected a folder that python -m pretrain wrote.")
    entries: list[Entry] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RecordError(f"{path}:{number}: not JSON ({error.msg}).") from error
    return entries


def knn_table(runs: Sequence[tuple[str, list[Entry]]]) -> str:
    """Markdown: one row an epoch, one column a run, top-1 in percent; "–" where a run has no measurement."""
    columns = [(name, {e["epoch"] + 1: top1 for e in log if (top1 := knn(e)) is not None}) for name, log in runs]
    epochs = sorted({epoch for _, values in columns for epoch in values})
    lines = ["| epoch | " + " | ".join(name for name, _ in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for epoch in epochs:
        cells = [f"{values[epoch]:.1f}" if epoch in values else "–" for _, values in columns]
        lines.append(f"| {epoch} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def knn(entry: Entry) -> float | None:
    """The kNN top-1 of a line of the log, whatever its k; None where it has none."""
    return next((value for key, value in entry.items() if key.startswith("knn") and key.endswith("_top1")), None)


def draw(runs: Sequence[tuple[str, list[Entry]]], path: Path, *, baselines: Sequence[tuple[str, float]] = ()) -> None:
    """Write an SVG with a panel a value against the step: those of PANELS, and kNN top-1 with `baselines` as levels."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "transferzoo", "svg.fonttype": "none", "font.size": 9}):
        drawn = [
            (key, title) for key, title in PANELS if any(entry.get(key) is not None for _, log in runs for entry in log)
        ]
        figure, grid = pyplot.subplots(
            1, len(drawn) + 1, squeeze=False, figsize=(4 * len(drawn) + 4, 3.4), layout="constrained"
        )
        panels, neighbours = list(grid[0])[:-1], grid[0][-1]
        for number, (name, log) in enumerate(runs):
            color = f"C{number}"  # a run keeps its colour where another one has no points
            for panel, (key, _) in zip(panels, drawn, strict=True):
                points = [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]
                if points:
                    panel.plot(*zip(*points, strict=True), label=name, linewidth=1, color=color)
            measured = [(entry["step"], top1) for entry in log if (top1 := knn(entry)) is not None]
            if measured:
                neighbours.plot(*zip(*measured, strict=True), label=name, marker=".", color=color)
        for panel, (key, _) in zip(panels, drawn, strict=True):
            if key == "std_sqrt_d":
                panel.axhline(HEALTHY, color="grey", linestyle=":", linewidth=1)
        for number, (name, level) in enumerate(baselines):
            neighbours.axhline(level, color="grey", linestyle=("--", ":", "-.")[number % 3], linewidth=1, label=name)
        for panel, title in zip([*panels, neighbours], [*(t for _, t in drawn), "kNN top-1 in percent"], strict=True):
            panel.set_title(title)
            panel.set_xlabel("step")
            panel.spines[["top", "right"]].set_visible(False)
        neighbours.legend(frameon=False)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    write_atomic(path, buffer.getvalue())

"""What do runs of the paper's experiments give, beside the paper's own numbers? Tables, and its figure 2.

Reads run.json and log.jsonl of folders that `python -m pretrain` wrote, and configs/published/simsiam_ablations.yaml.
A run is put beside every row that states its options, whatever its network, data and length are: the paper's number is
ImageNet's, so only which options fail, and in which order the others come, can be compared.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError, model_validator

from report import curves
from report.markdown import escape
from report.published import ABLATIONS_NAME, FOLDER
from zoo.checkpoint import CARD_NAME, read_card
from zoo.config import Strict, load
from zoo.errors import RecordError, several
from zoo.files import digest, write_atomic
from zoo.recipe import PretrainConfig

LAST = 10  # logged steps behind the loss and deviation that are shown
BATCH_SIZE = "batch_size"
TABLES_NAME, FIGURE_NAME = "ablations.md", "figure2.svg"
Knobs = dict[str, str | bool | int]


class AblationRow(Strict):
    """One number of the paper. run: the options that a recipe must have, as they differ from the default."""

    label: str
    run: Knobs
    top1: float | str | None  # ImageNet linear, percent; a word, where the paper has one; null: not in the paper
    recalled: bool  # from memory, not checked against the source


class AblationTable(Strict):
    title: str
    source: str  # the row of the protocol sheet
    rows: tuple[AblationRow, ...]


class Ablations(Strict):
    """configs/published/simsiam_ablations.yaml."""

    name: str
    url: str
    default: Knobs
    tables: tuple[AblationTable, ...]

    @model_validator(mode="after")
    def _known(self) -> "Ablations":
        known = {*self.default, BATCH_SIZE}
        unknown = [
            f"{row.label}: {key}" for table in self.tables for row in table.rows for key in row.run.keys() - known
        ]
        if unknown:
            raise ValueError(f"run: expected options of {', '.join(sorted(known))}; found {', '.join(unknown)}")
        return self


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pre-training run, finished or not."""

    name: str
    config: PretrainConfig
    log: list[curves.Entry]

    @property
    def options(self) -> dict[str, Any]:
        return self.config.method.model_dump(mode="json")


def load_ablations(path: Path = FOLDER / ABLATIONS_NAME) -> Ablations:
    """The paper's numbers. Raises ConfigError."""
    return load(path, Ablations)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`. Raises one RecordError for all that are not a SimSiam run of this version."""
    runs: list[Run] = []
    problems: list[str] = []
    for folder in folders:
        try:
            runs.append(_read_run(folder))
        except RecordError as error:
            problems.append(str(error))
    if problems:
        raise RecordError(several(f"{len(problems)} of {len(folders)} folders cannot be read:", problems))
    return runs


def _read_run(folder: Path) -> Run:
    path = folder / "run.json"
    if not path.is_file():
        raise RecordError(f"{path}: no such file; expected a folder that python -m pretrain wrote.")
    try:
        config = PretrainConfig.model_validate_json(json.dumps(json.loads(path.read_text())["config"]))
    except (ValueError, KeyError) as error:
        first = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
        raise RecordError(
            f"{path}: expected a run of this version's recipes, found one that differs at {first}."
        ) from error
    if config.method.name != "simsiam":
        raise RecordError(f"{path}: expected a SimSiam run, found {config.method.name}.")
    name = read_card(folder).name if (folder / CARD_NAME).exists() else config.display
    return Run(name=name, config=config, log=curves.read_log(folder))


def matches(run: Run, row: AblationRow, default: Knobs) -> bool:
    """Whether `run` has the options of `row`; its batch size counts where the row states one."""
    stated = {**default, **row.run}
    found = {**run.options, BATCH_SIZE: run.config.batch_size}
    return all(found[key] == value for key, value in stated.items())


def render(runs: Sequence[Run], ablations: Ablations) -> str:
    """Markdown: the paper's tables, each row with the runs that are of it."""
    parts = [_table(table, runs, ablations.default) for table in ablations.tables]
    data = ", ".join(sorted({f"{run.config.arch} on {run.config.dataset} {run.config.split}" for run in runs}))
    notes = (
        f"- Paper: {ablations.name} ({ablations.url}): ImageNet linear top-1 in percent, ResNet-50, 100 epochs. "
        "\\*: recalled from memory, not checked against the printed page.\n"
        f"- Runs: {data}. Loss and std(z/|z|)·√d: medians of the last {LAST} logged steps; kNN: the monitor's last "
        "top-1 in percent. **Not comparable with the paper's column**, but for what fails and the order of the rest.\n"
        "- –: no such run, or no such number.\n"
    )
    return "\n".join([*parts, notes])


def _table(table: AblationTable, runs: Sequence[Run], default: Knobs) -> str:
    head = ("Setting", "Paper", "Run", "Epochs", "Batch", "Loss", "std·√d", "kNN")
    lines = [f"### {table.title}", "", _line(head), _line(["---"] * len(head))]
    for row in table.rows:
        mine = [run for run in runs if matches(run, row, default)]
        if row.top1 is None and not mine:
            continue
        published = "–" if row.top1 is None else row.top1 if isinstance(row.top1, str) else f"{row.top1:.1f}"
        shown = (escape(row.label), published + ("\\*" if row.recalled else ""))
        lines += [_line([*shown, *cells]) for cells in map(_cells, mine)] or [_line([*shown, *["–"] * 6])]
    return "\n".join([*lines, "", f"Source: {table.source}.", ""])


def _cells(run: Run) -> Iterator[str]:
    measured = [top1 for entry in run.log if (top1 := curves.knn(entry)) is not None]
    done = max((entry["epoch"] + 1 for entry in run.log if curves.knn(entry) is not None), default=0)
    yield escape(run.name)
    yield str(done) if done == run.config.epochs else f"{done} of {run.config.epochs}"
    yield str(run.config.batch_size)
    for key in ("loss", "std_sqrt_d"):
        values = [entry[key] for entry in run.log if key in entry][-LAST:]
        yield f"{median(values):.2f}" if values else "–"
    yield f"{measured[-1]:.1f}" if measured else "–"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def figure_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs with and without stop-gradient that have each other, all else but epochs and predictor lr equal."""

    def setting(run: Run) -> str:
        recipe = run.config.numerical()
        method = {key: value for key, value in recipe["method"].items() if key not in ("stop_gradient", "predictor_lr")}
        return digest({**recipe, "method": method, "epochs": None})

    kinds = {(setting(run), run.options["stop_gradient"]) for run in runs}
    return [run for run in runs if {(setting(run), True), (setting(run), False)} <= kinds]


def write(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write the tables, and figure 2 where there are runs for it, into `out`; what was written."""
    runs = read_runs(folders)
    write_atomic(out / TABLES_NAME, render(runs, load_ablations()))
    drawn = figure_runs(runs)
    if not drawn:
        return [out / TABLES_NAME]
    curves.draw([(run.name, run.log) for run in drawn], out / FIGURE_NAME)
    return [out / TABLES_NAME, out / FIGURE_NAME]

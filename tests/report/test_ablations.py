"""Runs of the paper's experiments beside its numbers: which row a run is of, and what is shown of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from report.__main__ import app
from report.ablations import figure_runs, load_ablations, matches, read_runs, render
from zoo.config import load
from zoo.errors import ConfigError, RecordError
from zoo.files import CONFIGS
from zoo.recipe import PretrainConfig

RECIPES = CONFIGS / "pretrain"
SMALL = RECIPES / "ablations" / "cifar10_simsiam_r18_4e.yaml"


def run_folder(parent: Path, recipe: Path = SMALL, overrides: tuple[str, ...] = (), epochs: int = 4) -> Path:
    """What a pre-training with this recipe leaves behind, after so many epochs."""
    config = load(recipe, PretrainConfig, overrides=overrides)
    folder = parent / f"run{len(list(parent.iterdir()))}"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    lines: list[dict[str, Any]] = []
    for epoch in range(epochs):
        lines += [{"epoch": epoch, "step": 10 * epoch + k, "loss": -0.1 * epoch, "std_sqrt_d": 0.9} for k in (1, 2)]
        lines.append({"epoch": epoch, "step": 10 * epoch + 2, "knn20_top1": 20.0 + epoch})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows_of(run: Path) -> list[str]:
    """The rows that a run stands beside, as "table: row"."""
    found, ablations = read_runs([run])[0], load_ablations()
    return [
        f"{table.title.split(' (')[0]}: {row.label}"
        for table in ablations.tables
        for row in table.rows
        if matches(found, row, ablations.default)
    ]


def test_a_run_stands_beside_the_rows_of_its_options(tmp_path: Path) -> None:
    assert rows_of(run_folder(tmp_path)) == [
        "Stop-gradient: with, constant predictor lr",
        "Predictor: (c) lr not decayed",
        "Batch size: 64",
        "Batch norm on the heads: (c) without affine",
        "Similarity: cosine",
        "Symmetry: symmetric",
    ]
    assert rows_of(run_folder(tmp_path, overrides=("method.predictor=none", "batch_size=32"))) == [
        "Predictor: (a) no predictor"
    ]
    assert rows_of(run_folder(tmp_path, overrides=("method.similarity=cross_entropy", "method.predictor=none"))) == []


def test_every_row_of_the_paper_has_a_recipe_at_full_size(tmp_path: Path) -> None:
    names = ["simsiam_r50_100e", "simsiam_r50_100e_b512"]
    paths = [RECIPES / f"{name}.yaml" for name in names] + sorted((RECIPES / "ablations").glob("simsiam_r50_*.yaml"))
    runs, ablations = read_runs([run_folder(tmp_path, path) for path in paths]), load_ablations()
    numbered = [row for table in ablations.tables for row in table.rows if row.top1 is not None]
    assert len(numbered) == 23
    for row in numbered:
        assert any(matches(run, row, ablations.default) for run in runs), row.label
    for run in runs:
        assert any(matches(run, row, ablations.default) for row in numbered), run.name


def test_the_tables_show_the_paper_and_the_runs(tmp_path: Path) -> None:
    unfinished = run_folder(tmp_path, overrides=("method.predictor=fixed_random", "display=a|b"), epochs=2)
    text = render(read_runs([run_folder(tmp_path), unfinished]), load_ablations())
    assert "| \\(c\\) lr not decayed" not in text and "| (c) lr not decayed | 68.1\\* | SimSiam, 4 epochs | 4 |" in text
    assert "| 64 | -0.15 | 0.90 | 23.0 |" in text
    assert "| (b) fixed random predictor | 1.5\\* | a\\|b | 2 of 4 | 64 | -0.05 | 0.90 | 21.0 |" in text
    assert "| without | 0.1 | – | – | – | – | – | – |" in text
    assert "without, constant predictor lr" not in text  # no number in the paper, and no run
    assert "resnet18 on cifar10_sample train" in text and "**Not comparable with the paper's column**" in text


def test_figure_2_takes_runs_that_differ_in_stop_gradient_and_length_only(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path, overrides=("epochs=60",)),
        run_folder(tmp_path, overrides=("method.stop_gradient=false",)),
        run_folder(tmp_path, overrides=("batch_size=128",)),
        run_folder(tmp_path, overrides=("method.stop_gradient=false", "method.predictor=none")),
    ]
    runs = read_runs(folders)
    assert figure_runs(runs) == runs[:2]
    assert figure_runs(runs[1:]) == []


def test_the_command_writes_tables_and_figure(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path), run_folder(tmp_path, overrides=("method.stop_gradient=false",))]
    out = tmp_path / "out"
    answer = CliRunner().invoke(app, ["ablations", *map(str, folders), "--out", str(out)])
    assert answer.exit_code == 0 and answer.output.splitlines() == [
        f"wrote {out / n}" for n in ("ablations.md", "figure2.svg")
    ]
    assert "<svg" in (out / "figure2.svg").read_text()
    answer = CliRunner().invoke(app, ["ablations", str(folders[0]), "--out", str(out)])
    assert (
        answer.output.splitlines()[1]
        == "no figure 2: it takes a run with and one without stop-gradient, all else equal."
    )


def test_folders_that_hold_no_such_run_are_named_together(tmp_path: Path) -> None:
    empty, old = tmp_path / "empty", tmp_path / "old"
    supervised = run_folder(tmp_path, RECIPES / "cifar10_supervised_r18.yaml")
    for folder in (empty, old):
        folder.mkdir()
    (old / "run.json").write_text(json.dumps({"config": {"name": "x"}}))
    with pytest.raises(RecordError) as caught:
        read_runs([empty, old, supervised])
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 3 folders cannot be read:"
    assert "no such file; expected a folder that python -m pretrain wrote." in lines[1]
    assert "expected a run of this version's recipes, found one that differs at" in lines[2]
    assert "expected a SimSiam run, found supervised." in lines[3]


def test_a_row_with_an_option_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ablations.yaml"
    path.write_text(
        "name: n\nurl: u\ndefault: {predictor: mlp}\ntables:\n  - title: t\n    source: s\n    rows:\n"
        "      - {label: a, run: {predictr: none}, top1: 1.0, recalled: false}\n"
    )
    with pytest.raises(ConfigError, match="run: expected options of batch_size, predictor; found a: predictr"):
        load_ablations(path)

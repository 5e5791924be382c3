"""Do the guides work as written? Their examples are taken out and run; what they name must exist."""

import importlib
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
import yaml

from converters.layouts import LAYOUTS
from evaluate.benchmarks import BENCHMARKS
from evaluate.cells import resolve
from evaluate.run import run_cell
from evaluate.suite_file import SuiteConfig
from report.published import load_published
from tests.converters import layout_table
from tests.docs.guides import DOCUMENTS, GUIDES, Command, block, commands, text_of
from zoo.benchmark import benchmark_layout
from zoo.checkpoint import CARD_NAME
from zoo.config import load
from zoo.datasets import dataset_config
from zoo.distributed import World
from zoo.files import CONFIGS, ROOT
from zoo.record import read_arrays, read_record

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
PACKAGES = ("zoo", "converters", "evaluate", "pretrain", "report")
MADE_BY_EXAMPLES = (
    "evaluate/centroid.py",
    "configs/benchmarks/mini_centroid.yaml",
    "tests/evaluate/test_centroid.py",
    "converters/layouts/otter.py",
)


def imported(name: str, code: str, folder: Path, patch: pytest.MonkeyPatch) -> ModuleType:
    """`code` as the module `name`, until the test ends."""
    path = folder / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        patch.setattr(importlib.import_module(parent), last, module, raising=False)
    spec.loader.exec_module(module)
    return module


def assert_adds_a_line(shown: str, path: str, key: str) -> None:
    """The block is what stands in the file, with one module more among the imports and one line in the table."""
    source = (ROOT / path).read_text()
    imports, _, table = shown.partition("\n\n")
    module = re.search(r"(\w+)(?:\.\w+)?,$", table.splitlines()[-1])
    assert module and table.splitlines()[-1].startswith(f'    "{key}": ')
    assert imports.replace(f" {module[1]},", "") in source, f"{path}: other imports than in the guide"
    assert table.splitlines()[0] in source, f"{path}: another table than in the guide"


# The examples


def test_the_example_benchmark_runs_and_its_test_passes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = "add_a_benchmark"
    module: Any = imported("evaluate.centroid", block(guide, "`evaluate/centroid.py`:"), tmp_path, monkeypatch)
    monkeypatch.setitem(BENCHMARKS, "centroid", module)
    config = block(guide, "`configs/benchmarks/mini_centroid.yaml`:").replace("mini_imagenet", "tiny")
    (tiny / "configs/benchmarks/tiny_centroid.yaml").write_text(config)
    cell = resolve("tiny_centroid", tiny / "checkpoint" / CARD_NAME, 0)
    record = read_record(run_cell(cell, tmp_path / "records", num_workers=0, me=ALONE))
    assert record.metrics["top1_avgpool"] > 50 and record.num_scored == 26  # chance: 33; the classes differ in colour
    arrays = read_arrays(tmp_path / "records", record)
    assert set(arrays) == {"sample/predicted_avgpool", "replicates/top1_avgpool"}
    (table,) = cell.config.tables
    assert set(filter(None, table.columns.values())) <= set(record.metrics)

    assert_adds_a_line(block(guide, "In `evaluate/benchmarks.py`"), "evaluate/benchmarks.py", "centroid")
    test: Any = imported("test_centroid", block(guide, "`tests/evaluate/test_centroid.py`:"), tmp_path, monkeypatch)
    found = [getattr(test, name) for name in dir(test) if name.startswith("test_")]
    assert len(found) == 3
    for function in found:
        function()


def test_the_example_layout_is_read_whole_and_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = "add_a_layout"
    reader: Any = imported(
        "converters.layouts.otter", block(guide, "`converters/layouts/otter.py`:"), tmp_path, monkeypatch
    )
    monkeypatch.setitem(LAYOUTS, "otter", reader.otter)
    made: Any = imported("made_otter", block(guide, "In `tests/converters/made_libraries.py`"), tmp_path, monkeypatch)
    monkeypatch.setitem(layout_table.MADE, "otter", made.otter)
    monkeypatch.setattr(layout_table, "SPOILT", layout_table.SPOILT | {"otter"})
    row = layout_table.row("otter", tmp_path)
    assert row.detected == ("otter",) and row.equal == row.tensors and not row.unexpected
    assert row.parity < layout_table.PARITY and row.groups == made.otter(layout_table.ARCH).groups
    assert set(row.outcomes.values()) == {"refused", "right"}, row.outcomes
    path = "converters/layouts/__init__.py"
    assert_adds_a_line(block(guide, f"In `{path}`"), path, "otter")


@pytest.mark.parametrize("before", ["`resources:` in a file of `configs/suites/`:", "what to ask Slurm for:"])
def test_the_example_resources_are_a_suites(before: str, tmp_path: Path) -> None:
    content = yaml.safe_load(block("cluster", before))
    assert list(content) == ["resources"]
    suite = {"name": "a", "checkpoints": [], "benchmarks": ["imagenet_knn"], "seeds": [0]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(suite | content))
    load(tmp_path / "a.yaml", SuiteConfig)


# What is named exists


@cache
def tree(package: str) -> Any:
    return typer.main.get_command(importlib.import_module(f"{package}.__main__").app)


def problems(command: Command) -> list[str]:
    """What is wrong with a command, by the parser of the module itself."""
    where = f"{command.where}: {command.module}{command.rest}"
    package = command.module.partition(".")[0]
    if command.module not in PACKAGES:
        there = importlib.util.find_spec(command.module) or importlib.util.find_spec(package)
        return [] if there else [f"{where}: no such module"]
    nodes, found = [tree(command.module)], []
    for word in command.words:
        groups = [node for node in nodes if hasattr(node, "commands")]
        if not groups:
            break
        unknown = [name for name in word.split("|") if not any(name in group.commands for group in groups)]
        found += [f"{where}: no command {name}" for name in unknown]
        nodes = [group.commands[n] for group in groups for n in word.split("|") if n in group.commands]
    known = {option for node in nodes for param in node.params for option in (*param.opts, *param.secondary_opts)}
    found += [f"{where}: no option {name}" for name in command.options if name not in known | {"--help"}]
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_the_documents_exists(path: Path) -> None:
    assert [problem for command in commands(path) for problem in problems(command)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_benchmarks_and_checkpoints_of_commands_exist(path: Path) -> None:
    known = {file.stem for file in CONFIGS.glob("*/*.yaml")} | {"NAME", "BENCHMARK", "mini_centroid"}
    told = [command.rest for command in commands(path)]
    named = {name for rest in told for name in re.findall(r"--benchmark (\w+)|\b(\w+_r\d+_\w+)\b", rest)}
    assert {name for pair in named for name in pair if name} - known == set()


def test_commands_are_found_in_blocks_and_in_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("Say `python -m zoo datasets fnd /data`.\n\n```\n./run_all.sh a.yaml --onli x  # --not\n```\n")
    found = [problem for command in commands(path) for problem in problems(command)]
    assert found == [
        "a.md: evaluate a.yaml --onli x: no option --onli",
        "a.md: zoo datasets fnd /data: no command fnd",
    ]


@pytest.mark.parametrize("guide", GUIDES)
def test_files_links_and_variables_of_a_guide_exist(guide: str) -> None:
    text = text_of(guide)
    roots = "configs|tests|evaluate|converters|zoo|report|scripts|docs|perf|engines"
    paths = set(re.findall(rf"(?<![\w/.])((?:{roots})/[\w./-]*\w)", text)) - set(MADE_BY_EXAMPLES)
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [link for link in links if not (ROOT / "docs" / link).exists()]
    assert missing == []
    told = (ROOT / "README.md").read_text() + (ROOT / "zoo/interrupt.py").read_text()
    assert [name for name in re.findall(r"ZOO_[A-Z_]+", text) if name not in told] == []
    protocols = (ROOT / "docs/protocols.md").read_text()
    assert [name for name in re.findall(r"\bD\d+\b", text) if f"| {name} |" not in protocols] == []


def test_the_faq_quotes_messages_that_are_said() -> None:
    packages = (*PACKAGES, "engines")
    source = "".join(path.read_text() for package in packages for path in (ROOT / package).rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # one message, written on several lines
    quotes = [" ".join(quote.split()) for quote in re.findall(r"“([^”]+)”", text_of("faq"))]
    assert len(quotes) > 8
    parts = [part.strip() for quote in quotes[1:] for part in quote.split("…")]  # the first explains the marks
    assert [part for part in parts if part not in source] == []


def test_the_faq_has_every_thread_of_the_protocol_sheet() -> None:
    sheet = (ROOT / "docs/protocols.md").read_text().partition("## 5.")[2].partition("## 6.")[0]
    threads = {line.split("|")[1].strip() for line in sheet.splitlines() if line.startswith("| ") and "#" in line}
    projects = {re.split(r"#", thread)[0].rpartition("/")[2] for row in threads for thread in row.split("; ")}
    assert {name for name in projects if name not in text_of("faq")} == set()


# The variants


def rows(heading: str) -> dict[str, list[str]]:
    """Benchmark → the cells of its row in the table below a heading of docs/variants.md."""
    part = text_of("variants").partition(heading)[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells for cells in lines}


def test_every_benchmark_is_listed_once_with_its_tables() -> None:
    published = load_published().tables
    protocols, substitutes = rows("# The protocols"), rows("## The same protocols on other images")
    configs = {path.stem: benchmark_layout(path.stem) for path in (CONFIGS / "benchmarks").glob("*.yaml")}
    assert sorted([*protocols, *substitutes]) == sorted(configs)
    for name, config in configs.items():
        assert (dataset_config(config.dataset).substitute_for is not None) == (name in substitutes), name
        if name in protocols:
            titles = []
            for table in config.tables:
                beside = table.id in published and published[table.id].dataset == config.dataset
                titles.append(f"**{table.title}**" if beside else table.title)
            assert protocols[name][-1] == "; ".join(titles), name
        else:
            originals = re.findall(r"`(\w+)`", substitutes[name][-1])
            assert originals and {configs[one].benchmark for one in originals} == {config.benchmark}, name


def test_sources_and_sections_are_those_of_the_files() -> None:
    for name, cells in rows("# The protocols").items():
        lines = (CONFIGS / f"benchmarks/{name}.yaml").read_text().splitlines()
        comment = "".join(line for line in lines if line.startswith("#"))
        told = re.findall(r"§(\d+\.\d+)", comment)
        assert set(cells[2].split(", ")) >= set(told[:1]), name
        listed = set(re.findall(r"\bD\d+\b", cells[3]))
        assert listed >= set(re.findall(r"\bD\d+\b", comment)), name

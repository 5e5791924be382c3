"""Does a suite file say what it may, become the rows it names, and narrow to what was asked for? Does status tell?"""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from converters.__main__ import convert
from engines.launch import ENGINES
from evaluate import status, suite
from evaluate.__main__ import app
from evaluate.cells import cell_id
from evaluate.estimates import estimate
from evaluate.sources import known_card
from evaluate.suite import Plan, Selection, make_plan, select
from evaluate.suite_file import SuiteConfig, SuiteResources
from tests.evaluate.tiny_world import dumped
from tests.report.drawn import record
from zoo.backbone import read_weights
from zoo.checkpoint import WEIGHTS_NAME, read_card, write_card
from zoo.config import dump_yaml
from zoo.datasets import Identity
from zoo.errors import CheckpointError, ConfigError, ZooError
from zoo.files import CONFIGS, digest, sha256_file
from zoo.page import PageRow
from zoo.record import write_record


@pytest.fixture
def cards(tiny: Path, tmp_path: Path) -> Path:
    """A folder of cards a, b, c of as many sets of weights, and one without a card."""
    template = read_card(tiny / "checkpoint")
    for name in "abc":
        folder = tmp_path / "cards" / name
        folder.mkdir(parents=True)
        (folder / WEIGHTS_NAME).write_text(name)
        hashes = {"weights_sha256": sha256_file(folder / WEIGHTS_NAME), "tensors_sha256": digest(name)}
        write_card(folder, template.model_copy(update={"name": f"row {name}", **hashes}))
    (tmp_path / "cards" / "unfinished").mkdir()
    return tmp_path / "cards"


def written(tiny: Path, folder: Path, **changes: Any) -> Path:
    """The tiny suite with changes, in `folder`."""
    path = folder / "suite.yaml"
    path.write_text(dumped(yaml.safe_load((tiny / "configs/suites/tiny.yaml").read_text()) | changes))
    return path


def planned(tiny: Path, folder: Path, **changes: Any) -> Plan:
    return make_plan(written(tiny, folder, **changes))


def fail(plan: Plan, key: str, reason: str = "no luck") -> None:
    (plan.folder / "failed").mkdir(parents=True, exist_ok=True)
    note = {"task": key, "exit_code": 1, "reason": reason}
    (plan.folder / "failed" / f"{key}.json").write_text(json.dumps(note))


def finish(plan: Plan, number: int) -> str:
    """A file in the place of the numbered cell's record; its id."""
    cell = list(plan.cells())[number].cell
    assert cell is not None
    plan.records.mkdir(parents=True, exist_ok=True)
    (plan.records / f"{cell.id}.json").write_text("{}")
    return cell.id


def states(plan: Plan) -> list[str]:
    return [cell.state for cell in plan.page().cells]


def test_a_pattern_of_cards_is_a_row_each_in_order(tiny: Path, cards: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path, checkpoints=[{"card": str(cards / "*")}])
    assert [source.label for source in plan.sources] == ["row a", "row b", "row c"]
    deep = planned(tiny, tmp_path, checkpoints=[{"card": str(tmp_path / "**" / "card.yaml")}])
    assert [source.key for source in deep.sources] == [source.key for source in plan.sources]
    shutil.copytree(cards / "a", cards / "d")  # the same weights twice are one row
    assert len(planned(tiny, tmp_path, checkpoints=[{"card": str(cards / "*")}]).sources) == 3


def test_a_pattern_that_fits_nothing_is_named(tiny: Path, cards: Path, tmp_path: Path) -> None:
    entries = [{"card": str(cards / "x*")}, {"file": "no/*.pth"}]
    entries += [{"series": {"files": "no/e*.pth", "family": "f", "name": "{epoch}"}}]
    with pytest.raises(ZooError) as error:
        planned(tiny, tmp_path, checkpoints=entries)
    for text in (
        f"card: {cards / 'x*'}: expected at least one card, or folder of a card, that the pattern fits",
        "file: no/*.pth: no such file; expected at least one that the pattern fits",
        "series: no/e*.pth: no such file",
    ):
        assert text in str(error.value)


def test_every_bad_card_of_a_pattern_is_named_at_once(tiny: Path, cards: Path, tmp_path: Path) -> None:
    (cards / "a" / WEIGHTS_NAME).write_text("changed")
    (cards / "c" / WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match="2 of 3 cannot be used") as error:
        planned(tiny, tmp_path, checkpoints=[{"card": str(cards / "*")}])
    assert "The file has changed" in str(error.value) and "found no such file" in str(error.value)


def test_a_pattern_of_files_is_a_row_each_and_takes_no_single_name(tiny: Path, tmp_path: Path) -> None:
    for name in ("b.pth", "a.pth"):
        (tmp_path / name).write_text(name)
    pattern = str(tmp_path / "?.pth")
    plan = planned(tiny, tmp_path, checkpoints=[{"file": pattern}])
    assert [source.label for source in plan.sources] == ["a", "b"]
    assert [source.make and source.make[2] for source in plan.sources] == [str(tmp_path / f"{n}.pth") for n in "ab"]
    with pytest.raises(ConfigError, match="2 files and one name, 'mine'; leave the name out"):
        planned(tiny, tmp_path, checkpoints=[{"file": pattern, "name": "mine"}])


def test_a_remembered_card_is_the_card_and_forgotten_when_it_changes(cards: Path) -> None:
    path = cards / "a" / "card.yaml"
    assert known_card(path) == known_card(path) == read_card(path)
    write_card(cards / "a", read_card(path).model_copy(update={"name": "another"}))
    assert known_card(path).name == "another"
    (cards / "a" / WEIGHTS_NAME).rename(cards / "a" / "own.safetensors")
    write_card(cards / "a", read_card(cards / "b").model_copy(update={"weights": "own.safetensors"}))
    with pytest.raises(CheckpointError, match=r"own\.safetensors: expected sha256"):
        known_card(path)


SERIES = {"family": "ours", "name": "ours, {epoch} epochs"}


@pytest.fixture
def backbone(tiny: Path) -> dict[str, torch.Tensor]:
    return dict(read_weights(tiny / "checkpoint" / WEIGHTS_NAME))


def test_a_series_is_ordered_by_the_files_own_epochs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names count from 0, and would put 100 before 99 as text."""
    for number in (9, 99, 199):
        (tmp_path / f"checkpoint_{number}.pth.tar").write_text(str(number))
    monkeypatch.setattr("converters.read.read", lambda path, take: _Read(int(path.name[11:-8]) + 1))
    monkeypatch.setattr("converters.inspect.epochs", lambda content, reading: content)
    entry = {"series": SERIES | {"files": str(tmp_path / "checkpoint_*.pth.tar")}}
    plan = planned(tiny, tmp_path, checkpoints=[entry])
    assert [source.label for source in plan.sources] == [f"ours, {epoch} epochs" for epoch in (10, 100, 200)]
    make = plan.sources[1].make
    assert make is not None and make[2] == str(tmp_path / "checkpoint_99.pth.tar")
    assert make[4:] == ("--name", "ours, 100 epochs", "--family", "ours", "--epochs", "100")
    monkeypatch.setattr("converters.read.read", None)  # remembered: nothing is opened again
    assert planned(tiny, tmp_path, checkpoints=[entry]).sources == plan.sources


class _Read:
    def __init__(self, epoch: int | None) -> None:
        self.content, self.reading = epoch, None


def test_a_series_falls_back_on_the_numbers_in_the_names(
    tiny: Path, tmp_path: Path, backbone: dict[str, torch.Tensor]
) -> None:
    for name in ("r18_epoch_20.pth", "r18_epoch_3.pth"):
        torch.save(backbone, tmp_path / name)
    entry = {"series": SERIES | {"files": str(tmp_path / "r18_*.pth")}}
    plan = planned(tiny, tmp_path, checkpoints=[entry])
    assert [source.label for source in plan.sources] == ["ours, 3 epochs", "ours, 20 epochs"]
    make = plan.sources[0].make
    assert make is not None
    convert(make[2], Path(make[3]), name=make[5], family=make[7], epochs=int(make[9]))
    card = read_card(plan.sources[0].card_path)
    assert (card.name, card.family, card.epochs) == ("ours, 3 epochs", "ours", 3)

    torch.save(backbone, tmp_path / "r18_last.pth")
    torch.save(backbone, tmp_path / "r18_also_3.pth")
    (tmp_path / "r18_broken.pth").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="expected files of different epochs") as error:
        planned(tiny, tmp_path, checkpoints=[entry])
    for text in ("r18_last.pth: says no epoch", "both of epoch 3", "r18_broken.pth"):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"checkpoints": [{"series": {"files": "x", "family": "f", "name": "no number"}}]},
            r"expected \{epoch\} in it",
        ),
        ({"checkpoints": [{"card": "x", "take": "a:b"}]}, "take: not for card"),
        ({"resources": {"by_kind": {"cook": {}}}}, "by_kind: expected make, extract, cell, report, .*found cook"),
        ({"resources": {"slurm": {"gress": 1}}}, r"resources.slurm.gress: unknown key"),
        ({"resources": {"jobs": 0}}, r"resources.jobs: input should be greater than 0"),
    ],
)
def test_a_wrong_suite_says_what_is_wrong(tiny: Path, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(tiny, tmp_path, **changes)


def test_resources_of_a_benchmark_go_before_those_of_its_kind(tiny: Path, tmp_path: Path) -> None:
    block = {"by_kind": {"cell": {"hours": 2.0, "procs": 1}, "linear": {"procs": 8}}, "slurm": {"partition": "gpu"}}
    plan = planned(tiny, tmp_path, resources=block)
    found = plan.suite.resources
    assert (found.of("cell", "linear").hours, found.of("cell", "linear").procs) == (2.0, 8)
    assert found.of("cell", "knn").procs == 1 and found.of("make").hours is None
    assert found.slurm is not None and found.slurm.partition == "gpu" and SuiteResources().of("cell").procs is None
    bare = planned(tiny, tmp_path)
    assert [source.key for source in bare.sources] == [source.key for source in plan.sources]


def test_cells_ids_are_those_that_running_computes(tiny: Path, cards: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path, checkpoints=[{"card": str(cards / "*")}], seeds=[0, 3])
    cells = [one.cell for one in plan.cells()]
    assert len(cells) == 3 * (1 + 2)
    for cell in cells:
        assert cell is not None and cell.id == cell_id(cell.config, cell.card, cell.datasets, cell.seed)


def test_a_benchmark_may_have_seeds_of_its_own(tiny: Path, cards: Path, tmp_path: Path) -> None:
    """As detection has five trials where the rest has one; a deterministic benchmark still has one cell."""
    own = {"tiny_linear": [0, 1, 2, 3, 4], "tiny_knn": [0, 1]}
    plan = planned(tiny, tmp_path, checkpoints=[{"card": str(cards / "*")}], seeds=[7], benchmark_seeds=own)
    found = {(one.benchmark, one.seed) for one in plan.cells()}
    assert found == {("tiny_knn", 7), *(("tiny_linear", seed) for seed in range(5))}
    page = plan.page()
    assert len(page.cells) == 3 * 6
    with pytest.raises(ConfigError, match="benchmark_seeds: tiny_lin not among the suite's benchmarks"):
        planned(tiny, tmp_path, benchmark_seeds={"tiny_lin": [0]})


def test_a_missing_engine_skips_its_benchmarks_but_hides_no_result(
    tiny: Path, cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZOO_DETECTION_PYTHON", raising=False)
    monkeypatch.setattr("evaluate.knn.ENGINE", "detectron2")  # a benchmark whose data is here
    changes = {"checkpoints": [{"card": str(cards / "a")}, {"card": str(cards / "b")}]}
    assert states(planned(tiny, tmp_path, **changes)) == ["ready"] * 4
    kept = finish(planned(tiny, tmp_path, **changes), 0)
    monkeypatch.setitem(ENGINES, "detectron2", _Absent)
    plan = planned(tiny, tmp_path, **changes)
    assert plan.skipped == {"tiny_knn": "detectron2 is not installed: pip install it"}
    assert states(plan) == ["done", "ready", "skipped", "ready"]
    assert [one.cell is None for one in plan.cells()] == [False, False, True, False]
    assert plan.page().cells[0].cell_id == kept
    with pytest.raises(ZooError, match="detectron2 is not installed in .*: pip install it"):  # nothing is left
        planned(tiny, tmp_path, **changes, benchmarks=["tiny_knn"])
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", "no-such-python")
    with pytest.raises(ZooError, match="ZOO_DETECTION_PYTHON: expected a Python interpreter, found 'no-such-python'"):
        planned(tiny, tmp_path, **changes)


class _Absent:
    packages = ("no_such_package",)
    releases: ClassVar[dict[str, Any]] = {}
    variable = "ZOO_DETECTION_PYTHON"
    hint = "pip install it"


@pytest.fixture
def three(tiny: Path, cards: Path, tmp_path: Path) -> Iterator[Path]:
    """The suite of three cards on both tiny benchmarks."""
    yield written(tiny, tmp_path, checkpoints=[{"card": str(cards / "*")}, {"random": "resnet18"}])


def wanted(plan: Plan, selection: Selection) -> list[tuple[str, str]]:
    return [(one.source.label, one.benchmark) for one in plan.cells() if selection.wants(one)]


def test_a_selection_by_patterns(three: Path) -> None:
    plan = make_plan(three)
    assert len(wanted(plan, select(plan))) == len(list(plan.cells())) == 8 and not select(plan).force
    assert wanted(plan, select(plan, only=["ROW b"])) == [("row b", "tiny_knn"), ("row b", "tiny_linear")]
    assert {name for _, name in wanted(plan, select(plan, only=["*_knn"]))} == {"tiny_knn"}
    assert len(wanted(plan, select(plan, only=["row a", "*knn", f"{plan.sources[1].key}"]))) == 2 + 1 + 1 + 1 + 1
    chosen = select(plan, only=["row *"], force=True)
    assert [chosen.wants(source) for source in plan.sources] == [True, True, True, False] and chosen.force
    assert all(map(select(plan, only=["tiny_linear"]).wants, plan.sources))
    with pytest.raises(ConfigError, match=r"--only rwo \*: fits no checkpoint and no benchmark of suite 'tiny'.*row a"):
        select(plan, only=["row a", "rwo *"])


def test_a_selection_of_what_failed(three: Path) -> None:
    plan = make_plan(three)
    with pytest.raises(ConfigError, match="--failed: nothing in suite 'tiny' has a note of failure"):
        select(plan, failed=True)
    cell = next(plan.cells()).cell
    assert cell is not None
    fail(plan, cell.id)
    fail(plan, plan.sources[3].key)
    selection = select(plan, failed=True)
    drawn = plan.sources[3].label
    assert wanted(plan, selection) == [("row a", "tiny_knn"), (drawn, "tiny_knn"), (drawn, "tiny_linear")]
    assert [selection.wants(source) for source in plan.sources] == [False, False, False, True]
    with pytest.raises(ConfigError, match="note of failure that --only fits"):
        select(plan, failed=True, only=["row b"])
    fail(plan, f"features-{plan.sources[1].key}-tiny")  # its cells waited for it
    assert ("row b", "tiny_linear") in wanted(plan, select(plan, failed=True))


def test_options_of_the_suite_command_reach_the_run(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr("evaluate.__main__.run_suite", lambda path, **options: calls.append(options) or 5)
    options = ["--only", "*knn", "--force", "--jobs", "3", "--on", "slurm", "--no-wait", "--workers", "0"]
    assert CliRunner().invoke(app, ["suite", str(three), *options]).exit_code == 5
    assert CliRunner().invoke(app, ["suite", str(three)]).exit_code == 5
    chosen = calls[0].pop("selection")
    assert (chosen.only, chosen.failed, chosen.force) == (("*knn",), None, True)
    assert calls[0] == {
        "added": (),
        "num_workers": 0,
        "num_processes": 1,
        "jobs": 3,
        "on": "slurm",
        "wait": False,
    }
    assert calls[1]["selection"] == Selection() and calls[1]["wait"] and calls[1]["jobs"] is None
    assert "fits no checkpoint" in str(CliRunner().invoke(app, ["suite", str(three), "--only", "x"]).exception)


def test_a_forced_run_keeps_the_old_record_until_it_has_another(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(three)
    old = plan.records / f"{finish(plan, 0)}.json"
    seen: list[bool] = []
    monkeypatch.setattr("evaluate.run.run_cell", lambda cell, records, **options: seen.append(old.exists()))
    cell = next(plan.cells()).cell
    assert cell is not None
    file = str(plan.cell_file(cell))
    assert "measured already" in CliRunner().invoke(app, ["run", "--cell", file]).output and not seen
    assert CliRunner().invoke(app, ["run", "--cell", file, "--force"]).exit_code == 0 and seen == [True]


def test_a_record_never_stands_beside_the_arrays_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while a cell measured again is being written: it is to be measured once more."""
    first = write_record(tmp_path, record("a", "mini_knn", {"top1_k10": 50.0}), {"x": np.zeros(3)})
    monkeypatch.setattr("zoo.record.file_path", None)  # fails between the arrays and the record
    with pytest.raises(TypeError):
        write_record(tmp_path, record("a", "mini_knn", {"top1_k10": 60.0}), {"x": np.ones(3)}, {"heads": b""})
    assert not first.exists()


def test_the_page_tells_training_from_reading(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("a")
    plan = planned(tiny, tmp_path, checkpoints=[{"file": str(tmp_path / "a.pth")}])
    fail(plan, plan.sources[0].key)
    assert plan.page().rows == (
        PageRow(key=plan.sources[0].key, label="a", state="failed", note="it could not be made"),
    )


def test_status_counts_and_shows_failures_with_their_last_lines(three: Path) -> None:
    plan = make_plan(three)
    finish(plan, 0)
    cell = list(plan.cells())[1].cell
    assert cell is not None
    fail(plan, cell.id, "line one\nRuntimeError: no luck")
    text = CliRunner().invoke(app, ["status", str(three)]).output
    assert text.startswith("suite tiny: 1 done, 1 failed, 4 ready, 2 waiting; nobody runs it\n")
    assert "checkpoints: 3 of 4 here\n  resnet18, random weights: waiting (not here yet)\n" in text
    assert f"failed: tiny_linear on row a, log in {plan.folder}/logs/{cell.id}.log" in text
    assert "\n    line one\n    RuntimeError: no luck\n" in text


def test_status_shows_what_runs_and_its_last_line(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(three)
    logs = plan.folder / "logs"
    logs.mkdir(parents=True)
    cells = [one.cell for one in plan.cells() if one.cell]
    (logs / f"{cells[1].id}.log").write_text("of a run long ago\n")
    with (logs / f"{cells[0].id}.log").open("w") as log:
        child = subprocess.Popen(["sleep", "60"], stdout=log, stderr=subprocess.STDOUT)  # its log, as a task's is
        log.write("epoch 1\nepoch 2: 10 %\repoch 2: 20 %\r")
    jobs = plan.folder / "jobs"
    jobs.mkdir()
    for number in (2, 3):
        (jobs / f"{cells[number].id}.json").write_text("{}")
    (jobs / f"{cells[3].id}.exit.json").write_text("{}")
    os.utime(jobs / f"{cells[2].id}.json", (0, time.time() - 7200))
    try:
        text = status.report(status.standing(plan))
    finally:
        child.kill()
        child.wait()
    assert ": tiny_knn on row a\n  epoch 2: 20 %\n" in text and "running for " in text
    assert "with Slurm for 2.0 h: tiny_knn on row b\n" in text
    assert "tiny_linear on row" not in text
    assert not status.standing(plan).running[0].title.startswith("tiny_knn on row a")


HOLD = (
    "import fcntl, sys\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\nprint(flush=True)\nsys.stdin.read()"
)


def test_watching_ends_when_nobody_runs_the_suite(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(three)
    assert not status.is_active(plan.folder) and not (plan.folder / "lock").exists()
    plan.folder.mkdir(parents=True)
    command = [sys.executable, "-S", "-c", HOLD, str(plan.folder / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdin is not None
    holder.stdout.readline()
    assert status.standing(plan).active
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait()

    monkeypatch.setattr(status.time, "sleep", sleep)
    shown = io.StringIO()
    status.watch(three, (), Console(file=shown, width=100))
    holder.stdout.close()
    assert looks == [status.WATCH_SECONDS] and "nobody runs it" in shown.getvalue()


def test_status_cuts_long_lists_short(three: Path) -> None:
    found = status.standing(make_plan(three))
    row = PageRow(key="k", label="l", state="waiting", note="n")
    text = status.report(replace(found, rows=(row,) * 50))
    assert text.count("l: waiting (n)") == status.SHOWN and "… and 30 more checkpoints" in text


FACTS = {"num_images": 5000, "num_classes": 20}


@pytest.mark.parametrize("path", sorted((CONFIGS / "suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_plans_where_its_data_and_engines_are(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(name: str, split: str) -> Identity:
        return Identity(dataset=name, split=split, sha256=digest([name, split]), **FACTS)

    for module in ("evaluate.cells", "evaluate.sources", "evaluate.estimates"):
        monkeypatch.setattr(f"{module}.identity", fake)
    monkeypatch.setattr(suite, "interpreter", lambda name: "python")
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    added = ["supervised_r50_torchvision_v1"] if "checkpoints: []" in path.read_text() else []
    plan = make_plan(path, added)
    assert not plan.skipped and set(states(plan)) == {"waiting"}
    found = estimate(plan)
    assert len(found.rows) == len(plan.sources) + len(list(plan.cells()))
    assert all(row.hours and row.hours > 0 and row.basis == "stated" for row in found.rows)


def test_the_acceptance_suite_measures_the_published_checkpoint() -> None:
    content = (CONFIGS / "suites" / "first_hour.yaml").read_text()
    for value in ("57.4", "57.6", "55.8", "54.2", "84.64", "39.65", "82.56"):  # configs/published/mmselfsup.yaml
        assert value in content and value in (CONFIGS / "published" / "mmselfsup.yaml").read_text()
    assert "Not run here" in content
    assert dump_yaml(SuiteConfig.model_json_schema()) and "simsiam_r50_100e_mmselfsup0" in content

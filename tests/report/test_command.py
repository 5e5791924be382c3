"""The commands, their exit codes, and what importing the report costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import report.__main__ as command
from report.committed import build_committed
from report.published import load_published
from tests.report.drawn import knn, measured, record, row, suite
from zoo.command import guarded
from zoo.files import ROOT


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `python -m report ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        guarded(command.app)
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "RESULTS.md").write_text("<!-- generated: begin -->\n<!-- generated: end -->\n")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    return tmp_path


def test_check_prints_the_difference_and_leaves_with_2(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "check") == 2
    said = capsys.readouterr()
    assert "+## Classification" in said.out
    assert said.err.startswith(
        "error: the committed text differs from what its sources give; run python -m report build"
    )


def test_build_then_check_leaves_with_0(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "build") == 0
    assert run(monkeypatch, "check") == 0
    assert capsys.readouterr().out == f"wrote {root / 'RESULTS.md'}\nup to date\n"


def test_check_writes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in root.iterdir()}
    run(monkeypatch, "check")
    assert {path: path.read_bytes() for path in root.iterdir()} == before


def test_build_with_a_suites_folder_leaves_the_committed_page_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_committed(root, load_published())
    before = (root / "RESULTS.md").read_bytes()
    folder = tmp_path / "runs" / "mini"
    page = suite(folder, [row("a")], measured(record("a", "mini_knn", knn(50, 51, 52, 53))))
    assert run(monkeypatch, "build", str(folder)) == 0
    assert (folder / "RESULTS.md").read_text() == page
    assert (root / "RESULTS.md").read_bytes() == before


def test_an_unreadable_record_ends_the_command_with_2_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = record("a", "mini_knn", knn(50, 51, 52, 53))
    suite(tmp_path, [row("a")], measured(result))
    (tmp_path / "records" / f"{result.cell_id}.json").write_text("{")
    assert run(monkeypatch, "build", str(tmp_path)) == 2
    assert f"{result.cell_id}.json: not a readable result record" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["report", "report.table", "report.__main__"])
def test_importing_the_report_loads_no_torch_and_no_other_package_of_ours(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "scipy", "sklearn", "faiss", "matplotlib", "cv2"}
    ours = {"engines", "converters", "evaluate", "pretrain", "mini"}
    assert set(done.stdout.split()) & (heavy | ours) == set()

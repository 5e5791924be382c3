"""Run what a suite lacks: sequentially, one process a task, failures isolated, then write the page.

Each task's output goes to its own log; a failed task leaves a note with the last lines of it, is shown, and is tried
again by the next run. Tasks die with this process, so a rerun never meets a leftover of the last one.
"""

import contextlib
import fcntl
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluate.engine import tidy
from evaluate.suite import Plan, PlannedCell, Source, make_plan
from zoo.errors import CollapseError, ZooError
from zoo.files import ROOT, ensure_writable, write_atomic
from zoo.page import write_page
from zoo.process import die_with_parent

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 10.0


def run_suite(path: Path, *, added: Sequence[str] = (), num_workers: int, num_processes: int) -> int:
    """Do all that is missing; 0, or the exit code of the first failure. The page is written in any case."""
    plan = make_plan(path, added)
    ensure_writable(plan.folder)
    with _alone(plan):
        runner = _Runner(plan, num_workers=num_workers, num_processes=num_processes)
        for source in plan.sources:
            runner.make(source)
        plan = make_plan(path, added)  # cells have ids now
        runner.plan = plan
        write_page(plan.folder, plan.page())
        todo: list[PlannedCell] = []
        for planned in plan.cells():
            if planned.cell is None:
                continue
            if plan.is_done(planned.cell):
                tidy(plan.folder / "work" / planned.cell.id)  # killed between its record and its tidying
            else:
                todo.append(planned)
        for planned in todo:
            assert planned.cell is not None
            runner.extract(planned, todo)
            cell_file = str(plan.cell_file(planned.cell))
            title = f"{planned.cell.name} on {planned.cell.card.name}"
            runner.task(planned.cell.id, title, ("evaluate", "run", "--cell", cell_file, *runner.options()))
        plan = make_plan(path, added)
        write_page(plan.folder, plan.page())
        built = subprocess.run([sys.executable, "-m", "report", "build", str(plan.folder)], cwd=ROOT, check=False)
    _summary(plan, runner)
    return runner.exit_code or built.returncode


@contextlib.contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """Hold the suite's lock. Raises ZooError when another process runs the same suite in the same folder."""
    with (plan.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ZooError(
                f"suite '{plan.suite.name}' is running already in {plan.folder}; wait for it, or set ZOO_RUNS to "
                "another folder."
            ) from None
        yield


class _Runner:
    """Runs tasks one after the other and remembers the first failure."""

    def __init__(self, plan: Plan, *, num_workers: int, num_processes: int) -> None:
        self.plan = plan
        self.num_workers = num_workers
        self.num_processes = num_processes
        self.exit_code = 0
        self.num_run = 0
        self.failed: list[str] = []
        self.extracted: set[str] = set()  # tried once a run: a cell whose features could not be had tries by itself

    def options(self) -> tuple[str, ...]:
        return ("--workers", str(self.num_workers), "--procs", str(self.num_processes))

    def make(self, source: Source) -> None:
        """Train or convert one checkpoint unless it is there, or known to collapse."""
        if source.card is not None or source.collapsed() or source.make is None:
            return
        extra = self.options() if source.make[0] == "pretrain" else ()
        accepted = (0, CollapseError.exit_code) if source.expect_collapse else (0,)
        code = self.task(source.key, source.label, (*source.make, *extra), accepted=accepted)
        if source.expect_collapse and code == 0:
            self._failure(source.key, source.label, "expected to be stopped as collapsed, but it was not", 1)

    def extract(self, planned: PlannedCell, todo: Sequence[PlannedCell]) -> None:
        """Extract, once, the features that several cells of one checkpoint and one dataset are waiting for.

        A cell alone extracts what it needs by itself: a process less.
        """
        cell = planned.cell
        assert cell is not None
        group = f"features-{planned.source.key}-{cell.config.dataset}"
        cells = [
            other.cell
            for other in todo
            if other.cell is not None
            and other.source.key == planned.source.key
            and other.cell.config.dataset == cell.config.dataset
            and self.plan.missing_features(other.cell)
        ]
        if group in self.extracted or len(cells) < 2:
            return
        self.extracted.add(group)
        arguments = ["evaluate", "extract"]
        for other in cells:
            arguments += ["--cell", str(self.plan.cell_file(other))]
        self.task(group, f"features of {cell.card.name} on {cell.config.dataset}", (*arguments, *self.options()))

    def task(self, key: str, title: str, arguments: Sequence[str], *, accepted: Sequence[int] = (0,)) -> int:
        """Run `python -m <arguments>` with its output in logs/<key>.log; its exit code."""
        log_path = self.plan.folder / "logs" / f"{key}.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self.num_run += 1
        log.info("%s …", title)
        started = time.monotonic()
        with log_path.open("w") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
            try:
                code = _wait(child, log_path)
            except BaseException:
                child.terminate()
                child.wait()
                raise
        if code in accepted:
            (self.plan.folder / "failed" / f"{key}.json").unlink(missing_ok=True)
            log.info("%s: %s (%.0f s)", title, _last_line(log_path), time.monotonic() - started)
        else:
            self._failure(key, title, "\n".join(log_path.read_text(errors="replace").splitlines()[-15:]), code)
        return code

    def _failure(self, key: str, title: str, reason: str, code: int) -> None:
        note = {"task": title, "exit_code": code, "reason": reason}
        write_atomic(self.plan.folder / "failed" / f"{key}.json", json.dumps(note, indent=1) + "\n")
        log.error("FAILED (exit code %d): %s\n    %s", code, title, reason.replace("\n", "\n    "))
        self.failed.append(title)
        self.exit_code = self.exit_code or code


def _wait(child: "subprocess.Popen[bytes]", log_path: Path) -> int:
    """The child's exit code; its last log line is shown now and then, so that a long task is seen to live."""
    shown = ""
    while True:
        try:
            return child.wait(timeout=HEARTBEAT_SECONDS)
        except subprocess.TimeoutExpired:
            line = _last_line(log_path)
            if line and line != shown:
                log.info("    %s", line)
                shown = line


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "done"


def _summary(plan: Plan, runner: _Runner) -> None:
    states = [cell.state for cell in plan.page().cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    log.info("suite %s: %d tasks run; cells: %s", plan.suite.name, runner.num_run, counts)
    for name, reason in plan.skipped.items():
        log.info("skipped: %s: %s", name, reason)
    for title in runner.failed:
        log.info("failed: %s", title)
    log.info("page: %s", plan.folder / "RESULTS.md")

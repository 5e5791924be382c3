"""Where does a suite stand: what is done, what runs and what it said last, what failed and why? Needs no torch.

Everything is read off the files that a run leaves, and off the processes of this machine: a task runs if a process
writes its log, or if Slurm was given it (jobs/<key>.json) and has not ended it (jobs/<key>.exit.json).
"""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from evaluate.estimates import duration
from evaluate.suite import Plan, make_plan
from zoo.page import PageRow

WATCH_SECONDS = 2.0
SHOWN = 20  # failures and rows; the rest is counted
TAIL_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class Running:
    """A task under way. seconds: since it was started, or for Slurm's since it was submitted; line: its log's last."""

    title: str
    seconds: float
    line: str
    slurm: bool


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A task with a note of failure. reason: the last lines of its log."""

    title: str
    reason: str
    log: Path


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What `status` shows. active: somebody holds the suite's lock."""

    suite: str
    active: bool
    counts: dict[str, int]  # state of a cell → how many
    rows: tuple[PageRow, ...]
    running: tuple[Running, ...]
    failures: tuple[Failure, ...]
    skipped: dict[str, str]


def standing(plan: Plan) -> Standing:
    """Where `plan`'s suite stands at this moment."""
    page = plan.page()
    failed = plan.failures()
    titles = _titles(plan)
    return Standing(
        suite=page.suite,
        active=is_active(plan.folder),
        counts=dict(Counter(cell.state for cell in page.cells)),
        rows=page.rows,
        running=tuple(_running(plan, titles)),
        failures=tuple(
            Failure(title=title, reason=plan.failure(key) or "", log=plan.folder / "logs" / f"{key}.log")
            for key, title in titles.items()
            if key in failed
        ),
        skipped=plan.skipped,
    )


def is_active(folder: Path) -> bool:
    """Whether somebody runs the suite in `folder`: holds its lock."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def report(found: Standing) -> str:
    """The standing as text."""
    return "\n".join(_lines(found)) + "\n"


def watch(path: Path, added: Sequence[str], console: Console) -> None:
    """Show the standing, anew every two seconds, until nobody runs the suite any more."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = standing(make_plan(path, added))
            live.update(Text(report(found)), refresh=True)
            if not found.active:
                return
            time.sleep(WATCH_SECONDS)


def _titles(plan: Plan) -> dict[str, str]:
    """Task's key → what it is called."""
    titles = {source.key: source.label for source in plan.sources}
    for planned in plan.cells():
        if planned.cell is not None and planned.features_key is not None:
            seed = f", seed {planned.seed}" if planned.seed else ""
            titles[planned.cell.id] = f"{planned.benchmark} on {planned.source.label}{seed}"
            titles[planned.features_key] = f"features of {planned.source.label} on {planned.cell.config.dataset}"
    return titles


def _running(plan: Plan, titles: dict[str, str]) -> Iterator[Running]:
    now = time.time()
    started = _writers(plan.folder / "logs")
    for key in sorted(started, key=started.__getitem__):
        line = _last_line(plan.folder / "logs" / f"{key}.log")
        yield Running(title=titles.get(key, key), seconds=now - started[key], line=line, slurm=False)
    for job in sorted((plan.folder / "jobs").glob("*.json")):
        ended = job.with_name(f"{job.stem}.exit.json").exists()
        if job.stem in titles and job.stem not in started and not ended:
            line = _last_line(plan.folder / "logs" / f"{job.stem}.log")
            seconds = now - job.stat().st_mtime
            yield Running(title=titles[job.stem], seconds=seconds, line=line, slurm=True)


def _writers(logs: Path) -> dict[str, float]:
    """Task's key → when the first process that has its log as standard output was started, in seconds since 1970."""
    folder = str(logs.resolve())
    started: dict[str, float] = {}
    boot: float | None = None
    for process in os.listdir("/proc"):
        if not process.isdecimal():
            continue
        try:
            place, name = os.path.split(os.readlink(f"/proc/{process}/fd/1"))
            if place != folder or not name.endswith(".log"):
                continue
            # proc(5): the name, the second field, is in parentheses; the 22nd is the start in ticks since the boot
            ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
        except OSError:
            continue  # another user's, or gone by now
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) if boot is None else boot
        start = boot + ticks / os.sysconf("SC_CLK_TCK")
        key = name.removesuffix(".log")
        started[key] = min(start, started.get(key, start))
    return started


def _last_line(path: Path) -> str:
    """The last line of a log that says something; progress bars end theirs with a carriage return."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = log.read().decode(errors="replace").replace("\r", "\n")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _lines(found: Standing) -> Iterator[str]:
    counts = ", ".join(f"{number} {state}" for state, number in found.counts.items())
    yield f"suite {found.suite}: {counts or 'no cells'}; {'running' if found.active else 'nobody runs it'}"
    ready = sum(row.state == "ready" for row in found.rows)
    yield f"checkpoints: {ready} of {len(found.rows)} here"
    absent = [f"  {row.label}: {row.state}{f' ({row.note})' if row.note else ''}" for row in found.rows if row.note]
    yield from _cut(absent, "checkpoints")
    for task in found.running:
        where = "with Slurm for" if task.slurm else "running for"
        yield f"{where} {duration(task.seconds / 3600)}: {task.title}"
        if task.line:
            yield f"  {task.line[:200]}"
    failures: list[str] = []
    for failure in found.failures:
        reason = "".join(f"\n    {line}" for line in failure.reason.splitlines())
        failures.append(f"failed: {failure.title}, log in {failure.log}{reason}")
    yield from _cut(failures, "failures")
    for name, reason in found.skipped.items():
        yield f"skipped: {name}: {reason}"


def _cut(lines: list[str], what: str) -> Iterator[str]:
    yield from lines[:SHOWN]
    if len(lines) > SHOWN:
        yield f"… and {len(lines) - SHOWN} more {what}"

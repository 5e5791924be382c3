"""Run what a suite lacks: a process a task, as many at once as there are slots, failures isolated, then the page.

Each task's output goes to its own log; a failed task leaves a note with the last lines of it, is shown, and is tried
again by the next run. A task that was stopped to be run again (75) goes on at once; one that was killed is tried once
more; any other failure stands until the next run. What needs a failed task is not run. Where tasks run is the
executor's affair: `Here`, below, or Slurm (evaluate/slurm.py).
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from evaluate.engine import tidy
from evaluate.suite import Plan, Selection, make_plan
from evaluate.tasks import Task, tasks
from zoo.errors import ConfigError, ZooError
from zoo.files import ROOT, ensure_writable, write_atomic
from zoo.interrupt import INTERRUPTED, REQUEUE
from zoo.page import write_page
from zoo.process import die_with_parent

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 10.0
GO_ON: Final = (REQUEUE, -signal.SIGUSR1, 128 + signal.SIGUSR1)  # the latter two: asked before it could answer
KILLED: Final = (-signal.SIGKILL, 128 + signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, INTERRUPTED)
MAX_REQUEUES = 1000  # a task that never gets on must end some time
LOG_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A task's end. `how`: words for the failure note where the log cannot say it."""

    task: Task
    code: int
    how: str = ""


class Executor(Protocol):
    """Where tasks run."""

    chains: bool  # takes a task while its needs still run, and keeps it back until they have succeeded

    def adopt(self, task: Task) -> bool:
        """Whether the task is running already, started by an earlier controller; from now on it is looked after."""
        ...

    def start(self, chosen: Sequence[Task], *, again: bool = False) -> list[Task]:
        """Start those of `chosen` that there is room for, in order; these. again: their logs are continued."""
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """What has ended; waits for the first, `seconds` at most."""
        ...

    def cancel(self, task: Task) -> None:
        """End a task that waits for others."""
        ...

    def stop(self) -> None:
        """The controller leaves."""
        ...


def run_suite(
    path: Path,
    *,
    added: Sequence[str] = (),
    num_workers: int,
    num_processes: int,
    jobs: int | None = None,
    on: Literal["local", "slurm"] = "local",
    wait: bool = True,
    selection: Selection | None = None,
) -> int:
    """Do all that is missing; 0, or the exit code of the first failure. The page is written in any case.

    jobs: tasks at once on this machine; default: the suite's, else one a GPU, or one. wait=False (Slurm only): submit
    what can be submitted and leave. Raises ConfigError, ZooError; KeyboardInterrupt once the children have ended.
    """
    if not wait and on == "local":
        raise ConfigError("--no-wait: expected --on slurm with it; tasks on this machine end with the command.")
    plan = make_plan(path, added)
    ensure_writable(plan.folder)
    slurm = plan.suite.resources.slurm
    with _alone(plan):
        executor: Executor
        if on == "slurm":
            from evaluate.slurm import Slurm

            executor = Slurm(plan.folder, plan.suite)
        else:
            executor = Here(plan.folder, jobs=jobs or plan.suite.resources.jobs, procs=num_processes)

        def look() -> tuple[Plan, list[Task]]:
            plan = make_plan(path, added)
            block = slurm if on == "slurm" else None
            sizes = {"num_workers": num_workers, "num_processes": num_processes}
            return plan, tasks(plan, **sizes, selection=selection, slurm=block)

        run = _Run(executor, look)
        run.go(wait=wait)
        plan = make_plan(path, added)
        write_page(plan.folder, plan.page())
        built = subprocess.run([sys.executable, "-m", "report", "build", str(plan.folder)], cwd=ROOT, check=False)
    _summary(plan, run)
    return run.exit_code or built.returncode


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


class _Look(Protocol):
    def __call__(self) -> tuple[Plan, list[Task]]: ...


class _Run:
    """What waits, what runs, what has failed. Asks for the list of tasks anew after every checkpoint that was made."""

    def __init__(self, executor: Executor, look: _Look) -> None:
        self.executor = executor
        self.look = look
        self.known: dict[str, Task] = {}
        self.waiting: list[Task] = []
        self.running: dict[str, float] = {}  # key → when it was started
        self.failed: dict[str, str] = {}  # key → title
        self.blocked: dict[str, str] = {}  # title → title of the failed task it needs
        self.stops: Counter[str] = Counter()  # how often a task was stopped or killed in this run
        self.kills: Counter[str] = Counter()
        self.shown: dict[str, str] = {}
        self.exit_code = 0
        self.num_run = 0
        self.refresh(first=True)

    def go(self, *, wait: bool) -> None:
        """Until nothing is left that can run; without `wait` only until all that can be is started."""
        beat = time.monotonic()
        try:
            self.start()
            while self.running and wait:
                for ended in self.executor.wait(HEARTBEAT_SECONDS):
                    self.settle(ended)
                self.start()
                if time.monotonic() - beat >= HEARTBEAT_SECONDS:
                    self.show()
                    beat = time.monotonic()
        except BaseException:
            self.executor.stop()
            raise

    def refresh(self, *, first: bool = False) -> None:
        """Learn of tasks that have a name by now, and let the page know."""
        self.plan, found = self.look()
        write_page(self.plan.folder, self.plan.page())
        place = {task.key: number for number, task in enumerate(found)}
        for task in found:
            if task.key not in self.known:
                self.known[task.key] = task
                if self.executor.adopt(task):
                    self.running[task.key] = time.monotonic()
                    log.info("%s: is running already", task.title)
                else:
                    self.waiting.append(task)
        self.waiting.sort(key=lambda task: place.get(task.key, -1))  # stable: what was put back stays in front
        if first:
            for folder in (self.plan.folder / "work").glob("*"):  # killed between its record and its tidying
                if (self.plan.records / f"{folder.name}.json").exists() and folder.name not in self.known:
                    tidy(folder)

    def start(self) -> None:
        """Start what has all it needs and finds room; drop what never will."""
        while self.start_some():  # what has just been started may be what others follow
            pass

    def start_some(self) -> bool:
        ready: list[Task] = []
        for task in list(self.waiting):
            lacking = next((need for need in task.needs if need in self.failed), None)
            if lacking is not None:
                self.waiting.remove(task)
                self.blocked[task.title] = self.failed[lacking]
            elif all(self.is_ready(need) for need in task.needs):
                ready.append(task)
        before = self.num_run
        for again in (True, False):
            chosen = [task for task in ready if (self.stops[task.key] > 0) == again]
            for task in self.executor.start(chosen, again=again) if chosen else ():
                self.waiting.remove(task)
                self.running[task.key] = time.monotonic()
                self.num_run += 1
                log.info("%s …", task.title)
        return self.num_run > before

    def is_ready(self, need: str) -> bool:
        if need in self.running or any(task.key == need for task in self.waiting):
            return self.executor.chains and need in self.running
        return True

    def settle(self, ended: Ended) -> None:
        """Done, to go on, to try once more, or failed."""
        task, code = ended.task, ended.code
        seconds = time.monotonic() - self.running.pop(task.key)
        if code in task.accepted:
            (self.plan.folder / "failed" / f"{task.key}.json").unlink(missing_ok=True)
            log.info("%s: %s (%.0f s)", task.title, last_line(log_path(self.plan.folder, task.key)), seconds)
        elif code in GO_ON and self.stops[task.key] < MAX_REQUEUES:
            self.put_back(task, "was stopped to be run again; going on")
        elif code in KILLED and not self.kills[task.key]:
            self.kills[task.key] += 1
            self.put_back(task, f"was killed ({ended.how or f'exit code {code}'}); trying once more")
        elif code == 0:
            self.fail(task, "expected to be stopped as collapsed, but it was not", 1)
        else:
            reason = log_tail(log_path(self.plan.folder, task.key))
            self.fail(task, "\n".join(part for part in (reason, ended.how) if part), code)
        if task.kind == "make" and task not in self.waiting:
            self.refresh()

    def put_back(self, task: Task, why: str) -> None:
        self.stops[task.key] += 1
        log.warning("%s: %s", task.title, why)
        self.withdraw(task)
        self.waiting.insert(0, task)

    def withdraw(self, task: Task) -> None:
        """What was started to follow `task` waits again."""
        for key in [key for key in self.running if task.key in self.known[key].needs]:
            del self.running[key]
            self.executor.cancel(self.known[key])
            self.waiting.append(self.known[key])

    def fail(self, task: Task, reason: str, code: int) -> None:
        write_failure(self.plan.folder, task.key, title=task.title, reason=reason, code=code)
        log.error("FAILED (exit code %d): %s\n    %s", code, task.title, reason.replace("\n", "\n    "))
        self.failed[task.key] = task.title
        self.exit_code = self.exit_code or code
        self.withdraw(task)

    def show(self) -> None:
        """The last log lines now and then, so that a long task is seen to live."""
        if len(self.running) > 4:
            log.info("    %d tasks running or queued, %d waiting", len(self.running), len(self.waiting))
            return
        for key in self.running:
            path = log_path(self.plan.folder, key)
            line = last_line(path) if path.exists() and path.stat().st_size else ""
            if line and line != self.shown.get(key):
                log.info("    %s%s", f"{self.known[key].title}: " if len(self.running) > 1 else "", line)
                self.shown[key] = line


class Here:
    """This machine: a slot a GPU, or `jobs` slots. Children die with this process, so a rerun meets no leftovers."""

    chains = False

    def __init__(self, folder: Path, *, jobs: int | None, procs: int) -> None:
        self.folder = folder
        self.gpus = _gpus()
        self.jobs = jobs or max(1, len(self.gpus) // procs)
        self.free = list(self.gpus)
        self.running: dict[str, tuple[Task, subprocess.Popen[bytes], list[str]]] = {}

    def adopt(self, task: Task) -> bool:
        return False

    def start(self, chosen: Sequence[Task], *, again: bool = False) -> list[Task]:
        started: list[Task] = []
        for task in chosen:
            wanted = min(task.resources.gpus or task.resources.procs, len(self.gpus))
            if len(self.running) >= self.jobs or wanted > len(self.free):
                break  # in order: what is large must not be overtaken for ever
            mine, self.free = self.free[:wanted], self.free[wanted:]
            path = log_path(self.folder, task.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if again else "w") as output:
                child = subprocess.Popen(
                    [sys.executable, "-m", *task.arguments],
                    cwd=ROOT,
                    env=self._environment(mine),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,
                )
            self.running[task.key] = (task, child, mine)
            started.append(task)
        return started

    def _environment(self, gpus: Sequence[str]) -> dict[str, str]:
        env = dict(os.environ)
        if gpus:
            from zoo.device import only

            env |= only(gpus)
        elif self.jobs > 1:  # tasks side by side share the cores out
            env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.jobs)))
        return env

    def wait(self, seconds: float) -> list[Ended]:
        deadline = time.monotonic() + seconds
        while True:
            over = [key for key, (_, child, _) in self.running.items() if child.poll() is not None]
            if over or time.monotonic() >= deadline:
                return [self._end(key) for key in over]
            time.sleep(0.05)

    def _end(self, key: str) -> Ended:
        task, child, gpus = self.running.pop(key)
        self.free += gpus
        return Ended(task=task, code=child.returncode)

    def cancel(self, task: Task) -> None:
        raise AssertionError("nothing is started here before what it needs has ended")

    def stop(self) -> None:
        """End the children, which save their states first, and wait for them."""
        for _, child, _ in self.running.values():
            child.terminate()
        for _, child, _ in self.running.values():
            child.wait()


def _gpus() -> list[str]:
    """The GPUs that tasks may use, as the driver names them; [] on a machine without, where torch is not loaded."""
    driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()
    if os.environ.get("ZOO_DEVICE") == "cpu" or not driver:
        return []
    from zoo.device import visible

    return visible()


def log_path(folder: Path, key: str) -> Path:
    return folder / "logs" / f"{key}.log"


def log_tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:]) if path.exists() else ""


def last_line(path: Path) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "done"


def write_failure(folder: Path, key: str, *, title: str, reason: str, code: int) -> None:
    """failed/<key>.json: what `status` and the page show, until the task has succeeded."""
    note = {"task": title, "exit_code": code, "reason": reason}
    write_atomic(folder / "failed" / f"{key}.json", json.dumps(note, indent=1) + "\n")


def _summary(plan: Plan, run: _Run) -> None:
    states = [cell.state for cell in plan.page().cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    log.info("suite %s: %d tasks run; cells: %s", plan.suite.name, run.num_run, counts)
    for name, reason in plan.skipped.items():
        log.info("skipped: %s: %s", name, reason)
    for title in run.failed.values():
        log.info("failed: %s", title)
    for title, need in run.blocked.items():
        log.info("not run: %s: waiting for %s, which failed", title, need)
    if run.running:
        log.info("%d jobs are with Slurm; run the same command again to look after them", len(run.running))
    log.info("page: %s", plan.folder / "RESULTS.md")

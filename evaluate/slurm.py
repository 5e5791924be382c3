"""The same tasks as Slurm jobs: each runs the identical line `python -m …`, in arrays, one behind the other.

submitit writes the batch scripts; what it does at a time limit is replaced, because a pickled function knows nothing of
a training's state: a command that is asked to stop saves its state and ends with 75, and its job puts itself back into
Slurm's queue. What has become of a job is read from the note that it leaves, and from squeue where it could leave none;
accounting (sacct) is not needed. Which job does what is kept in runs/<suite>/jobs/<key>.json, written before the job is
submitted: a controller that was killed finds its jobs by their name, looks after them, and submits nothing twice.
"""

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from evaluate.queue import GO_ON, Ended, log_path, log_tail, write_failure
from evaluate.suite_file import Kind, SlurmResources, SuiteConfig
from evaluate.tasks import Resources, Task
from zoo.errors import ConfigError, ZooError
from zoo.files import ROOT, write_atomic
from zoo.interrupt import REQUEUE
from zoo.process import die_with_parent

if TYPE_CHECKING:
    import submitit

log = logging.getLogger(__name__)
WARNING_SECONDS = 120  # between SIGUSR1 and the time limit: what a state's saving may take
LOOK_SECONDS = 0.5  # between looks at the jobs' notes
ASK_SECONDS = 10.0  # between questions to Slurm
MISSES = 2  # how many answers in a row must say that a job without a note has ended
MAX_ARRAY = 1000  # Slurm's MaxArraySize is 1001 by default
ENDED: Final = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT REVOKED".split()
)
NOT_ITS_FAULT: Final = frozenset(("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT"))


# In the job


def run_task(folder: str, task: Task, again: bool) -> None:
    """What a job does: run the task's line, then leave a note, or put itself back into the queue. Leaves the process.

    again: its log is continued. A job of several nodes calls this once on each; the processes meet under torchrun
    (zoo.distributed.launch).
    """
    import submitit

    here = submitit.JobEnvironment()
    suite = Path(folder)
    for signum in (signal.SIGTERM, signal.SIGUSR1):  # Slurm sends them to the command as well, which answers them
        signal.signal(signum, lambda signum, frame: None)
    with (suite / "jobs" / f"{task.key}.lock").open("w") as lock:
        if here.global_rank == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)  # were a task ever in two jobs, the second would find all done
            _exit_path(suite, task.key).unlink(missing_ok=True)
        code = _run_line(suite, task, here, again=again)
        if here.global_rank == 0:
            _leave(suite, task, code, here.job_id)
    sys.exit(0 if code in task.accepted else code % 256 or 1)


def _run_line(suite: Path, task: Task, here: "submitit.JobEnvironment", *, again: bool) -> int:
    env, path = dict(os.environ), log_path(suite, task.key)
    if here.num_tasks > 1:
        host = env.get("SLURM_LAUNCH_NODE_IPADDR") or here.hostnames[0]  # the first node's: it runs the batch script
        port = 20000 + int(env["SLURM_JOB_ID"]) % 10000
        env |= {"ZOO_NODES": str(here.num_tasks), "ZOO_RENDEZVOUS": f"{host}:{port}"}
        if here.global_rank > 0:
            path = path.with_suffix(f".node{here.global_rank}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    again = again or int(env.get("SLURM_RESTART_COUNT", 0)) > 0
    with path.open("a" if again else "w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *task.arguments],
            cwd=ROOT,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        ).wait()


def _leave(suite: Path, task: Task, code: int, job: str) -> None:
    """The job's last words. One that is to go on asks Slurm for it, unless Slurm is ending it on somebody's order."""
    if code in GO_ON:
        state = (squeue("--jobs", job) or {}).get(job, ("UNKNOWN", ""))[0]
        if state != "RUNNING":
            return  # cancelled, or put back by Slurm itself after a preemption
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            sys.exit(REQUEUE)
        print(f"not put back by Slurm ({asked.stderr.strip()}); the controller will submit it again", flush=True)
    if code in task.accepted:
        (suite / "failed" / f"{task.key}.json").unlink(missing_ok=True)
    elif code not in GO_ON:
        reason = log_tail(log_path(suite, task.key))
        write_failure(suite, task.key, title=task.title, reason=reason, code=code)
    write_atomic(_exit_path(suite, task.key), json.dumps({"job": job, "code": code}) + "\n")


# In the controller


@dataclass
class _Job:
    """A submitted task. `misses`: answers of squeue in a row that did not have it running or waiting."""

    task: Task
    id: str
    misses: int = 0


class Slurm:
    """Submits tasks as jobs and looks after them; those of one kind and one need go into an array together."""

    chains = True

    def __init__(self, folder: Path, suite: SuiteConfig) -> None:
        missing = [name for name in ("sbatch", "srun", "squeue", "scontrol", "scancel") if not shutil.which(name)]
        if missing:
            raise ConfigError(
                f"--on slurm: expected Slurm's commands on PATH, found no {', '.join(missing)}; start this on a login "
                "node of the cluster."
            )
        self.folder = folder.resolve()
        self.name = f"zoo-{suite.name}"
        self.settings = suite.resources.slurm or SlurmResources()
        self.jobs: dict[str, _Job] = {}
        self.asked = 0.0
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        listed = squeue()
        if listed is None:
            raise ZooError("--on slurm: squeue gave no answer; is slurmctld running? (scontrol ping)")
        self.listed = listed

    def adopt(self, task: Task) -> bool:
        path = _job_path(self.folder, task.key)
        if not path.exists() or _exit_path(self.folder, task.key).exists():
            return False
        note = json.loads(path.read_text())
        job = note["job"] or self._by_name(note["name"], note["index"])
        if job is None or job not in self.listed or self.listed[job][0] in ENDED:
            return False
        self.jobs[task.key] = _Job(task, job)
        return True

    def _by_name(self, name: str, index: int) -> str | None:
        """The job of a submission after which the controller was killed before it could write down its id."""
        found = [job for job, (_, job_name) in self.listed.items() if job_name == name]
        return next((job for job in found if job.partition("_")[2] in ("", str(index))), None)

    def start(self, chosen: Sequence[Task], *, again: bool = False) -> list[Task]:
        groups: dict[tuple[Kind, Resources, tuple[str, ...]], list[Task]] = {}
        for task in chosen:
            needed = tuple(sorted(self.jobs[need].id for need in task.needs if need in self.jobs))
            groups.setdefault((task.kind, task.resources, needed), []).append(task)
        for (_, _, needed), group in groups.items():
            for first in range(0, len(group), MAX_ARRAY):
                self._submit(group[first : first + MAX_ARRAY], needed, again=again)
        return list(chosen)

    def _submit(self, group: Sequence[Task], needed: Iterable[str], *, again: bool) -> None:
        import submitit
        from submitit.core.utils import FailedJobError

        name = f"{self.name}-{uuid.uuid4().hex[:12]}"
        for index, task in enumerate(group):
            _exit_path(self.folder, task.key).unlink(missing_ok=True)
            _write_job(self.folder, task.key, name=name, index=index, job=None)
        executor = submitit.SlurmExecutor(folder=self.folder / "jobs" / "slurm", python=sys.executable)
        executor.update_parameters(job_name=name, **parameters(group[0], self.settings, needed))
        same = [str(self.folder)] * len(group), group, [again] * len(group)
        try:
            submitted = executor.map_array(run_task, *same)
        except FailedJobError as error:
            raise ZooError(f"sbatch refused the jobs of '{group[0].title}': {error}".rstrip()) from error
        for index, (task, job) in enumerate(zip(group, submitted, strict=True)):
            _write_job(self.folder, task.key, name=name, index=index, job=str(job.job_id))
            self.jobs[task.key] = _Job(task, str(job.job_id))
        log.info("slurm: %d job(s) submitted as %s", len(group), name)

    def wait(self, seconds: float) -> list[Ended]:
        deadline = time.monotonic() + seconds
        while True:
            over = [ended for job in list(self.jobs.values()) if (ended := self._by_note(job))]
            if not over and time.monotonic() - self.asked >= ASK_SECONDS:
                over = self._by_state()
                self.asked = time.monotonic()
            for ended in over:
                del self.jobs[ended.task.key]
            if over or time.monotonic() >= deadline:
                return over
            time.sleep(LOOK_SECONDS)

    def _by_note(self, job: _Job) -> Ended | None:
        try:
            note = json.loads(_exit_path(self.folder, job.task.key).read_text())
        except FileNotFoundError:
            return None
        return Ended(task=job.task, code=note["code"])

    def _by_state(self) -> list[Ended]:
        """Jobs that Slurm ended, or lost, before they could leave a note."""
        listed = squeue()
        if listed is None:
            log.warning("slurm: squeue gave no answer; asking again")
            return []
        over: list[Ended] = []
        for job in self.jobs.values():
            state = listed.get(job.id, ("forgotten", ""))[0]
            job.misses = job.misses + 1 if state in ENDED or state == "forgotten" else 0
            if job.misses >= MISSES and self._by_note(job) is None:
                code = REQUEUE if state in NOT_ITS_FAULT else -signal.SIGKILL
                over.append(Ended(task=job.task, code=code, how=f"Slurm's job {job.id}: {state}"))
        return over

    def cancel(self, task: Task) -> None:
        job = self.jobs.pop(task.key)
        subprocess.run(["scancel", job.id], capture_output=True, check=False)
        _job_path(self.folder, task.key).unlink(missing_ok=True)

    def stop(self) -> None:
        if self.jobs:
            ids = sorted({job.id.partition("_")[0] for job in self.jobs.values()})
            log.info(
                "slurm: %d jobs go on without this command; run it again to look after them, or end them with: "
                "scancel %s",
                len(self.jobs),
                " ".join(ids),
            )


def parameters(task: Task, settings: SlurmResources, needed: Iterable[str]) -> dict[str, object]:
    """submitit's words for what a job takes. Raises ConfigError without a time limit: Slurm warns before it."""
    wanted = task.resources
    if wanted.hours is None:
        raise ConfigError(
            f"resources: expected the hours that a job may run, found neither slurm.time_hours nor by_kind.{task.kind}."
            "hours in the suite."
        )
    found: dict[str, object] = {
        "time": max(1, round(60 * wanted.hours)),
        "nodes": wanted.nodes,
        "ntasks_per_node": 1,  # torchrun starts the processes
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "gpus_per_node": wanted.gpus or None,
        "cpus_per_task": settings.cpus_per_gpu and settings.cpus_per_gpu * max(1, wanted.gpus),
        "mem": wanted.memory_gb and f"{round(1024 * wanted.memory_gb)}M",
        "array_parallelism": settings.array_parallelism,
        "setup": list(settings.setup) or None,
        "stderr_to_stdout": True,
        "dependency": ":".join(("afterok", *needed)) if needed else None,
        "additional_parameters": {
            "chdir": str(ROOT),
            "signal": f"USR1@{WARNING_SECONDS}",
            "requeue": True,
            "kill-on-invalid-dep": "yes",
        },
    }
    return {name: value for name, value in found.items() if value is not None}


def squeue(*options: str) -> dict[str, tuple[str, str]] | None:
    """Job id (12, or 12_3 in an array) → (state, name) of this user's jobs; None when Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%j", *options]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return None
    if asked.returncode:
        return None
    rows = (line.strip().split("|", 2) for line in asked.stdout.splitlines() if line.strip())
    return {job: (state, name) for job, state, name in rows}


def _job_path(folder: Path, key: str) -> Path:
    return folder / "jobs" / f"{key}.json"


def _exit_path(folder: Path, key: str) -> Path:
    return folder / "jobs" / f"{key}.exit.json"


def _write_job(folder: Path, key: str, *, name: str, index: int, job: str | None) -> None:
    write_atomic(_job_path(folder, key), json.dumps({"name": name, "index": index, "job": job}) + "\n")

"""Is this machine ready? Each check says what it found and, where that is not right, what to do.

    ok        as it should be
    info      worth knowing, nothing to do: a dataset without a place, a speed
    warning   works, but slower, or for less than everything
    problem   some command will fail, or do something else than it seems to

Each check is a function of what it looks at, so that a test can show it another machine. Nothing is changed, but for
the folders of ZOO_RUNS and ZOO_CACHE, which are made and written to, as every command does.
"""

import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from zoo.config import read_yaml
from zoo.datasets import DatasetConfig, class_names, data_file, dataset_config, dataset_names, dataset_place, manifest
from zoo.errors import ConfigError, DataError, ZooError
from zoo.files import ROOT, cache_dir, ensure_writable, runs_dir
from zoo.verify import TIMED, broken, check_bytes, described, named, sample, throughput

log = getLogger(__name__)
State = Literal["ok", "info", "warning", "problem"]
GIB = 2**30
TESTED_PYTHON = (3, 11)
BATCH_BYTES = 256 * 3 * 224 * 224  # the largest batch a loader worker hands over: 256 images of 224 x 224 pixels
READ_AHEAD = 4  # batches a worker holds ready (zoo/loading.py)
PROCESS_GIB = 2  # of memory for the process that computes, on the CPU: torch, a ResNet-50 and its activations
WORKER_GIB = 0.5  # for a loader process: torch, and a batch of decoded pictures
FEATURES_GIB = 11  # ImageNet's 1.33 M images x 2,048 features x 4 bytes: what one checkpoint's kNN puts into the cache
OPEN_FILES = (256, 1024)  # below: problem, warning. Loader workers pass each batch through open files
CLOCK_SECONDS = 5
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
WIDTH = 30  # of the column of names
UNLIMITED = 2**60  # version 1 control groups say "no limit" with a huge number


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at. fix: what to do about a warning or a problem."""

    name: str
    state: State
    found: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "found": self.found, "fix": self.fix}


def examine(names: Sequence[str] = (), *, workers: int, checksum: bool = False) -> Iterator[Check]:
    """Every check, one after the other. names: of the datasets to look at; none: all that are described."""
    yield python_version(sys.version_info[:3])
    requirements = (ROOT / "requirements.txt").read_text()
    yield from packages(requirements, _installed)
    memory = _memory_bytes()
    yield processors(len(os.sched_getaffinity(0)), _quota(), workers)
    yield memory_for(memory, workers)
    yield shared_memory(Path("/dev/shm"), workers)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield from disk("ZOO_RUNS", runs_dir(), needed_gib=1)
    yield from disk("ZOO_CACHE", cache_dir(), needed_gib=FEATURES_GIB)
    log.info("GPUs …")
    found = _ask_torch()
    yield from found if isinstance(found, list) else gpus(*found, faiss=_installed("faiss-gpu"))
    log.info("engines …")
    yield from engines(_ask_engines(), num_gpus=0 if isinstance(found, list) else len(found[0]["gpus"]))
    yield from places(data_file(), dataset_names())
    for name in names or dataset_names():
        log.info("dataset %s …", name)
        yield from dataset(name, workers=workers, checksum=checksum)


def python_version(version: tuple[int, ...]) -> Check:
    text = ".".join(map(str, version))
    state: State = "problem" if version < TESTED_PYTHON else "ok" if version[:2] == TESTED_PYTHON else "warning"
    fixes = {"problem": "use Python 3.11", "warning": "what is pinned is tested with Python 3.11 only"}
    return Check(name="Python", state=state, found=f"{text}, {sys.executable}", fix=fixes.get(state, ""))


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def packages(requirements: str, installed: Any) -> Iterator[Check]:
    """The pinned packages of requirements.txt, and one of the two faiss. installed: name → version or None.

    Only those that the commands themselves import are a problem when missing: the engines are asked for themselves
    (`engines`), and the tools of development serve nobody else.
    """
    needed, others = pinned(requirements)
    versions = {one: installed(one.name) for one in (*needed, *others)}
    missing = [one.name for one in needed if versions[one] is None]
    faiss = [name for name in ("faiss-cpu", "faiss-gpu") if installed(name)]
    if not faiss:
        missing.append("faiss-cpu or faiss-gpu")
    fix = "./run_all.sh brings .venv up to date; into another Python: python -m pip install -r requirements.txt"
    if missing:
        yield Check(name="packages", state="problem", found=f"missing: {', '.join(missing)}", fix=fix)
    if len(faiss) > 1:
        both = "faiss-cpu and faiss-gpu hold the same files"
        yield Check(name="packages", state="problem", found=both, fix="python -m pip uninstall both, install one")
    absent = [one.name for one in others if versions[one] is None]
    if absent:
        found = f"missing, for engines or development only: {', '.join(absent)}"
        yield Check(name="packages", state="warning", found=found, fix=fix)
    different = [
        f"{one.name} {version} ({one.specifier})"
        for one, version in versions.items()
        if version is not None and not one.specifier.contains(version, prereleases=True)
    ]
    if different:
        found = f"other versions than those tested: {', '.join(different)}"
        yield Check(name="packages", state="warning", found=found, fix=fix)
    if not (missing or absent or different or len(faiss) > 1):
        found = f"{len(versions)} pinned packages and {faiss[0]}, all in their versions"
        yield Check(name="packages", state="ok", found=found)


def pinned(requirements: str) -> tuple[list[Requirement], list[Requirement]]:
    """requirements.txt's packages: (those that commands import, those under "what detectron2 …" and "development")."""
    needed: list[Requirement] = []
    others: list[Requirement] = []
    into = needed
    for line in requirements.splitlines():
        if line.startswith(("# what detectron2", "# development")):
            into = others
        if text := line.partition("#")[0].strip():
            into.append(Requirement(text))
    return needed, others


def processors(usable: int, quota: float | None, workers: int) -> Check:
    """usable: cores this process may run on; quota: how many cores' time its control group gives it."""
    cores = min(usable, quota) if quota else usable
    found = f"{usable} cores" + (f", limited to {quota:g} by a control group" if quota and quota < usable else "")
    if workers > cores:
        fix = f"--workers {max(1, int(cores))}: more loader processes than cores slow each other down"
        return Check(name="processors", state="warning", found=f"{found}, {workers} loader workers", fix=fix)
    return Check(name="processors", state="ok", found=f"{found}, {workers} loader workers")


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those it lies in, for either version of them."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = GROUPS / controllers  # "": version 2, one tree for all
        inner = top / path.lstrip("/")
        yield from (inner, *(parent for parent in inner.parents if parent.is_relative_to(top)))


def _limit(path: Path) -> list[str]:
    """The words of a control group's file; none where it says that there is no limit, or is not there."""
    try:
        return [word for word in path.read_text().split() if word not in ("max", "-1")]
    except OSError:
        return []


def _quota() -> float | None:
    """How many cores' time this process's control group gives it; None: no limit."""
    found: list[float] = []
    for folder in _groups("cpu"):
        one = _limit(folder / "cpu.max")
        two = _limit(folder / "cpu.cfs_quota_us") + _limit(folder / "cpu.cfs_period_us")
        found += [int(words[0]) / int(words[1]) for words in (one, two) if len(words) == 2]
    return min(found, default=None)


def _memory_bytes() -> int:
    """This process's memory: the machine's, or less where a control group (a Slurm job, a container) says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in _limit(folder / name) if int(word) < UNLIMITED]
    return min(limits)


def memory_for(total: int, workers: int) -> Check:
    needed = PROCESS_GIB + workers * WORKER_GIB
    found = f"{total / GIB:.1f} GiB for this process and its children"
    if total < needed * GIB:
        fix = f"about {needed:g} GiB are wanted with {workers} loader workers: ask for more (--mem), or fewer --workers"
        return Check(name="memory", state="warning", found=found, fix=fix)
    return Check(name="memory", state="ok", found=found)


def shared_memory(folder: Path, workers: int) -> Check:
    """Loader workers hand batches over in /dev/shm; where it is too small, they die of a bus error."""
    name = "shared memory"
    if not folder.is_dir():
        return Check(name=name, state="problem", found=f"no {folder}", fix=f"mount a tmpfs there, or {_no_workers()}")
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.2f} GiB free in {folder}"
    least, full = workers * BATCH_BYTES, workers * BATCH_BYTES * (READ_AHEAD + 1)
    if free >= full:
        return Check(name=name, state="ok", found=found)
    fix = (
        f"{workers} workers may hold {full / GIB:.1f} GiB: docker run --shm-size=8g (or --ipc=host), or {_no_workers()}"
    )
    return Check(name=name, state="problem" if free < least else "warning", found=found, fix=fix)


def _no_workers() -> str:
    return "fewer --workers (0 needs none)"


def open_files(soft: int, hard: int) -> Check:
    least, comfortable = OPEN_FILES
    if soft < 0 or soft >= comfortable:  # -1: unlimited
        return Check(name="open files", state="ok", found="unlimited" if soft < 0 else f"at most {soft:,}")
    able = hard < 0 or hard >= comfortable
    fix = f"ulimit -n {comfortable}" if able else f"the hard limit is {hard:,}: have it raised to {comfortable:,}"
    state: State = "problem" if soft < least else "warning"
    return Check(name="open files", state=state, found=f"at most {soft:,}", fix=fix)


def disk(variable: str, folder: Path, *, needed_gib: float) -> Iterator[Check]:
    """Whether a folder can be written to, its free space, and whether its clock is this machine's."""
    try:
        ensure_writable(folder)
    except ZooError as error:
        found, _, fix = str(error).partition(". ")
        yield Check(name=variable, state="problem", found=found, fix=fix)
        return
    free = shutil.disk_usage(folder).free / GIB
    if free < needed_gib:
        state: State = "problem" if free < min(1, needed_gib) else "warning"
        fix = f"{needed_gib:g} GiB are wanted: free some, or set {variable} to another place"
        yield Check(name=variable, state=state, found=f"{folder}: writable, {free:.1f} GiB free", fix=fix)
    else:
        yield Check(name=variable, state="ok", found=f"{folder}: writable, {free:.1f} GiB free")
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        late = os.fstat(probe.fileno()).st_mtime - time.time()
    if abs(late) > CLOCK_SECONDS:
        found = f"{folder}: its clock is {abs(late):.0f} s {'ahead' if late > 0 else 'behind'}"
        fix = "set both machines' clocks (NTP): files that have changed are known by their time"
        yield Check(name=variable, state="warning", found=found, fix=fix)


def _ask_torch() -> tuple[dict[str, Any], list[str], str | None] | list[Check]:
    """(what torch has, the driver's GPUs, why no device can be chosen), or the check that says why not even that."""
    try:
        from zoo import device
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        text = f"torch does not import: {error}".split("\n")[0]
        return [Check(name="GPUs", state="problem", found=text, fix="install it again: rm -r .venv, ./run_all.sh")]
    try:
        listed = device.driver_gpus()
    except ZooError as error:  # the driver hangs, and so would torch
        found, _, fix = str(error).partition(". ")
        return [Check(name="GPUs", state="problem", found=found, fix=fix)]
    facts = device.facts()  # before `select`: torch may complain once only
    try:
        device.select()
        refusal = None
    except ZooError as error:
        refusal = str(error)
    return facts, listed, refusal


def gpus(facts: Mapping[str, Any], listed: Sequence[str], refusal: str | None, *, faiss: str | None) -> Iterator[Check]:
    """The driver's GPUs against torch's. A silent CPU run is the worst failure (DESIGN §3).

    facts: zoo.device.facts(); refusal: what zoo.device.select raised; faiss: the version of faiss-gpu.
    """
    seen = facts["gpus"]
    build = f"torch {facts['torch']}"
    if refusal is not None:
        found, _, fix = refusal.partition(". ")
        yield Check(name="GPUs", state="problem", found="; ".join([found, *facts["complaints"]]), fix=fix)
        return
    if not seen:
        if listed:
            fix = "unset ZOO_DEVICE to use them"
            found = f"the driver lists {len(listed)}, left alone on purpose (ZOO_DEVICE=cpu)"
            yield Check(name="GPUs", state="warning", found=found, fix=fix)
        else:
            yield Check(name="GPUs", state="info", found=f"none; {build} runs on the CPU")
        return
    kinds = Counter(f"{one['name']}, {one['memory_gib']} GiB" for one in seen)
    found = f"{build} sees {', '.join(f'{number} x {kind}' for kind, number in kinds.items())}"
    if os.environ.get("ZOO_DEVICE") == "cpu":
        found += ", left alone on purpose (ZOO_DEVICE=cpu)"
        yield Check(name="GPUs", state="warning", found=found, fix="unset ZOO_DEVICE to use them")
    elif len(seen) < len(listed) and facts["limited_by"] is None:
        fix = "some GPUs are hidden from torch: look at nvidia-smi for those that have failed or are split (MIG)"
        yield Check(name="GPUs", state="warning", found=f"{found}; the driver lists {len(listed)}", fix=fix)
    else:
        limit = f" ({facts['limited_by']})" if facts["limited_by"] is not None else ""
        yield Check(name="GPUs", state="ok", found=found + limit)
    for index, one in enumerate(seen):
        if one["failure"] is not None:
            fix = f"this torch ({facts['built_for']}) may not be built for compute capability {one['capability']}"
            found = f"a small product fails: {one['failure']}"
            yield Check(name=f"GPU {index}", state="problem", found=found, fix=fix)
    slow = [str(index) for index, one in enumerate(seen) if not one["bf16"]]
    if slow:
        fix = "keep precision: fp32 (the reference protocols') on these"
        yield Check(name="bf16", state="warning", found=f"not in GPU {', '.join(slow)}", fix=fix)
    else:
        yield Check(name="bf16", state="ok", found="all GPUs")
    if facts["nccl"] is not None:
        yield Check(name="NCCL", state="ok", found=facts["nccl"])
    elif len(seen) > 1:
        fix = "several GPUs cannot work together: install a torch that has it"
        yield Check(name="NCCL", state="problem", found="not in this torch", fix=fix)
    if faiss is None:
        fix = "python -m pip uninstall faiss-cpu, then python -m pip install -r requirements-faiss-gpu.txt"
        yield Check(name="faiss", state="warning", found="no faiss-gpu: back_end: faiss is refused here", fix=fix)


def _ask_engines() -> list[dict[str, Any]]:
    """What `python -m engines` says: a process, because this package stands below them (DESIGN §2)."""
    command = [sys.executable, "-m", "engines"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ended.stderr}")
    return json.loads(ended.stdout)


def engines(found: Sequence[Mapping[str, Any]], *, num_gpus: int) -> Iterator[Check]:
    """found: of engines.__main__.ask; num_gpus: how many this process's torch sees."""
    for one in found:
        name = f"engine {one['engine']}"
        if "error" in one:
            state: State = "problem" if one["broken"] else "warning"
            yield Check(name=name, state=state, found=one["error"], fix=one["fix"])
            continue
        versions = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
        text = f"{versions}, torch {one['device']['torch']}; {one['python']}"
        if num_gpus and not one["device"]["gpus"]:
            fix = "install a torch there that fits the driver"
            yield Check(name=name, state="problem", found=f"its torch sees no GPU, ours does: {text}", fix=fix)
        else:
            yield Check(name=name, state="ok", found=text)


def places(path: Path, known: Sequence[str]) -> Iterator[Check]:
    """data.yaml: names that no dataset has are mistakes that nothing else would notice."""
    name = "data.yaml"
    adds = "python -m zoo datasets find ROOT adds what it finds"
    if not path.exists():
        yield Check(name=name, state="info", found=f"no file {path}; {adds}")
        return
    try:
        content = read_yaml(path)
    except ConfigError as error:
        yield Check(name=name, state="problem", found=str(error), fix="correct the line")
        return
    if not isinstance(content, dict):
        found = f"{path}: holds no lines 'dataset: /path'"
        yield Check(name=name, state="problem", found=found, fix="write one, or remove the file")
        return
    odd = [str(key) for key in content if key not in known]
    wrong = [str(key) for key, place in content.items() if key in known and not isinstance(place, str)]
    if wrong:
        found = f"{path}: not a path: {', '.join(wrong)}"
        yield Check(name=name, state="problem", found=found, fix="expected 'dataset: /path'")
    if odd:
        fix = f"expected names of configs/datasets: {', '.join(known)}"
        yield Check(name=name, state="warning", found=f"{path}: no such dataset: {', '.join(odd)}", fix=fix)
    if not wrong and not odd:
        yield Check(name=name, state="ok", found=f"{path}: {len(content)} datasets; {adds}")


def dataset(name: str, *, workers: int, checksum: bool) -> Iterator[Check]:
    """Whether a dataset is there, whole and readable, and how fast it is read."""
    try:
        config = dataset_config(name)
        place = dataset_place(config)
    except ConfigError as error:
        yield Check(name=name, state="problem", found=str(error), fix="correct the line")
        return
    if place is None:
        found = f"no place (a line '{name}: /path' in {data_file().name}): the benchmarks that read it are skipped"
        yield Check(name=name, state="info", found=found)
        return
    own = config.root is not None and place == (ROOT / config.root).resolve()
    if not place.is_dir():
        fix = "python -m mini makes it" if own else f"correct its line in {data_file()}"
        yield Check(name=name, state="info" if own else "problem", found=f"no folder {place}", fix=fix)
        return
    whole = True
    for split in config.splits:
        for check in _split(config, split, workers=workers, checksum=checksum):
            whole = whole and check.state != "problem"
            yield check
    if config.classes is None:
        yield _class_names(name)
    if whole:
        yield _speed(config, workers)


def _split(config: DatasetConfig, split: str, *, workers: int, checksum: bool) -> Iterator[Check]:
    name = f"{config.name} {split}"
    restore = f"python -m zoo datasets verify {config.name} names every problem; restore the files"
    try:
        found = manifest(config.name, split)
    except DataError as error:
        prepare = any(layout.can_be_prepared for layout in config.splits[split].layouts)
        hint = f"python -m zoo datasets prepare {config.name} where only lists are missing; " if prepare else ""
        yield Check(name=name, state="problem", found=str(error), fix=hint + restore)
        return
    indices = sample(found)
    problems = broken(found, config, indices)
    text = f"{described(found, config).partition(', sha256')[0]}; {len(indices)} of them decoded"
    if problems:
        text = "\n".join([f"{len(problems)} of {len(indices)} images decoded are broken", *named(problems)])
        yield Check(name=name, state="problem", found=text, fix="restore these files, and look for more: --checksum")
    else:
        yield Check(name=name, state="ok", found=text)
    if checksum:
        yield checksum_check(config.name, split, workers=workers)


def checksum_check(name: str, split: str, *, workers: int) -> Check:
    """All bytes of a split against those recorded. Raises DataError when the split cannot be listed."""
    title = f"{name} {split} bytes"
    try:
        read = check_bytes(manifest(name, split), workers=workers)
    except DataError as error:
        return Check(name=title, state="problem", found=str(error), fix="the next --checksum records anew")
    if read.problems:
        fix = f"restore these files; if the change is meant, remove {read.ledger} and run --checksum again"
        found = "\n".join([f"{len(read.problems)} of {read.num_files:,} files are wrong", *named(read.problems)])
        return Check(name=title, state="problem", found=found, fix=fix)
    done = "recorded, to be compared with later" if read.recorded else "the same as recorded"
    return Check(name=title, state="ok", found=f"{read.num_files:,} files, {done}: {read.ledger}")


def _class_names(name: str) -> Check:
    try:
        names = class_names(name)
    except DataError as error:
        fix = "numbers do not depend on it; restore the file to see names in predictions"
        return Check(name=f"{name} classes", state="warning", found=str(error), fix=fix)
    return Check(name=f"{name} classes", state="ok", found=f"0 is {names[0]}, …, {len(names) - 1} is {names[-1]}")


def _speed(config: DatasetConfig, workers: int) -> Check:
    name = f"{config.name} speed"
    try:
        rate = throughput(manifest(config.name, next(iter(config.splits))), workers=workers)
    except DataError as error:
        return Check(
            name=name, state="problem", found=str(error), fix="restore the file, and look for more: --checksum"
        )
    return Check(name=name, state="info", found=f"{rate:,.0f} images/s by {workers} workers, over {TIMED} images")


def shown(check: Check) -> str:
    """A check for people: state, name, what was found, and its fix below."""
    indent = " " * (len("problem") + WIDTH + 4)
    lines = [f"{check.state:<7}  {check.name:<{WIDTH}}  {check.found}".replace("\n", f"\n{indent}")]
    if check.fix:
        lines.append(f"{indent}fix: {check.fix}")
    return "\n".join(lines)


def summary(checks: Sequence[Check]) -> str:
    """How many there are of each state that wants something done."""
    counts = Counter(check.state for check in checks)
    words = [f"{counts[s]} {s}{'s' if counts[s] > 1 else ''}" for s in ("problem", "warning") if counts[s]]
    return f"{len(checks)} checks: {', '.join(words) or 'nothing to do'}"

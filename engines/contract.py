"""What a benchmark hands to an engine's child process, and what it gets back.

In, in a folder of its own: job.json (`Job`). Out: measurement.json and arrays.npz, or failure.json and an exit code.
The child may be another interpreter with its own torch, so this file needs torch and numpy only.

Nothing is trained before three proofs: the weights file is the one that was written, every backbone tensor inside the
built model is bit for bit the canonical one, and the same picture gives the same values at every stage, read and
normalised the engine's own way.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import interrupt
from zoo.errors import ZooError
from zoo.process import die_with_parent

log = logging.getLogger(__name__)

COUNTER = ".num_batches_tracked"
PIXEL_TOLERANCE = 1e-5  # of normalised pixels: (x/255 - mean)/std against (x - 255·mean)/(255·std), both in fp32
TOLERANCE = {"fp32": 1e-5, "fp64": 1e-10}  # of a stage's values, relative to its largest where that exceeds 1
INPUT, NON_FINITE = 2, 4  # exit codes (DESIGN §3)


class Refused(Exception):
    """What was handed in cannot be measured as asked: expected, found, what to do."""

    exit_code = INPUT


class NonFinite(Refused):
    """A loss became NaN or infinite."""

    exit_code = NON_FINITE


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A converted checkpoint, and what must be true of a model that has loaded it. Paths are absolute."""

    weights: str
    weights_sha256: str
    overlay: dict[str, Any]  # the engine's settings that the weights need, laid over the native configuration
    tensors: dict[str, str]  # tensor of the built model → SHA-256 of its fp32 bytes
    fresh: list[str]  # beginnings of the backbone's tensors that no checkpoint has
    probe: str  # what `converters.probe.write_probe` wrote


@dataclass(frozen=True, kw_only=True)
class Job(Weights):
    """job.json."""

    task: str  # "measure": train and test; "check": the proofs only
    config: dict[str, Any]  # the engine's native configuration, resolved
    device: str
    seed: int
    workers: int
    classes: list[str] = field(default_factory=list)
    train: str = ""  # JSON list of training images, in the engine's terms
    test: str = ""


def read_job(folder: Path) -> Job:
    return Job(**json.loads((folder / "job.json").read_text()))


def write_job(folder: Path, job: Job) -> None:
    """Parent's side: hand `job` over, and forget an earlier answer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("measurement.json", "arrays.npz", "failure.json"):
        (folder / name).unlink(missing_ok=True)
    _replace(folder / "job.json", json.dumps(asdict(job), indent=1).encode())


def write_answer(folder: Path, measurement: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Child's side. measurement.json comes last: if it is there, all is."""
    assert all(values.dtype != object for values in arrays.values())  # what needs no pickle
    with (folder / ".arrays.npz").open("wb") as stream:
        save: Any = np.savez  # without `allow_pickle`, which numpy 1 takes for an array
        save(stream, **arrays)
    (folder / ".arrays.npz").replace(folder / "arrays.npz")
    _replace(folder / "measurement.json", json.dumps(measurement, indent=1).encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def child(run: Callable[[Path, Job], None]) -> None:
    """The main function of an engine's module: `python -m engines.NAME FOLDER`. Leaves the process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)  # the engines' own, by the dozen
    torch.multiprocessing.set_sharing_strategy("file_system")  # many small tensors from loader processes
    folder = Path(sys.argv[1])
    if "RANK" in os.environ:  # the launcher does not do it
        die_with_parent()
    try:
        with alone(folder):
            run(folder, read_job(folder))
    except KeyboardInterrupt:
        logging.shutdown()
        os._exit(interrupt.exit_code())
    except (Refused, ZooError) as refusal:
        _fail(folder, str(refusal), refusal.exit_code)
    except ImportError as error:
        _fail(folder, f"{error}. Is the engine installed in {sys.executable}?", INPUT)
    except Exception as error:
        if _disk_is_full(error):
            _fail(folder, f"the disk that holds {folder} is full: free space, or set ZOO_RUNS to another one.", INPUT)
        _fail(folder, traceback.format_exc(), 1)
    raise SystemExit(0)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for the child of an earlier command that was killed: it may be saving what this one goes on from."""
    if int(os.environ.get("RANK", 0)) > 0:  # the others wait for the first one's process group
        yield
        return
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            log.info("waiting for process %s, which an earlier command left at work in %s", lock.read(), folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def loaders_refusal() -> Iterator[None]:
    """A refusal in a loader's process: torch has put a traceback around its one line."""
    try:
        yield
    except Refused as refusal:
        said = str(refusal).rpartition("Refused: ")[2].strip()
        raise type(refusal)(said) from refusal


def _disk_is_full(error: Exception) -> bool:
    """Whether a write failed for want of space; torch.save says so in a RuntimeError of its own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, RuntimeError) and "PytorchStreamWriter failed" in str(error)


def _fail(folder: Path, message: str, code: int) -> None:
    log.error("%s", message)
    with contextlib.suppress(OSError):  # a full disk: the parent then shows the code alone
        tell(folder, message, code)
    logging.shutdown()
    os._exit(code)  # now: peers wait in collectives, and threads of the engine would wait for them


def tell(folder: Path, message: str, code: int) -> None:
    """Write failure.json, unless a peer has: the others fail in their next exchange, which is not the reason.

    A reason with a code of its own outranks a traceback, whoever was first.
    """
    path = folder / "failure.json"
    written = path.with_name(f".failure.{os.getpid()}.tmp")
    try:
        written.write_text(json.dumps({"message": message, "exit_code": code}))
        os.link(written, path)  # whole or not at all, and not over another one
    except FileExistsError:
        if code in (INPUT, NON_FINITE) and json.loads(path.read_text())["exit_code"] not in (INPUT, NON_FINITE):
            written.replace(path)
    except PermissionError:  # a disk without hard links; the last one's reason is better than none
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def check_weights_file(job: Job) -> None:
    """Raises Refused unless the engine's weights file is the one that the converter wrote."""
    found = hashlib.sha256(Path(job.weights).read_bytes()).hexdigest()
    if found != job.weights_sha256:
        raise Refused(f"{job.weights}: expected sha256 {job.weights_sha256[:16]}…, found {found[:16]}…; convert again.")


def check_tensors(state: Mapping[str, Tensor], job: Job, backbone: tuple[str, ...]) -> int:
    """How many tensors of the built model are the canonical ones, bit for bit.

    backbone: beginnings of the names that make up the backbone. Raises Refused listing tensors that are absent, differ,
    or lie in the backbone without having come from the checkpoint.
    """
    problems = [f"{name}: not in the built model" for name in job.tensors if name not in state]
    for name in sorted(set(job.tensors) & set(state)):
        if tensor_sha256(state[name]) != job.tensors[name]:
            problems.append(f"{name}: not the checkpoint's values")
    allowed = (*job.fresh,)
    for name in state:
        if name.startswith(backbone) and not name.startswith(allowed) and not name.endswith(COUNTER):
            if name not in job.tensors:
                problems.append(f"{name}: part of the backbone, but not from the checkpoint")
    if problems:
        more = f"\n  … and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise Refused(
            f"the weights did not arrive whole in the engine's model: {len(problems)} problems, "
            f"{len(job.tensors)} tensors expected.\n  " + "\n  ".join(problems[:10]) + more
        )
    return len(job.tensors)


def log_period(steps: int) -> int:
    """Iterations between two log lines: 20 as detectron2 has it, fewer in very short runs."""
    return max(1, min(20, steps // 20))


def cut_back(path: Path, step: int) -> None:
    """Keep a JSON-lines log's entries before `step`: what a killed run logged after its last checkpoint is repeated."""
    if path.exists():
        kept = []
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            try:
                if line.endswith("\n") and json.loads(line)["iteration"] < step:
                    kept.append(line)
            except ValueError:
                break  # torn by the kill
        path.write_text("".join(kept))  # in place: a writer may have it open to append


def tensor_sha256(tensor: Tensor) -> str:
    """Of the fp32 bytes, shape not included."""
    return hashlib.sha256(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()


def check_stages(
    job: Job,
    read_pixels: Callable[[str], Tensor],
    stages: Callable[[Tensor], Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Largest absolute difference from the canonical network, for the normalised pixels and per stage and precision.

    read_pixels(path) → (1, 3, H, W) fp32: an image file as the engine would feed it to the backbone. stages(pixels) →
    feature2 … feature5 in the pixels' own precision, on the CPU. Raises Refused beyond the tolerances.
    """
    with np.load(job.probe, allow_pickle=False) as stored:
        probe = {name: stored[name] for name in stored.files}
    picture = job.probe.removesuffix(".npz") + ".png"
    found: dict[str, Any] = {}
    problems: list[str] = []
    pixels = read_pixels(picture).double().numpy()
    if pixels.shape != probe["pixels"].shape:
        raise Refused(f"the engine reads {picture} as {pixels.shape}, expected {probe['pixels'].shape}.")
    found["pixels"] = float(np.abs(pixels - probe["pixels"]).max())
    if not found["pixels"] <= PIXEL_TOLERANCE:
        problems.append(
            f"normalised pixels differ by {found['pixels']:.3g} (at most {PIXEL_TOLERANCE}): channel order, mean or "
            "std is not the checkpoint's"
        )
    for precision, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        with torch.no_grad():
            outputs = stages(torch.from_numpy(probe["pixels"]).to(dtype))
        found[precision] = {}
        for name in ("feature2", "feature3", "feature4", "feature5"):
            if name not in outputs:
                problems.append(f"{name}: the engine has no such stage")
                continue
            output, expected = outputs[name], probe[f"{precision}/{name}"]
            if tuple(output.shape) != expected.shape:
                problems.append(f"{name}: expected shape {expected.shape}, found {tuple(output.shape)}")
                continue
            difference = float(np.abs(output.double().numpy() - expected).max())
            found[precision][name] = difference
            limit = TOLERANCE[precision] * max(1.0, float(np.abs(expected).max()))
            if not difference <= limit:
                problems.append(f"{name} differs by {difference:.3g} in {precision} (at most {limit:.3g})")
    if problems:
        raise Refused(
            "the engine's backbone does not compute what the checkpoint's does: " + "; ".join(problems) + ". The "
            "overlay (channel order, mean/std, stride placement, stem, stages) does not fit the weights."
        )
    return found

"""Where tensors live. The only file that names CUDA; everything else asks here.

Reference protocols run in fp32 with TF32 off. A machine whose driver lists GPUs that torch cannot see is refused: a
silent CPU run is the worst failure (DESIGN §3).
"""

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo.errors import ZooError

Rest = TypeVar("Rest")  # what goes with a batch and stays where it is


def driver_gpus() -> list[str]:
    """The GPUs that the NVIDIA driver lists, one line each; [] without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [str(entry) for entry in sorted(Path("/proc/driver/nvidia/gpus").glob("*"))]
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise ZooError(
            f"{tool} -L gave no answer in 60 s: the GPU driver hangs. Mend it, or set ZOO_DEVICE=cpu."
        ) from None
    return [line for line in listed.stdout.splitlines() if line.startswith("GPU ")] if listed.returncode == 0 else []


def select(local_rank: int = 0) -> torch.device:
    """This process's device: its GPU, or the CPU when the machine has none (or ZOO_DEVICE=cpu says so).

    Raises ZooError when the driver lists GPUs but torch sees none, or fewer than the processes started here.
    """
    wanted = os.environ.get("ZOO_DEVICE", "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        raise ZooError(f"ZOO_DEVICE: expected auto, cpu or cuda, found '{wanted}'.")
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        listed = driver_gpus()
        if listed or wanted == "cuda":
            found = f"the driver lists {len(listed)} GPU(s) ({listed[0]})" if listed else "the driver lists none"
            raise ZooError(
                f"torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees no GPU, while {found}. Check "
                "CUDA_VISIBLE_DEVICES and that the driver is new enough for this torch, or set ZOO_PYTHON to a Python "
                "whose torch works; ZOO_DEVICE=cpu runs on the CPU on purpose."
            )
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ZooError(
            f"expected a GPU for local process {local_rank}, found {torch.cuda.device_count()} GPU(s); "
            "start at most one process a GPU (--procs)."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    reference_arithmetic()
    return device


def reference_arithmetic() -> None:
    """fp32 means fp32: TF32 off for matrix products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def backend(device: torch.device) -> str:
    """The process group's back end for tensors on `device`."""
    return "nccl" if device.type == "cuda" else "gloo"


def synchronised_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with batch norms whose statistics span all processes: SyncBN on GPUs, ours on CPUs."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    from zoo.distributed import AllReduceBatchNorm  # that file asks this one for the back end

    return AllReduceBatchNorm.convert(module)


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` under DistributedDataParallel. Buffers are synchronised once: batch norm over all keeps them equal."""
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, forward_sync_buffers=False)


def gradients_kept_local(model: nn.Module) -> AbstractContextManager[None]:
    """For the block, backward passes through `model` add to this process's gradients and exchange none."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


def moved_ahead(
    batches: Iterable[tuple[Rest, tuple[Tensor, ...]]], device: torch.device
) -> Iterator[tuple[Rest, tuple[Tensor, ...]]]:
    """The pairs with their tensors on `device`. On a GPU the next pair's are copied while this one is computed on.

    The copies overlap where the tensors are pinned; `batches` is then one pair ahead. On the CPU nothing moves.
    """
    if device.type == "cpu":
        yield from batches
        return
    copying, coming = torch.cuda.Stream(device), None
    for rest, tensors in batches:
        with torch.cuda.stream(copying):
            following = rest, tuple(tensor.to(device, non_blocking=True) for tensor in tensors)
        if coming is not None:
            yield coming
        torch.cuda.current_stream(device).wait_stream(copying)
        for tensor in following[1]:
            tensor.record_stream(torch.cuda.current_stream(device))  # not to be given away while it is computed on
        coming = following
    if coming is not None:
        yield coming


def memory_used(device: torch.device) -> int:
    """Peak bytes allocated on a GPU; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def describe() -> dict[str, Any]:
    """The arithmetic's whereabouts, for a record."""
    if torch.cuda.is_available() and os.environ.get("ZOO_DEVICE", "auto") != "cpu":
        return {
            "device": torch.cuda.get_device_name(),
            "devices": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return {"device": "cpu", "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}


def facts() -> dict[str, Any]:
    """What torch has on this machine, as JSON values, for `python -m zoo doctor`; in engines' interpreters too.

    torch, built_for: versions; gpus: each one's name, memory_gib, capability, bf16 and failure, what a small product on
    it failed with (null: right); limited_by: the variable that hides GPUs; nccl: its version; complaints: torch's own
    warnings. Each GPU that torch sees is computed on; no GPU path of this has been run by us.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gpus = [_gpu_facts(index) for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        "torch": torch.__version__,
        "built_for": torch.version.cuda,
        "gpus": gpus,
        "limited_by": None if hidden is None else f"CUDA_VISIBLE_DEVICES={hidden}",
        "nccl": _nccl_version() if gpus else None,
        "complaints": list(dict.fromkeys(str(one.message).split("\n")[0] for one in caught)),
    }


def _gpu_facts(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    try:
        ones = torch.ones(64, 64, device=torch.device("cuda", index))
        total = int((ones @ ones).sum())
        failure = None if total == 64**3 else f"a product of ones gave {total}, expected {64**3}"
    except RuntimeError as error:  # also what a torch built without this GPU's code, or a GPU in use, raises
        failure = str(error).split("\n")[0]
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "bf16": properties.major >= 8,  # Ampere; torch's own question counts emulation as support
        "failure": failure,
    }


def _nccl_version() -> str | None:
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    from torch.cuda import nccl

    return ".".join(map(str, nccl.version()))


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Raises ZooError as `select` does."""
    if not torch.cuda.is_available():
        select()  # where GPUs are there but not for torch, it says so
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def only(gpus: Sequence[str]) -> dict[str, str]:
    """The environment of a child process that is to see these GPUs and no others."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}

"""Where tensors live. The only file that names CUDA; everything else asks here.

Reference protocols run in fp32 with TF32 off. A machine whose driver lists GPUs that torch cannot see is refused: a
silent CPU run is the worst failure (DESIGN §3).
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.errors import ZooError


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

"""Many processes, one answer: torchrun set-up, gathering by sample index, and batch norm over all processes on CPUs.

Without torchrun everything here is the one-process case of the same code.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from signal import Signals
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo import device as devices
from zoo import interrupt
from zoo.errors import ZooError
from zoo.precision import full_precision

Batch = TypeVar("Batch")
STOPPING = (Signals.SIGTERM, Signals.SIGINT, Signals.SIGHUP, Signals.SIGQUIT, *interrupt.REQUESTS)


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def world() -> Iterator[World]:
    """Join the process group that torchrun's environment describes, for the block; alone without torchrun.

    Ranks above 0 log warnings only. On the CPU the machine's cores are shared out among the local processes.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = devices.select(local_rank)
    if device.type == "cpu" and local_size > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    me = World(rank=rank, size=size, local_rank=local_rank, device=device)
    if rank > 0:
        logging.getLogger().setLevel(logging.WARNING)
    if "WORLD_SIZE" not in os.environ:
        yield me
        return
    dist.init_process_group(devices.backend(device), rank=rank, world_size=size)
    yield me
    # only after success: a peer that waits for a failed process would fail too, and might exit before it
    dist.destroy_process_group()


def num_nodes() -> int:
    """How many machines share a command: $ZOO_NODES, set by a Slurm job of several nodes (evaluate/slurm.py)."""
    return int(os.environ.get("ZOO_NODES", 1))


def launch(num_processes: int, module_arguments: Sequence[str]) -> int:
    """Run `python -m <module_arguments>` as `num_processes` local processes under torchrun's launcher; the exit code.

    With ZOO_NODES above 1 the same line runs on that many machines, which meet at $ZOO_RENDEZVOUS, host:port.

    0 when all succeeded. A process's own verdict (a collapse's 3, bad input's 2) comes before the 1 or the signal of
    peers that it took along; of equals, the first.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=num_nodes(),
        max_nodes=num_nodes(),
        nproc_per_node=num_processes,
        run_id=os.environ.get("ZOO_RENDEZVOUS", str(os.getpid())),
        rdzv_backend="c10d",
        rdzv_endpoint=os.environ.get("ZOO_RENDEZVOUS", "localhost:0"),
        max_restarts=0,
        signals_to_handle=",".join(signal.name for signal in STOPPING),  # passed on to the processes
        shutdown_timeout=100,  # seconds to save a state in, before SIGKILL; Slurm warns 120 s ahead
    )
    try:
        elastic_launch(config, sys.executable)("-m", *module_arguments)
    except ChildFailedError as error:
        first = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        codes = [failure.exitcode for failure in first]
        code = next((code for code in codes if 1 < code < 128), codes[0])
        return code if code >= 0 else 128 - code  # killed by a signal: as a shell says it
    except SignalException as stopped:  # the launcher turns a signal into this, after passing it on
        interrupt.note(stopped.sigval)
        raise KeyboardInterrupt from None
    return 0


def share(batches: Sequence[Batch], me: World) -> list[Batch]:
    """The batches this process computes: every world.size-th. A batch is never split, so its bits do not change."""
    return list(batches[me.rank :: me.size])


def gather_by_index(indices: np.ndarray, rows: np.ndarray, *, total: int, me: World) -> np.ndarray:
    """Rows of all processes in sample order, on every process.

    indices: (n,) the sample each local row belongs to. rows: (n, …). Returns (total, …). Raises ZooError unless every
    sample has exactly one row: nothing is padded, dropped or counted twice.
    """
    parts: list[tuple[np.ndarray, np.ndarray]] = [(indices, rows)]
    if me.size > 1:
        gathered: list[tuple[np.ndarray, np.ndarray] | None] = [None] * me.size
        dist.all_gather_object(gathered, (indices, rows))
        parts = [part for part in gathered if part is not None]
    counts = np.bincount(np.concatenate([part[0] for part in parts]), minlength=total)
    if len(counts) != total or (counts != 1).any():
        wrong = np.flatnonzero(counts != 1)
        raise ZooError(
            f"expected one row for each of {total} samples, found {len(wrong)} with none or several "
            f"(first: sample {wrong[0] if len(wrong) else total}); this is a bug of the project."
        )
    parts = [part for part in parts if len(part[0])]  # a process without samples does not know the rows' width
    result = np.empty((total, *parts[0][1].shape[1:]), dtype=parts[0][1].dtype) if parts else rows
    for part_indices, part_rows in parts:
        result[part_indices] = part_rows
    return result


def gather_rows(local: Sequence[Tensor], parts: Sequence[slice], *, me: World) -> Tensor:
    """The rows of a whole batch on every process, when process r holds those of parts r, r + size, r + 2·size, …

    local: this process's (n, D) tensors, one for each of its parts. Returns (batch, D) in the order of `parts`.
    """
    if me.size == 1:
        return torch.cat(list(local))
    lengths = [part.stop - part.start for part in parts]
    counts = [sum(lengths[rank :: me.size]) for rank in range(me.size)]
    width = torch.tensor([local[0].shape[1] if local else 0], device=me.device)
    dist.all_reduce(width, dist.ReduceOp.MAX)
    padded = torch.zeros(max(counts), int(width), device=me.device)
    if local:
        padded[: counts[me.rank]] = torch.cat(list(local))
    gathered = [torch.empty_like(padded) for _ in range(me.size)]
    dist.all_gather(gathered, padded)
    result = torch.empty(sum(lengths), int(width), device=me.device)
    offsets = [0] * me.size
    for number, part in enumerate(parts):
        rank = number % me.size
        result[part] = gathered[rank][offsets[rank] : offsets[rank] + lengths[number]]
        offsets[rank] += lengths[number]
    return result


def any_process(flag: bool, me: World) -> bool:
    """Whether `flag` is set on some process: the same answer on all of them."""
    if me.size == 1:
        return flag
    votes = torch.tensor(float(flag), device=me.device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def barrier(me: World) -> None:
    """Wait for all processes."""
    if me.size > 1:
        dist.barrier()


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def summed(tensor: Tensor) -> Tensor:
    """`tensor` summed over all processes, differentiable; of the same shape."""
    return cast(Tensor, _Sum.apply(tensor))


class AllReduceBatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics over the batches of all processes, for CPUs, where torch's SyncBatchNorm refuses.

    Accepts (N, C) and (N, C, H, W). Equals BatchNorm on the concatenated batch; per-process batches may differ in size.
    Two passes (mean, then squared deviations), so that it is as accurate as the one-process kernel. As there, bf16
    input (autocast) is normalised in float32 and comes out as bf16.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected a (N, C) or (N, C, H, W) input, found {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        dtype, input = input.dtype, full_precision(input)
        axes = (0,) if input.dim() == 2 else (0, 2, 3)
        shape = (1, -1) if input.dim() == 2 else (1, -1, 1, 1)
        sums = summed(torch.cat([input.sum(axes), input.new_tensor([input.numel() / input.shape[1]])]))  # (C + 1,)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = input - mean.view(shape)
        variance = summed(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach(), float(count))
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Running statistics; the variance unbiased, as BatchNorm keeps it."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """`module` with every BatchNorm1d/2d and SyncBatchNorm replaced by one of these, sharing its tensors."""
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm) and not isinstance(module, cls):
            new = cls(module.num_features, eps=module.eps, momentum=module.momentum, affine=module.affine)
            new.weight, new.bias = module.weight, module.bias
            new.running_mean, new.running_var = module.running_mean, module.running_var
            new.num_batches_tracked = module.num_batches_tracked
            new.training = module.training
            return new
        for name, child in module.named_children():
            setattr(module, name, cls.convert(child))
        return module

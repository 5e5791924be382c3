"""From where does a run go on? Network, optimizer and collapse watch, fresh or from a saved state."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.checkpoint import State, check_room, latest_state, save_state, set_aside_after
from pretrain.monitor import CollapseWatch, monitor_indices
from pretrain.preflight import RUN_NAME, Plan, write_run
from pretrain.replacement import Replacements, readable
from pretrain.schedule import make_optimizer
from pretrain.simsiam import SimSiam
from pretrain.supervised import Supervised
from zoo import device as devices
from zoo.checkpoint import WEIGHTS_NAME
from zoo.distributed import World, any_process, barrier
from zoo.errors import ConfigError, DataError, ZooError
from zoo.files import remove_unfinished
from zoo.recipe import PretrainConfig

logger = logging.getLogger(__name__)
LOCK_NAME = "lock"
LATE_SECONDS = 60  # for which NFS may remember that a file was not there
LEAVE_SECONDS = 30  # in which the processes of a killed command finish their step and save
Method = SimSiam | Supervised


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the loop works on. `core` is the bare network, `model` the same one as it is called: compiled, under DDP."""

    plan: Plan
    me: World
    core: Method
    model: nn.Module
    optimizer: torch.optim.SGD
    watch: CollapseWatch | None
    replacements: Replacements
    monitored: tuple[np.ndarray, np.ndarray]  # the samples of the kNN monitor: bank, queries
    start_step: int

    def forward(self, views: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """`model` on this process's views and labels: the loss, and the projections if there are any.

        Raises ConfigError when it is to be compiled and cannot be.
        """
        if not self.plan.config.arithmetic.compile:
            return self.model(views, labels)
        from torch._dynamo.exc import TorchDynamoException  # loads the compiler

        try:
            return self.model(views, labels)
        except TorchDynamoException as error:
            raise ConfigError(
                f"arithmetic.compile: torch.compile has failed ({str(error).strip().splitlines()[0]}). It needs a C++ "
                "compiler on the CPU and Triton on a GPU; --set arithmetic.compile=false does without."
            ) from error


def build_model(config: PretrainConfig, *, num_classes: int, seed: int) -> Method:
    """The untrained network, on the CPU; its initialisation is a function of `seed`, and no global generator moves."""
    method = config.method
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if method.name == "supervised":
            return Supervised(config.arch, num_classes=num_classes, label_smoothing=method.label_smoothing)
        return SimSiam(config.arch, method)


def as_called(core: Method, config: PretrainConfig, me: World) -> nn.Module:
    """`core` laid out, compiled and spread over the processes as the recipe and `me` say; its tensors stay `core`'s."""
    if config.arithmetic.channels_last:
        core.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    model: nn.Module = torch.compile(core) if config.arithmetic.compile else core  # type: ignore[assignment]
    return devices.data_parallel(model, me.device) if me.size > 1 else model


@contextmanager
def alone(plan: Plan, me: World) -> Iterator[None]:
    """Keep other trainings out of the run's folder, for the block. Raises ZooError on all processes when one is in it.

    Process 0 holds the lock for all. Where the disk cannot lock, nothing is kept out.
    """
    descriptor, holder = _lock(plan) if me.is_main else (None, None)
    try:
        holders = [holder]
        if me.size > 1:
            dist.broadcast_object_list(holders, src=0)
        if holders[0] is not None:
            raise ZooError(
                f"{plan.out}: already being trained by {holders[0]}; wait for it, end it, or choose another --out."
            )
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(plan: Plan) -> tuple[int | None, str | None]:
    """The descriptor that holds the lock until it is closed, or who else holds it; neither where it cannot be had.

    With the lock, what killed saves have left is removed.
    """
    descriptor = None
    try:
        descriptor = os.open(plan.out / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        _take(descriptor, plan)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        remove_unfinished(plan.out, "state-*.pt", WEIGHTS_NAME)
        return descriptor, None
    except BlockingIOError:
        assert descriptor is not None
        with os.fdopen(descriptor, "rb") as stream:
            return None, stream.read().decode(errors="replace") or "another process"
    except OSError as error:
        logger.warning("%s: cannot be locked (%s); start no second training in it.", plan.out, error.strerror)
        if descriptor is not None:
            os.close(descriptor)
        return None, None


def _take(descriptor: int, plan: Plan) -> None:
    """Lock; raises BlockingIOError when whoever has the lock does not leave within LEAVE_SECONDS."""
    end, told = time.monotonic() + LEAVE_SECONDS, False
    while True:
        try:
            return fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by workers
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        if not told:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            logger.info("%s: %s is at work in it; waiting up to %d s", plan.title, holder, LEAVE_SECONDS)
            told = True
        time.sleep(0.2)


def open_session(plan: Plan, me: World, dtype: torch.dtype) -> Session:
    """Build the network and bring it to the last saved state."""
    config = plan.config
    core = build_model(config, num_classes=plan.num_classes, seed=plan.seed)
    state = latest_state(plan.out, plan.identity)
    start_step = state.step if state else 0
    _agree_on_start(start_step, plan, me)
    if me.is_main:
        set_aside_after(plan.out, start_step)
    if state:
        core.load_state_dict(state.model)
        logger.info("%s: going on from step %d of %d", plan.title, start_step, plan.total_steps)
    core.to(me.device, dtype)
    if me.size > 1:
        devices.synchronised_batch_norm(core, me.device)
    model = as_called(core, config, me)
    parts = config.arithmetic.accumulate
    if parts > 1:
        logger.info(
            "%s: each step's %d images go through in %d parts of %d (arithmetic.accumulate); batch-norm statistics are "
            "each part's own, so this is not the training with that batch size",
            plan.title,
            config.batch_size,
            parts,
            config.batch_size // parts,
        )
    optimizer = make_optimizer(core, config)
    if state:
        optimizer.load_state_dict(state.optimizer)
    check_room(plan.out, state_bytes=_state_bytes(core), total_steps=plan.total_steps, keep=config.save)
    watch = CollapseWatch(config.collapse, state.deviations if state else ()) if config.collapse else None
    return Session(
        plan=plan,
        me=me,
        core=core,
        model=model,
        optimizer=optimizer,
        watch=watch,
        replacements=Replacements(plan.train, state.replaced if state else {}),
        monitored=_monitored(plan, me),
        start_step=start_step,
    )


def _monitored(plan: Plan, me: World) -> tuple[np.ndarray, np.ndarray]:
    """With `bad_images: replace` the monitor's images are all read once, so that it cannot end the run later."""
    bank, queries = monitor_indices(plan.config.monitor, plan.bank, plan.queries)
    if plan.config.bad_images == "stop":
        return bank, queries
    bank_left = readable(plan.bank, bank, num_workers=plan.num_workers, me=me)
    queries_left = readable(plan.queries, queries, num_workers=plan.num_workers, me=me)
    if len(bank_left) < plan.config.monitor.k or not len(queries_left):
        raise DataError(
            f"{plan.bank.dataset}: {len(bank_left)} of {len(bank)} images of the monitor's bank and "
            f"{len(queries_left)} of its {len(queries)} queries can be read, expected {plan.config.monitor.k} and 1 at "
            "least; restore them."
        )
    return bank_left, queries_left


def _state_bytes(core: Method) -> int:
    """What a saved state takes: weights, statistics, and a momentum for each number that is trained."""
    trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
    return sum(each.numel() * each.element_size() for each in (*core.state_dict().values(), *trained))


def _agree_on_start(step: int, plan: Plan, me: World) -> None:
    """All processes must see the same saved state, which takes a folder that all nodes share."""
    steps: list[int | None] = [step] * me.size
    if me.size > 1:
        dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise ZooError(f"{plan.out}: the processes found different states (steps {steps}); put --out on a shared disk.")


def check_shared(plan: Plan, me: World) -> None:
    """Raise ZooError, on all processes, unless all see the run.json that process 0 has written."""
    if any_process(not visible(plan.out / RUN_NAME), me):
        raise ZooError(f"{plan.out}: not every process sees what process 0 has written; put --out on a shared disk.")


def visible(path: Path) -> bool:
    """Whether `path` is there. A file just made on another machine may show late, so absence takes LATE_SECONDS."""
    end = time.monotonic() + LATE_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def save(session: Session, step: int) -> None:
    if session.me.is_main:
        state = State(
            run=session.plan.identity,
            epoch=step // session.plan.steps_per_epoch,
            step=step,
            model=session.core.state_dict(),
            optimizer=session.optimizer.state_dict(),
            deviations=list(session.watch.values) if session.watch else [],
            replaced=session.replacements.times,
        )
        save_state(session.plan.out, state, session.plan.config.save)
        if session.replacements.times:
            write_run(session.plan, session.replacements.record())
    barrier(session.me)  # nobody leaves, or is killed for having left, while process 0 writes

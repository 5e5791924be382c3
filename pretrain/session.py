"""From where does a run go on? Network, optimizer and collapse watch, fresh or from a saved state."""

import logging
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from pretrain.checkpoint import State, latest_state, save_state
from pretrain.monitor import CollapseWatch
from pretrain.preflight import Plan
from pretrain.schedule import make_optimizer
from pretrain.simsiam import SimSiam
from pretrain.supervised import Supervised
from zoo import device as devices
from zoo.distributed import World, barrier
from zoo.errors import ZooError
from zoo.recipe import PretrainConfig

logger = logging.getLogger(__name__)
Method = SimSiam | Supervised


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the loop works on. `core` is the bare network, `model` the same one as it is called (under DDP, if any)."""

    plan: Plan
    me: World
    core: Method
    model: nn.Module
    optimizer: torch.optim.SGD
    watch: CollapseWatch | None
    start_step: int


def build_model(config: PretrainConfig, *, num_classes: int, seed: int) -> Method:
    """The untrained network, on the CPU; its initialisation is a function of `seed`, and no global generator moves."""
    method = config.method
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if method.name == "supervised":
            return Supervised(config.arch, num_classes=num_classes, label_smoothing=method.label_smoothing)
        return SimSiam(
            config.arch,
            projector_dim=method.projector_dim,
            predictor_dim=method.predictor_dim,
            stop_gradient=method.stop_gradient,
        )


def open_session(plan: Plan, me: World, dtype: torch.dtype) -> Session:
    """Build the network and bring it to the last saved state."""
    config = plan.config
    core = build_model(config, num_classes=plan.num_classes, seed=plan.seed)
    state = latest_state(plan.out, plan.key)
    start_step = state.step if state else 0
    _agree_on_start(start_step, plan, me)
    if state:
        core.load_state_dict(state.model)
        logger.info("%s: going on from step %d of %d", plan.title, start_step, plan.total_steps)
    core.to(me.device, dtype)
    if me.size > 1:
        devices.synchronised_batch_norm(core, me.device)
    model = devices.data_parallel(core, me.device) if me.size > 1 else core
    optimizer = make_optimizer(core, config)
    if state:
        optimizer.load_state_dict(state.optimizer)
    watch = CollapseWatch(config.collapse, state.deviations if state else ()) if config.collapse else None
    return Session(plan=plan, me=me, core=core, model=model, optimizer=optimizer, watch=watch, start_step=start_step)


def _agree_on_start(step: int, plan: Plan, me: World) -> None:
    """All processes must see the same saved state, which takes a folder that all nodes share."""
    steps: list[int | None] = [step] * me.size
    if me.size > 1:
        dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise ZooError(f"{plan.out}: the processes found different states (steps {steps}); put --out on a shared disk.")


def save(session: Session, step: int) -> None:
    if session.me.is_main:
        state = State(
            key=session.plan.key,
            epoch=step // session.plan.steps_per_epoch,
            step=step,
            model=session.core.state_dict(),
            optimizer=session.optimizer.state_dict(),
            deviations=list(session.watch.values) if session.watch else [],
        )
        save_state(session.plan.out, state)
    barrier(session.me)  # nobody leaves, or is killed for having left, while process 0 writes

"""The training loop: the same for SimSiam and the supervised row, for one process and for N nodes.

Source: protocols §1.4. Every process computes its share of each global batch; batch-norm statistics and gradients are
those of the whole, so the number of processes changes the speed and, but for rounding, nothing else. The state is
(epoch, step): a run that was cut off, anywhere, continues to the same bytes on the same CPU. (On GPUs not tried; their
kernels may differ in the last bits from one run to the next.)
"""

import json
import logging
import math
from collections.abc import Iterator
from functools import partial
from itertools import tee
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint import Origin, export_backbone
from pretrain.monitor import StepValues, knn_top1, reduce_step
from pretrain.preflight import COLLAPSED_NAME, Plan, finished, write_run
from pretrain.progress import RunLog, log_lines_above
from pretrain.schedule import global_batches, labels_of, learning_rate, local_part, predictor_rate, set_rates
from pretrain.session import Session, open_session, save
from pretrain.views import read_views
from zoo.backbone import normalise
from zoo.distributed import World, barrier
from zoo.errors import CollapseError, NonFiniteError
from zoo.files import write_atomic
from zoo.interrupt import deferred
from zoo.loading import load_batches
from zoo.recipe import row_label

logger = logging.getLogger(__name__)


def train(plan: Plan, me: World, *, dtype: torch.dtype = torch.float32) -> Path:
    """Train, or go on, or find that all is done; the path of the backbone's card.

    Raises CollapseError, NonFiniteError, DataError, ConfigError; KeyboardInterrupt after a signal, the state saved.
    """
    card = finished(plan)
    if card is not None:
        logger.info("%s is complete: %s", plan.title, card)
        return card
    barrier(me)
    if me.is_main:
        write_run(plan)
    session = open_session(plan, me, dtype)
    log = RunLog(
        plan.out,
        start_step=session.start_step,
        total_steps=plan.total_steps,
        batch_size=plan.config.batch_size,
        enabled=me.is_main,
    )
    with deferred() as interrupted, log, log_lines_above(log):
        batches = training_batches(
            plan, me, num_views=session.core.num_views, start_step=session.start_step, dtype=dtype
        )
        for batch in batches:
            values = _step(session, *batch, interrupted=interrupted())
            _after_step(session, batch[0], values, log)
    if me.is_main:
        export_backbone(plan.out, session.core.backbone.state_dict(), _origin(plan))
    barrier(me)
    card = finished(plan)
    assert card is not None
    logger.info("%s: done after %d steps; %s", plan.title, plan.total_steps, card)
    return card


Batch = tuple[int, int, tuple[Tensor, ...], Tensor]  # steps done after it, its epoch, views, labels


def training_batches(
    plan: Plan, me: World, *, num_views: int, start_step: int, dtype: torch.dtype = torch.float32
) -> Iterator[Batch]:
    """This process's share of every step from `start_step` on: views (n, 3, H, W) normalised, labels (n,).

    The shares of all processes, in rank order, are the same whatever their number and that of the loader workers.
    """
    config = plan.config
    every = global_batches(
        plan.seed, len(plan.train), batch_size=config.batch_size, epochs=config.epochs, start_step=start_step
    )
    mine, to_load = tee(local_part(batch, me) for batch in every)
    read = partial(read_views, plan.train, config.views, plan.seed, num_views)
    loaded = load_batches(read, to_load, num_workers=plan.num_workers, pin=me.device.type != "cpu")
    for step, (keys, views) in enumerate(zip(mine, loaded, strict=True), start=start_step + 1):
        ready = tuple(normalise(view.to(me.device, non_blocking=True), config.pixels).to(dtype) for view in views)
        yield step, keys[0][0], ready, labels_of(keys, plan.train.labels).to(me.device)


def _step(
    session: Session, step: int, epoch: int, views: tuple[Tensor, ...], labels: Tensor, *, interrupted: bool
) -> StepValues:
    """One SGD step on the global batch."""
    set_rates(session.optimizer, session.plan.config, epoch)
    loss, z = session.model(views, labels)
    session.optimizer.zero_grad()
    loss.backward()
    session.optimizer.step()
    return reduce_step(loss, z, interrupted=interrupted, me=session.me)


def _after_step(session: Session, step: int, values: StepValues, log: RunLog) -> None:
    """Look at what the step gave: report, judge, measure, save, stop."""
    plan, config = session.plan, session.plan.config
    epoch = (step - 1) // plan.steps_per_epoch
    if not math.isfinite(values.loss):
        raise NonFiniteError(
            f"{plan.title}: the loss is {values.loss} in epoch {epoch + 1}, step {step} of {plan.total_steps}. "
            "The last saved state is from before; a lower base_lr or a warm-up is the usual cure."
        )
    rates = {"lr": learning_rate(config, epoch)}
    if config.method.name == "simsiam":
        rates["predictor_lr"] = predictor_rate(config, epoch)
    log.step(epoch, step, {"loss": values.loss, "std_sqrt_d": values.std, **rates})
    _judge(session, step, values)
    end_of_epoch = step % plan.steps_per_epoch == 0
    if end_of_epoch and ((epoch + 1) % config.monitor.every_epochs == 0 or epoch + 1 == config.epochs):
        _measure(session, epoch, step, log)
    if end_of_epoch or step % config.save.every_steps == 0 or values.interrupted:
        save(session, step)
    if values.interrupted:
        logger.info("%s: stopped at step %d; the same command goes on from there", plan.title, step)
        raise KeyboardInterrupt


def _judge(session: Session, step: int, values: StepValues) -> None:
    """Hold the last deviations against the collapse rule."""
    watch, plan = session.watch, session.plan
    if watch is None or values.std is None:
        return
    watch.add(values.std)
    if not watch.collapsed(step) or watch.rule.action == "record":
        return
    rule = watch.rule
    if session.me.is_main:
        found = {"key": plan.key, "step": step, "loss": values.loss, "std": list(watch.values)}
        found["rule"] = rule.model_dump(mode="json")
        write_atomic(plan.out / COLLAPSED_NAME, json.dumps(found, indent=2) + "\n")
    raise CollapseError(
        f"{plan.title} has collapsed at step {step} of {plan.total_steps}: the median of std(z/|z|)·√d over the last "
        f"{rule.window} steps is below {rule.below} (now {values.std:.3f}, loss {values.loss:.3f}). No weights were "
        f"exported; the values are in {plan.out / COLLAPSED_NAME}. collapse.action: record would let it run on."
    )


def _measure(session: Session, epoch: int, step: int, log: RunLog) -> None:
    """kNN at the end of an epoch."""
    plan, me = session.plan, session.me
    top1 = knn_top1(
        session.core.backbone,
        plan.bank,
        plan.queries,
        plan.config.monitor,
        plan.config.pixels,
        workers=plan.num_workers,
        me=me,
    )
    if top1 is not None:
        log.measure(epoch, step, {f"knn{plan.config.monitor.k}_top1": top1})


def _origin(plan: Plan) -> Origin:
    config = plan.config
    return Origin(
        name=row_label(config, plan.seed) + (" (modified)" if plan.overrides else ""),
        family=config.family,
        arch=config.arch,
        pixels=config.pixels,
        pretrain_seed=plan.seed,
        epochs=config.epochs,
        lineage=plan.lineage,
    )

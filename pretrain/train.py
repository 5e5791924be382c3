"""The training loop: the same for SimSiam and the supervised row, for one process and for N nodes.

Source: protocols §1.4. Every process computes its share of each global batch; batch-norm statistics and gradients are
those of the whole, so the number of processes changes the speed and, but for rounding, nothing else. The state is
(epoch, step): a run that was cut off, anywhere, continues to the same bytes on the same CPU. (On GPUs not tried; their
kernels may differ in the last bits from one run to the next.)
"""

import json
import logging
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from functools import partial
from itertools import tee
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint import Origin, export_backbone
from pretrain.monitor import StepValues, gradient_norm, knn_top1, reduce_step
from pretrain.photometric import apply_rows, read_crops
from pretrain.preflight import COLLAPSED_NAME, NONFINITE_NAME, Plan, finished, write_run
from pretrain.progress import RunLog, Waiting, is_logged, log_lines_above
from pretrain.replacement import Replacements, substitutes
from pretrain.schedule import global_batches, labels_of, learning_rate, local_part, predictor_rate, set_rates
from pretrain.session import Session, alone, check_shared, open_session, save, visible
from pretrain.views import read_views
from zoo import device as devices
from zoo import interrupt
from zoo.backbone import normalise
from zoo.checkpoint import CARD_NAME
from zoo.distributed import World, any_process, barrier
from zoo.errors import CollapseError, NonFiniteError
from zoo.files import write_atomic
from zoo.interrupt import REQUEUE, deferred
from zoo.loading import load_batches
from zoo.recipe import row_label

logger = logging.getLogger(__name__)

NAMED = 8  # samples in the message of a step that is not finite


def train(plan: Plan, me: World, *, dtype: torch.dtype = torch.float32) -> Path:
    """Train, or go on, or find that all is done; the path of the backbone's card.

    Raises CollapseError, NonFiniteError, DataError, ConfigError; KeyboardInterrupt after a signal, the state saved.
    """
    card = finished(plan)
    if card is not None:
        logger.info("%s is complete: %s", plan.title, card)
        return card
    barrier(me)
    with alone(plan, me):
        _train(plan, me, dtype)
        barrier(me)
    visible(plan.out / CARD_NAME)
    card = finished(plan)
    assert card is not None
    logger.info("%s: done after %d steps; %s", plan.title, plan.total_steps, card)
    return card


def _train(plan: Plan, me: World, dtype: torch.dtype) -> None:
    """From the last state to the card."""
    session = open_session(plan, me, dtype)
    if me.is_main:
        write_run(plan, session.replacements.record())
    barrier(me)
    check_shared(plan, me)
    log = RunLog(
        plan.out,
        start_step=session.start_step,
        total_steps=plan.total_steps,
        batch_size=plan.config.batch_size,
        device=me.device,
        enabled=me.is_main,
    )
    with deferred() as interrupted, log, log_lines_above(log):
        batches = training_batches(
            plan,
            me,
            num_views=session.core.num_views,
            start_step=session.start_step,
            replacements=session.replacements,
            waiting=log.waiting,
            dtype=dtype,
        )
        if _measured_after(plan, session.start_step) and not any_process(log.has_measurement(session.start_step), me):
            _measure(session, session.start_step, log)
        with closing(batches):
            for batch in batches:
                values = _step(session, *batch, interrupted=interrupt.exit_code() if interrupted() else 0)
                _after_step(session, batch[0], values, log)
    if me.is_main:
        write_run(plan, session.replacements.record())
        export_backbone(plan.out, session.core.backbone.state_dict(), _origin(plan, session.replacements))


Batch = tuple[int, int, tuple[Tensor, ...], Tensor]  # steps done after it, its epoch, views, labels


def training_batches(
    plan: Plan,
    me: World,
    *,
    num_views: int,
    start_step: int,
    replacements: Replacements,
    waiting: Waiting | None = None,
    dtype: torch.dtype = torch.float32,
) -> Generator[Batch, None, None]:
    """This process's share of every step from `start_step` on: views (n, 3, H, W) normalised, labels (n,).

    The shares of all processes, in rank order, are the same whatever their number and that of the loader workers.
    `waiting` is told how long the loader keeps this process waiting; finishing views on the device is not part of it.
    `replacements` is told of every image that could not be read. Raises DataError where the recipe has no rule for it.
    Closing the iterator ends the loader workers.
    """
    config = plan.config
    every = global_batches(
        plan.seed, len(plan.train), batch_size=config.batch_size, epochs=config.epochs, start_step=start_step
    )
    mine, to_load = tee(local_part(batch, me) for batch in every)
    on_device = config.views.photometric == "device"
    read = partial(read_crops if on_device else read_views, plan.train, config.views, plan.seed, num_views)
    loaded = load_batches(
        read,
        to_load,
        num_workers=plan.num_workers,
        pin=me.device.type != "cpu",
        substitutes=partial(substitutes, plan.seed, len(plan.train)) if config.bad_images == "replace" else None,
        on_replaced=replacements.loaded,
    )

    def known() -> Iterator[tuple[tuple[int, int, tuple[Tensor, ...]], tuple[Tensor, ...]]]:
        batches = zip(mine, (waiting or Waiting()).counted(loaded), strict=True)
        for step, (keys, loaded_tensors) in enumerate(batches, start=start_step + 1):
            pixels, rows = loaded_tensors[:num_views], loaded_tensors[num_views:]
            labels = labels_of(replacements.used(step, keys), plan.train.labels)
            yield (step, keys[0][0], rows), (labels, *pixels)

    layout = torch.channels_last if config.arithmetic.channels_last else torch.preserve_format
    with closing(loaded):
        for (step, epoch, rows), (labels, *pixels) in devices.moved_ahead(known(), me.device):
            views = [apply_rows(*each) for each in zip(pixels, rows, strict=True)] if on_device else pixels
            ready = tuple(normalise(view, config.pixels).to(dtype, memory_format=layout) for view in views)
            yield step, epoch, ready, labels


def _step(
    session: Session, step: int, epoch: int, views: tuple[Tensor, ...], labels: Tensor, *, interrupted: int
) -> StepValues:
    """One SGD step on the global batch, in `arithmetic.accumulate` parts whose gradients are averaged."""
    set_rates(session.optimizer, session.plan.config, epoch)
    session.optimizer.zero_grad()
    loss, z = accumulate_gradients(session, views, labels)
    norm = gradient_norm(session.core.parameters())
    session.optimizer.step()
    return reduce_step(
        loss,
        z,
        gradient=norm,
        replaced=session.replacements.count(step),
        interrupted=interrupted,
        with_rank=is_logged(step, session.plan.total_steps),
        me=session.me,
    )


def accumulate_gradients(session: Session, views: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Forward and backward through each part of the batch; the mean loss and the projections, (n, d), of all parts.

    Batch-norm statistics are each part's own. Gradients are exchanged between processes once, with the last part.
    """
    arithmetic = session.plan.config.arithmetic
    parts = list(zip(*(view.chunk(arithmetic.accumulate) for view in (*views, labels)), strict=True))
    losses: list[Tensor] = []
    projections: list[Tensor | None] = []
    for number, (*part_views, part_labels) in enumerate(parts, start=1):
        with devices.gradients_kept_local(session.model) if number < len(parts) else nullcontext():
            with torch.autocast(session.me.device.type, torch.bfloat16, enabled=arithmetic.precision == "bf16"):
                loss, z = session.forward(tuple(part_views), part_labels)
            (loss / len(parts)).backward()
        losses.append(loss.detach())
        projections.append(z)
    together = [z for z in projections if z is not None]
    return torch.stack(losses).mean(), torch.cat(together) if together else None


def _after_step(session: Session, step: int, values: StepValues, log: RunLog) -> None:
    """Look at what the step gave: report, judge, measure, save, stop."""
    plan, config = session.plan, session.plan.config
    epoch = (step - 1) // plan.steps_per_epoch
    if not values.is_finite:
        raise _not_finite(session, epoch, step, values)
    if values.replaced:
        log.note(epoch, step, {"replaced": session.replacements.gather(step, session.me)})
    rates = {"lr": learning_rate(config, epoch)}
    if config.method.name == "simsiam" and config.method.predictor == "mlp":
        rates["predictor_lr"] = predictor_rate(config, epoch)
    seen = {"loss": values.loss, "std_sqrt_d": values.std, "effective_rank": values.effective_rank}
    log.step(epoch, step, {**seen, "gradient_norm": values.gradient_norm, **rates})
    _judge(session, step, values)
    if step % plan.steps_per_epoch == 0 or step % config.save.every_steps == 0 or values.interrupted:
        save(session, step)
    if values.interrupted:
        if values.interrupted == REQUEUE:
            interrupt.note_requeue()
        logger.info("%s: stopped at step %d; the same command goes on from there", plan.title, step)
        raise KeyboardInterrupt
    if _measured_after(plan, step):
        _measure(session, step, log)


def _measured_after(plan: Plan, step: int) -> bool:
    """Whether the kNN monitor looks at the network after this step."""
    epoch, into = divmod(step, plan.steps_per_epoch)
    return into == 0 < epoch and (epoch % plan.config.monitor.every_epochs == 0 or epoch == plan.config.epochs)


def _not_finite(session: Session, epoch: int, step: int, values: StepValues) -> NonFiniteError:
    """The error that says where and on which images; all of them go into a file beside the log."""
    plan = session.plan
    batches = global_batches(
        plan.seed,
        len(plan.train),
        batch_size=plan.config.batch_size,
        epochs=plan.config.epochs,
        start_step=step - 1,
    )
    samples = [index for _, index in next(batches)]
    rate = learning_rate(plan.config, epoch)
    if session.me.is_main:
        # JSON knows no NaN
        numbers = {"loss": str(values.loss), "gradient_norm": str(values.gradient_norm), "lr": rate}
        named = [{"sample": index, "image": plan.train.paths[index]} for index in samples]
        found = {"key": plan.key, "epoch": epoch, "step": step, **numbers, "batch": named}
        write_atomic(plan.out / NONFINITE_NAME, json.dumps(found, indent=2) + "\n")
    first = ", ".join(f"{index} {plan.train.paths[index]}" for index in samples[:NAMED])
    return NonFiniteError(
        f"{plan.title}: the loss is {values.loss}, the gradient's norm {values.gradient_norm}, in epoch {epoch + 1}, "
        f"step {step} of {plan.total_steps}, at lr {rate:g}. The batch: {first}"
        f"{', …' if len(samples) > NAMED else ''} (all {len(samples)} in {plan.out / NONFINITE_NAME}). The last saved "
        "state is from before; a lower base_lr or a warm-up is the usual cure."
    )


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


def _measure(session: Session, step: int, log: RunLog) -> None:
    """kNN at the end of an epoch, when its state is safe: it takes long, and a run that goes on makes up for it."""
    plan, me = session.plan, session.me
    top1 = knn_top1(
        session.core.backbone,
        plan.bank,
        plan.queries,
        plan.config.monitor,
        plan.config.pixels,
        indices=session.monitored,
        workers=plan.num_workers,
        me=me,
    )
    if top1 is not None:
        log.measure(step // plan.steps_per_epoch - 1, step, {f"knn{plan.config.monitor.k}_top1": top1})


def _origin(plan: Plan, replacements: Replacements) -> Origin:
    config = plan.config
    return Origin(
        name=row_label(config, plan.seed) + (" (modified)" if plan.overrides else ""),
        family=config.family,
        arch=config.arch,
        pixels=config.pixels,
        pretrain_seed=plan.seed,
        epochs=config.epochs,
        lineage=(*plan.lineage, *replacements.lineage()),
    )

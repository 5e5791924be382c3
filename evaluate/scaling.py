"""How do batch, learning rate and schedule change together when fewer devices are at hand?

By linear scaling (Goyal et al. 2017, arXiv 1706.02677; detectron2's `auto_scale_workers` does the same): a global batch
of b images in place of B, k = B / b, divides the learning rate and the rate a schedule ends at by k, and multiplies
iterations, milestones, warm-up and the checkpoint period by k, so that as many images are seen at each rate. Momentum,
weight decay and PreciseBN's iterations stay. What is no whole number is rounded up. Pure functions of an engine's
native configuration; which values they changed goes into the record.
"""

import copy
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from engines.launch import Name
from zoo.errors import ConfigError, several

TINY: Final = 1e-9  # of an iteration: 3 * (1 / 3) is a whole number
BATCH: Final = {"detectron2": "SOLVER.IMS_PER_BATCH", "mmseg": "train_dataloader.batch_size"}  # of all processes
RATE: Final = {"detectron2": "SOLVER.BASE_LR", "mmseg": "optim_wrapper.optimizer.lr"}
LENGTH: Final = {"detectron2": "SOLVER.MAX_ITER", "mmseg": "train_cfg.max_iters"}
# of mmengine's schedules, what is a rate and what is a number of iterations
_RATES: Final = {"PolyLR": ("eta_min",), "CosineAnnealingLR": ("eta_min",), "LinearLR": (), "MultiStepLR": ()}
_STEPS: Final = ("begin", "end", "milestones", "T_max")


def scaled(engine: Name, config: Mapping[str, Any], batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the configuration for a global batch of `batch` images, what the record says of it).

    The record's part: rule, from and to (images a step), factor (k), lr and iterations ([protocol's, here]), changed
    (dotted name → the same, of every value), rounded_up (names whose value was no whole number). Raises ConfigError for
    the protocol's own batch, and for values that are not there to be scaled.
    """
    _refuse_missing(engine, config)
    own = value_at(config, BATCH[engine])
    if batch == own:
        raise ConfigError(
            f"settings.global_batch: expected another number than {own}, which is the protocol's own; leave it null."
        )
    result = reshaped(engine, config, rate=batch / own, length=own / batch)
    set_value(result, BATCH[engine], batch)
    changed = changes(config, result)
    exact = reshaped(engine, config, rate=batch / own, length=own / batch, whole=False)
    return result, {
        "rule": "linear",
        "from": own,
        "to": batch,
        "factor": own / batch,
        "lr": changed[RATE[engine]],
        "iterations": changed[LENGTH[engine]],
        "changed": changed,
        "rounded_up": sorted(
            name for name, (_, after) in changed.items() if name != BATCH[engine] and _differ(after, exact, name)
        ),
    }


def remark(config: Mapping[str, Any], found: Mapping[str, Any], *, swept: bool) -> str:
    """The sentence that stands below a table with such a value. config: the protocol's; found: `scaled`'s second.

    swept: whether a sweep chose another rate after that.
    """
    (lr, lr_here), (length, length_here) = found["lr"], found["iterations"]
    text = (
        f"a global batch of {found['to']} images in place of {found['from']}, scaled linearly: rate {lr:g} → "
        f"{lr_here:g}{' before the sweep' if swept else ''}, {length:,} → {length_here:,} iterations"
    )
    if found["rounded_up"]:
        text += f", rounded up: {', '.join(found['rounded_up'])}"
    if "Sync" in json.dumps(config):
        text += f"; the synchronised batch norms' statistics span {found['to']} images, the protocol's {found['from']}"
    return text + "."


def reshaped(
    engine: Name, config: Mapping[str, Any], *, rate: float, length: float, whole: bool = True
) -> dict[str, Any]:
    """`config` with every learning rate times `rate` and every number of iterations times `length`, rounded up.

    whole: False leaves numbers of iterations as they come out. Raises ConfigError for values that are not there.
    """
    _refuse_missing(engine, config)
    result = copy.deepcopy(dict(config))

    def steps(value: int) -> float:
        return math.ceil(value * length - TINY) if whole else value * length

    def rates(value: float) -> float:
        return float(f"{value * rate:.12g}")  # 0.02 / 3, not its last bits

    if engine == "detectron2":
        solver = result["SOLVER"]
        for name in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[name] = steps(solver[name])
        solver["STEPS"] = [steps(step) for step in solver["STEPS"]]
        for name in ("BASE_LR", "BASE_LR_END"):
            if name in solver:
                solver[name] = rates(solver[name])
        return result
    result["train_cfg"]["max_iters"] = steps(result["train_cfg"]["max_iters"])
    result["default_hooks"]["checkpoint"]["interval"] = steps(result["default_hooks"]["checkpoint"]["interval"])
    optimizer = result["optim_wrapper"]["optimizer"]
    optimizer["lr"] = rates(optimizer["lr"])
    for schedule in result["param_scheduler"]:
        for name in _RATES[schedule["type"]]:
            if name in schedule:
                schedule[name] = rates(schedule[name])
        for name in _STEPS:
            if name == "milestones" and name in schedule:
                schedule[name] = [steps(step) for step in schedule[name]]
            elif name == "end" and schedule["type"] == "PolyLR":  # one more than the iterations, as configured here
                schedule[name] = steps(schedule[name] - 1) + 1
            elif name in schedule:
                schedule[name] = steps(schedule[name])
    return result


def changes(before: Any, after: Any, at: str = "") -> dict[str, list[Any]]:
    """Dotted name → [before, after] of every value that differs; lists of plain values count as one."""
    if isinstance(before, Mapping):
        pairs = [(f"{at}.{key}" if at else str(key), before[key], after[key]) for key in before]
    elif isinstance(before, list | tuple) and any(isinstance(item, Mapping) for item in before):
        pairs = [(f"{at}.{number}", *both) for number, both in enumerate(zip(before, after, strict=True))]
    else:
        return {} if before == after else {at: [before, after]}
    return {name: both for where, old, new in pairs for name, both in changes(old, new, where).items()}


def value_at(config: Any, name: str) -> Any:
    """The value at a dotted name, None where there is none. Numbers are places in lists."""
    for part in name.split("."):
        if isinstance(config, Mapping):
            config = config.get(part)
        else:
            config = config[int(part)] if isinstance(config, list | tuple) and part.isdigit() else None
    return config


def set_value(config: dict[str, Any], name: str, value: Any) -> None:
    """Put `value` at a dotted name whose mappings are there."""
    *way, last = name.split(".")
    for part in way:
        config = config[part]
    config[last] = value


def _differ(found: Any, exact: Any, name: str) -> bool:
    """Whether rounding moved the value at `name`."""
    wanted = value_at(exact, name)
    pairs = zip(found, wanted, strict=True) if isinstance(found, list) else [(found, wanted)]
    return any(abs(one - other) > TINY * max(1.0, abs(other)) for one, other in pairs)


def _refuse_missing(engine: Name, config: Mapping[str, Any]) -> None:
    """An engine's default for what is not stated would stay as it is, and the rest would be scaled."""
    if engine == "detectron2":
        names = [f"SOLVER.{name}" for name in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")]
        names.append("SOLVER.CHECKPOINT_PERIOD")
    else:
        names = [BATCH[engine], RATE[engine], LENGTH[engine], "default_hooks.checkpoint.interval", "param_scheduler"]
    problems = [f"{name}: not stated" for name in names if value_at(config, name) is None]
    schedules = value_at(config, "param_scheduler") or () if engine == "mmseg" else ()
    for number, schedule in enumerate(schedules):
        if schedule.get("type") not in _RATES or schedule.get("by_epoch", True):
            expected = f"one of {', '.join(sorted(_RATES))} with by_epoch false"
            problems.append(f"param_scheduler.{number}: expected {expected}, found {schedule}")
    if problems:
        raise ConfigError(several(f"{engine} configuration: batch, rate and schedule cannot be scaled:", problems))

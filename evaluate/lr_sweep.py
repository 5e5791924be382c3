"""Which learning rate suits these weights? A few, each judged on training images that were held out, then all of train.

The published protocols fine-tune every checkpoint with one rate, which may suit some of them badly (D24's outlier is a
guess away from that). Here a part of the training images is held out, the same for every checkpoint; a model is trained
on the rest with each rate; the rate whose model does best on the held-out part is used once on all of train, and only
that model sees the test images. A rate that makes the loss infinite is a point without a score.

Every point has a folder of its own in the cell's work folder: a killed one goes on from its checkpoint, a finished one
(point.json) is not trained again.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator

from engines.launch import Name
from evaluate.scaling import LENGTH, RATE, reshaped, value_at
from zoo.config import Strict
from zoo.errors import DataError, NonFiniteError
from zoo.files import write_atomic

log = logging.getLogger(__name__)
POINT = "point.json"
POINT_FOLDER = "rate_"  # and the factor
Fraction = Annotated[float, Field(gt=0, lt=1)]


class LrSweep(Strict):
    """The settings of a sweep; all of them can move a number."""

    factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=2)]  # of the protocol's rate, rising
    held_out: Fraction  # of the training images
    iterations: Annotated[float, Field(gt=0, le=1)]  # of a point's schedule: 1 is the protocol's length

    @field_validator("factors")
    @classmethod
    def _rising(cls, factors: tuple[float, ...]) -> tuple[float, ...]:
        if list(factors) != sorted(set(factors)):
            raise ValueError(f"expected different numbers in rising order, found {', '.join(map(str, factors))}")
        return factors


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Training images divided in two, in the engine's own terms, and what judges a model on the second part."""

    fit: list[dict[str, Any]]
    test: list[dict[str, Any]]  # numbered from 0
    score: Callable[[dict[str, np.ndarray]], float]  # the engine's arrays for `test` → percent
    metric: str  # its name in words


def held_out_rows(num_images: int, fraction: float, *, manifest_sha256: str) -> np.ndarray:
    """The rising indices of the training images that are held out: at least one, and not all; drawn by train's hash."""
    if num_images < 2:
        raise DataError(f"a rate cannot be chosen on held-out training images: expected 2 or more, found {num_images}.")
    count = min(max(1, round(num_images * fraction)), num_images - 1)
    drawn = np.random.default_rng(int(manifest_sha256[:16], 16)).permutation(num_images)[:count]
    return np.sort(drawn)


def choose(
    engine: Name,
    config: Mapping[str, Any],
    sweep: LrSweep,
    parts: HeldOut,
    folder: Path,
    train: Callable[[Path, dict[str, Any], HeldOut], dict[str, np.ndarray]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`config` at the best rate, what the record says of the sweep).

    train(folder, config, parts) trains on parts.fit and returns the engine's arrays for parts.test. The record's part:
    metric, fit and held_out (images), points (factor, lr, iterations, score or None), factor and lr chosen, at_edge. Of
    equal scores the rate nearest the protocol's wins, then the lower. Raises NonFiniteError when no point has a score.
    """
    points = [_point(engine, config, sweep, factor, parts, folder, train) for factor in sweep.factors]
    scores = {point["factor"]: point["score"] for point in points if point["score"] is not None}
    if not scores:
        rates = ", ".join(f"{point['lr']:g}" for point in points)
        raise NonFiniteError(
            f"{engine}: the loss became NaN or infinite with every learning rate of the sweep ({rates})."
        )
    best = min(scores, key=lambda factor: (-scores[factor], abs(np.log(factor)), factor))
    chosen = reshaped(engine, config, rate=best, length=1)
    lr = value_at(chosen, RATE[engine])
    log.info("learning rate %g: the best of %s on %d held-out images", lr, sweep.factors, len(parts.test))
    return chosen, {
        "metric": parts.metric,
        "fit": len(parts.fit),
        "held_out": len(parts.test),
        "points": points,
        "factor": best,
        "lr": lr,
        "at_edge": best in (sweep.factors[0], sweep.factors[-1]),
    }


def remark(found: Mapping[str, Any]) -> str | None:
    """What stands below a table with a rate at the edge of its grid; None elsewhere. found: `choose`'s second."""
    if not found["at_edge"]:
        return None
    rates = ", ".join(f"{point['lr']:g}" for point in found["points"])
    return (
        f"the chosen learning rate {found['lr']:g} is at the edge of the grid ({rates}): a better one may lie beyond."
    )


def selection(sweep: LrSweep | None, metric: str, *, scaled: bool) -> str:
    """A record's `selection`, of the model after the last iteration. scaled: the batch is not the protocol's."""
    if sweep is None:
        return "last iteration"
    factors = ", ".join(f"{factor:g}" for factor in sweep.factors)
    rate = "scaled one" if scaled else "protocol's"
    short = "" if sweep.iterations == 1 else f", trained {sweep.iterations:g} of the iterations each"
    return (
        f"last iteration; learning rate ({factors} times the {rate}{short}) chosen by {metric} on "
        f"{100 * sweep.held_out:g} % of the training images"
    )


def _point(
    engine: Name,
    config: Mapping[str, Any],
    sweep: LrSweep,
    factor: float,
    parts: HeldOut,
    folder: Path,
    train: Callable[[Path, dict[str, Any], HeldOut], dict[str, np.ndarray]],
) -> dict[str, Any]:
    """One rate's score, from its folder where it is finished."""
    home = folder / f"{POINT_FOLDER}{factor:g}"
    finished = home / POINT
    if finished.exists():
        _sweep(home)  # a kill may have come before it
        return json.loads(finished.read_text())
    mine = reshaped(engine, config, rate=factor, length=sweep.iterations)
    point = {"factor": factor, "lr": value_at(mine, RATE[engine]), "iterations": value_at(mine, LENGTH[engine])}
    log.info("sweep: learning rate %g, %d iterations", point["lr"], point["iterations"])
    try:
        point["score"] = parts.score(train(home, mine, parts))
    except NonFiniteError as error:
        log.warning("%s", error)
        point["score"] = None
    write_atomic(finished, json.dumps(point))
    _sweep(home)
    return point


def _sweep(folder: Path) -> None:
    """Remove checkpoints and arrays, ten times the weights' size; what is left tells of the training."""
    for path in folder.iterdir():
        if path.suffix not in (".json", ".jsonl") or path.name in ("train.json", "test.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

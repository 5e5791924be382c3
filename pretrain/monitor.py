"""Is the run learning, or has it collapsed?

Collapse probe (protocols §1.2, paper §4.1): the standard deviation of z/‖z‖ over the global batch, per channel,
averaged over channels, times √d; about 1 when healthy, 0 when every image has the same output. Effective rank (Roy &
Vetterli 2007): how many directions the outputs spread over, where the deviation cannot tell few from many. The norm of
the gradient. And a kNN classifier on held-out images. All only look: they change no weight, no statistic and no random
generator, and select nothing.
"""

import copy
import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import normalize

from evaluate import knn
from evaluate.features import extract
from evaluate.forward import Extractor
from zoo.backbone import Backbone
from zoo.datasets import Manifest
from zoo.distributed import World
from zoo.interrupt import INTERRUPTED, REQUEUE
from zoo.recipe import CollapseRule, Monitor
from zoo.transforms import Pixels, TestTransform

TEMPERATURE = 0.07  # kNN's, protocols §2.5
EXTRACTION_BATCH = 64
RANK_NOISE = 1e-14
RANK_ROWS = 1024  # of a larger batch the first: the time goes with the cube


class StepValues(NamedTuple):
    """One step over all processes. std: of z/‖z‖, times √d; None without a projection."""

    loss: float
    gradient_norm: float  # of all parameters together
    std: float | None
    effective_rank: float | None  # None where it was not asked for, too
    replaced: int  # samples whose image could not be read
    interrupted: int  # the exit code that all leave with when some process was asked to stop; 0: none was

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def gradient_norm(parameters: Iterable[Parameter]) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar; under DDP they are the global batch's."""
    return torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])


def reduce_step(
    loss: Tensor,
    z: Tensor | None,
    *,
    gradient: Tensor,
    replaced: int,
    interrupted: int,
    with_rank: bool,
    me: World,
) -> StepValues:
    """The step's global values, equal on every process.

    loss: scalar mean of the local batch; z: (n, d) or None, n equal on all processes; gradient: `gradient_norm`;
    replaced: how many local samples; interrupted: the exit code of `zoo.interrupt` when this process was asked to stop,
    else 0. One all-reduce carries the loss, the gradient's norm, the sums behind the deviation and the wish to stop, so
    all processes stop together and alike: run again when one is to be.
    """
    own = loss.new_tensor([replaced, interrupted != 0, interrupted == REQUEUE], dtype=torch.float64)
    parts = [loss.detach().double().view(1), gradient.detach().double().view(1), own]
    unit = None if z is None else normalize(z.detach().double(), dim=1)  # (n, d)
    if unit is not None:
        parts += [unit.new_tensor([len(unit)]), unit.sum(0), unit.square().sum(0)]
    sums = torch.cat(parts)
    if me.size > 1:
        dist.all_reduce(sums)
    values = sums.cpu()
    finite = bool(values[:2].isfinite().all())
    return StepValues(
        loss=float(values[0]) / me.size,
        gradient_norm=float(values[1]) / me.size,
        std=None if z is None else _scaled_std(values[5], *values[6:].chunk(2)),
        effective_rank=effective_rank(_gathered(unit, me)) if unit is not None and with_rank and finite else None,
        replaced=int(values[2]),
        interrupted=REQUEUE if values[4] > 0 else INTERRUPTED if values[3] > 0 else 0,
    )


def _gathered(rows: Tensor, me: World) -> Tensor:
    """The first RANK_ROWS rows of the global batch, which is that of all processes in rank order."""
    if me.size == 1:
        return rows[:RANK_ROWS]
    parts = [torch.empty_like(rows) for _ in range(me.size)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)[:RANK_ROWS]


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the singular values of the centred rows, divided by their sum; rows: (n, d) float64.

    Between 1 and min(n - 1, d); 1 too where all rows are equal, and the values all 0.
    """
    centred = rows - rows.mean(0)
    gram = centred @ centred.T if len(rows) <= rows.shape[1] else centred.T @ centred
    squares = torch.linalg.eigvalsh(gram)  # of the singular values; far cheaper than these
    squares = squares[squares > RANK_NOISE * len(rows)]  # a unit row's square is 1; below is rounding
    singular = squares.sqrt()
    shares = singular / singular.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def _scaled_std(count: Tensor, total: Tensor, squares: Tensor) -> float:
    """√d · mean over channels of the standard deviation, from sums over `count` rows; total, squares: (d,)."""
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return float(variance.sqrt().mean()) * math.sqrt(len(total))


class CollapseWatch:
    """The last deviations, and the rule they are held against."""

    def __init__(self, rule: CollapseRule, values: Iterable[float] = ()) -> None:
        self.rule = rule
        self.values = deque(values, maxlen=rule.window)

    def add(self, std: float) -> None:
        self.values.append(std)

    def collapsed(self, step: int) -> bool:
        """After `step` steps: do the last `window` deviations say so? Never before `grace_steps`."""
        full = len(self.values) == self.rule.window
        return full and step >= self.rule.grace_steps and statistics.median(self.values) < self.rule.below


def monitor_indices(monitor: Monitor, bank: Manifest, queries: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """The samples of bank and queries: the first of a fixed permutation of each split, disjoint within one split."""
    bank_order = np.random.default_rng(0).permutation(len(bank))
    query_order = np.random.default_rng(0).permutation(len(queries))
    start = monitor.bank_images if bank.split == queries.split else 0
    return bank_order[: monitor.bank_images], query_order[start : start + monitor.query_images]


def knn_top1(
    backbone: Backbone,
    bank: Manifest,
    queries: Manifest,
    monitor: Monitor,
    pixels: Pixels,
    *,
    indices: tuple[np.ndarray, np.ndarray],
    workers: int,
    me: World,
) -> float | None:
    """Top-1 in percent of weighted kNN on average-pooled features; on process 0, None on the others.

    indices: the samples of bank and queries, from `monitor_indices`. A copy of the backbone is looked at, in eval mode;
    the one in training is not touched.
    """
    transform = TestTransform(resize=monitor.resize, crop=monitor.crop, interpolation="bilinear", fit="centre_crop")
    extractor = Extractor(copy.deepcopy(backbone).float().eval(), pixels, [("avgpool", None)])
    features = [
        extract(
            extractor,
            manifest,
            transform=transform,
            batch_size=EXTRACTION_BATCH,
            num_workers=workers,
            me=me,
            indices=wanted,
        )[0]
        for manifest, wanted in zip((bank, queries), indices, strict=True)
    ]
    if not me.is_main:
        return None
    ranked = knn.classify(
        features[1],
        features[0],
        bank.labels[indices[0]],
        ks=(monitor.k,),
        num_classes=int(bank.labels.max()) + 1,
        temperature=TEMPERATURE,
        back_end="torch",
        block_mb=256,
    )
    return 100.0 * float((ranked[monitor.k][:, 0] == queries.labels[indices[1]]).mean())

"""Is the run learning, or has it collapsed?

Collapse probe (protocols §1.2, paper §4.1): the standard deviation of z/‖z‖ over the global batch, per channel,
averaged over channels, times √d; about 1 when healthy, 0 when every image has the same output. And a kNN classifier on
held-out images. Both only look: they change no weight, no statistic and no random generator, and select nothing.
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
from torch.nn.functional import normalize

from evaluate import knn
from evaluate.features import extract
from evaluate.forward import Extractor
from zoo.backbone import Backbone
from zoo.datasets import Manifest
from zoo.distributed import World
from zoo.recipe import CollapseRule, Monitor
from zoo.transforms import Pixels, TestTransform

TEMPERATURE = 0.07  # kNN's, protocols §2.5
EXTRACTION_BATCH = 64


class StepValues(NamedTuple):
    """One step over all processes. std: of z/‖z‖, times √d; None without a projection."""

    loss: float
    std: float | None
    interrupted: bool  # some process was asked to stop


def reduce_step(loss: Tensor, z: Tensor | None, *, interrupted: bool, me: World) -> StepValues:
    """The step's global values, equal on every process. loss: scalar mean of the local batch; z: (n, d) or None.

    One all-reduce carries the loss, the sums behind the deviation and the wish to stop, so all processes stop together.
    """
    parts = [loss.detach().double().view(1), loss.new_tensor([float(interrupted)], dtype=torch.float64)]
    if z is not None:
        unit = normalize(z.detach().double(), dim=1)  # (n, d)
        parts += [unit.new_tensor([len(unit)]), unit.sum(0), unit.square().sum(0)]
    sums = torch.cat(parts)
    if me.size > 1:
        dist.all_reduce(sums)
    values = sums.cpu()
    std = None if z is None else _scaled_std(values[2], *values[3:].chunk(2))
    return StepValues(loss=float(values[0]) / me.size, std=std, interrupted=bool(values[1] > 0))


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
    backbone: Backbone, bank: Manifest, queries: Manifest, monitor: Monitor, pixels: Pixels, *, workers: int, me: World
) -> float | None:
    """Top-1 in percent of weighted kNN on average-pooled features; on process 0, None on the others.

    A copy of the backbone is looked at, in eval mode; the one in training is not touched.
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
            indices=indices,
        )[0]
        for manifest, indices in zip((bank, queries), monitor_indices(monitor, bank, queries), strict=True)
    ]
    return _top1(features[0], features[1], bank, queries, monitor) if me.is_main else None


def _top1(bank_rows: np.ndarray, query_rows: np.ndarray, bank: Manifest, queries: Manifest, monitor: Monitor) -> float:
    bank_indices, query_indices = monitor_indices(monitor, bank, queries)
    ranked = knn.classify(
        query_rows,
        bank_rows,
        bank.labels[bank_indices],
        ks=(monitor.k,),
        num_classes=int(bank.labels.max()) + 1,
        temperature=TEMPERATURE,
        back_end="torch",
        block_mb=256,
    )
    return 100.0 * float((ranked[monitor.k][:, 0] == queries.labels[query_indices]).mean())

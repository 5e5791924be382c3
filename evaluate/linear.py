"""How well does a linear classifier on the frozen, average-pooled features do? (protocols §2.1)

The backbone stays in eval mode without gradients and is proven bit-identical afterwards. Test features are extracted
once and shared with other benchmarks; training features change with every epoch's augmentation and are not kept.

Every global batch is cut into fixed micro-batches for the backbone, which are shared out among processes; their
features are gathered, and every process makes the same head update on the whole batch. So there is no gradient to
average, and one, two or four processes compute the same numbers. Reported: the last epoch (D5).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from evaluate.bootstrap import replicate_means
from evaluate.job import FeatureSpec, Job
from zoo.config import Strict
from zoo.datasets import Manifest, decode
from zoo.errors import CheckpointError, NonFiniteError
from zoo.record import Measurement
from zoo.transforms import TestTransform, TrainTransform, apply_train, epoch_order, sample_rng

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

log = logging.getLogger(__name__)
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
ENGINE = None


class Settings(Strict):
    train_split: str
    test_split: str
    train_transform: TrainTransform
    test_transform: TestTransform
    layer: Literal["avgpool"]
    precision: Literal["fp32"]
    forward_batch_size: Positive  # images the frozen backbone sees at once
    optimiser: Literal["lars_mmselfsup", "lars_apex"]  # D4
    trust_coefficient: NonNegative
    eps: NonNegative
    epochs: Positive
    batch_size: Positive  # global
    base_lr: NonNegative  # per 256 images
    momentum: NonNegative
    weight_decay: NonNegative
    head_std: NonNegative


class Execution(Strict):
    pass


def roles(settings: Settings) -> dict[str, str]:
    return {"train": settings.train_split, "test": settings.test_split}


def features(settings: Settings) -> dict[str, FeatureSpec]:
    spec = FeatureSpec(
        transform=settings.test_transform,
        layer=settings.layer,
        precision=settings.precision,
        batch_size=settings.forward_batch_size,
    )
    return {"test": spec}


def deterministic(settings: Settings) -> bool:
    return False


def run(job: Job) -> Measurement:
    """Top-1 and top-5 in percent after the last epoch. Raises NonFiniteError when training diverges."""
    import torch

    from evaluate.heads import Lars, cosine_lr, linear_head
    from zoo.backbone import fingerprint, load

    settings: Settings = job.settings
    train, test = job.manifests["train"], job.manifests["test"]
    backbone = load(job.card, job.weights, job.me.device)
    test_features = torch.from_numpy(np.array(job.features["test"]))
    head = linear_head(test_features.shape[1], _num_classes(train, test), std=settings.head_std, seed=job.seed)
    head = head.to(job.me.device)
    lr = settings.base_lr * settings.batch_size / 256
    optimiser = Lars(
        head.parameters(),
        variant=settings.optimiser,
        lr=lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        trust_coefficient=settings.trust_coefficient,
        eps=settings.eps,
    )
    history: list[dict[str, float]] = []
    ranked = np.empty((0, 0), np.int64)
    batches = _feature_batches(job, backbone)
    labels = torch.from_numpy(train.labels)
    for epoch in range(settings.epochs):
        for group in optimiser.param_groups:
            group["lr"] = cosine_lr(lr, epoch, settings.epochs)
        losses = []
        for _ in range(-(-len(train) // settings.batch_size)):
            indices, rows = next(batches)
            losses.append(_step(head, optimiser, rows, labels[indices].to(rows.device)))
        ranked = _rank(head, test_features)
        top1 = 100.0 * float((ranked[:, 0] == test.labels).mean())
        history.append(
            {"epoch": epoch, "lr": cosine_lr(lr, epoch, settings.epochs), "loss": float(np.mean(losses)), "top1": top1}
        )
        log.info("linear: epoch %d/%d, loss %.4f, top-1 %.2f", epoch + 1, settings.epochs, history[-1]["loss"], top1)
    if fingerprint(backbone.state_dict()) != job.card.tensors_sha256:
        raise CheckpointError("the backbone changed while the head was trained; this is a bug of the project.")
    hits = ranked == test.labels[:, None]
    right = {"top1": hits[:, 0], "top5": hits.any(1)}
    return Measurement(
        metrics={name: 100.0 * float(values.mean()) for name, values in right.items()},
        num_scored=len(test),
        selection="last epoch",
        per_sample={"predicted": ranked[:, 0].astype(np.int32)},
        replicates={
            name: 100.0 * replicate_means(values.astype(float), manifest_sha256=test.sha256)
            for name, values in right.items()
        },
        details={"history": history, "backbone_unchanged": True},
    )


def _num_classes(train: Manifest, test: Manifest) -> int:
    return int(max(train.labels.max(), test.labels.max())) + 1


def _step(head: "nn.Module", optimiser: "Optimizer", rows: "Tensor", labels: "Tensor") -> float:
    """One update on a whole global batch; its loss. Raises NonFiniteError."""
    from torch.nn.functional import cross_entropy

    loss = cross_entropy(head(rows), labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    value = loss.item()
    if not np.isfinite(value):
        raise NonFiniteError(
            "the linear head's loss is NaN or infinite; the features or the learning rate are too large."
        )
    return value


def _rank(head: "nn.Module", test_features: "Tensor") -> np.ndarray:
    """(N, min(5, classes)) most likely classes of each test sample, best first, on every process alike."""
    import torch

    with torch.inference_mode():
        device = next(head.parameters()).device
        parts = [head(rows.to(device)).cpu() for rows in test_features.split(4096)]
    return torch.cat(parts).topk(min(5, parts[0].shape[1]), dim=1).indices.numpy()


@dataclass(frozen=True)
class _TrainImages:
    """(epoch, index) → the augmented view of that sample in that epoch."""

    manifest: Manifest
    transform: TrainTransform
    seed: int

    def __call__(self, key: tuple[int, int]) -> tuple[np.ndarray]:
        epoch, index = key
        return (apply_train(decode(self.manifest.path(index)), self.transform, sample_rng(self.seed, epoch, index)),)


def _feature_batches(job: Job, backbone: "nn.Module") -> Iterator[tuple[np.ndarray, "Tensor"]]:
    """(indices, (B, D) features) of every global batch of every epoch, in order, the same on every process."""
    import torch

    from zoo.backbone import normalise
    from zoo.distributed import gather_rows
    from zoo.loading import load_batches

    settings: Settings = job.settings
    train = job.manifests["train"]
    plan: list[tuple[int, np.ndarray]] = []  # (epoch, the indices of one global batch)
    for epoch in range(settings.epochs):
        order = epoch_order(job.seed, epoch, len(train))
        plan += [(epoch, order[i : i + settings.batch_size]) for i in range(0, len(order), settings.batch_size)]
    micro = [_micro_batches(len(indices), settings.forward_batch_size) for _, indices in plan]
    mine = [
        [(epoch, int(index)) for index in indices[rows]]
        for (epoch, indices), parts in zip(plan, micro, strict=True)
        for rows in parts[job.me.rank :: job.me.size]
    ]
    read = _TrainImages(train, settings.train_transform, job.seed)
    loaded = load_batches(read, mine, num_workers=job.num_workers, pin=job.me.device.type != "cpu")
    for (_, indices), parts in zip(plan, micro, strict=True):
        local: list[Tensor] = []
        with torch.inference_mode():
            for _ in parts[job.me.rank :: job.me.size]:
                (images,) = next(loaded)
                local.append(backbone(normalise(images.to(job.me.device, non_blocking=True), job.card.pixels)).float())
        # a plain tensor again: inference tensors cannot enter autograd
        yield indices, gather_rows(local, parts, me=job.me).clone()


def _micro_batches(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]

"""What is a backbone worth before any training? Writes the rows every trained one must beat.

`python -m pretrain.untrained --arch resnet18 --seed 0 --out FOLDER`: torchvision's random initialisation. Its batch
norms stand at identity, which lets pixels through; `--batch-norm reestimated` gives them the statistics of training
images instead (a cumulative average over fixed batches in evaluation transform); no gradient is ever computed. `--arch
raw_pixels` is no network at all.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import numpy as np
import torch
import typer
from torch import nn

from pretrain.checkpoint import Origin, export_backbone
from zoo.backbone import Backbone, build, normalise
from zoo.checkpoint import CARD_NAME, Arch, read_card, verify_weights
from zoo.command import guarded
from zoo.datasets import Manifest, decode, manifest
from zoo.device import select
from zoo.errors import ConfigError, several
from zoo.files import ensure_writable
from zoo.loading import Sample, load_batches
from zoo.transforms import IMAGENET_PIXELS, TestTransform, apply_test

logger = logging.getLogger(__name__)

BATCH = 64  # of the re-estimation: part of what its result depends on


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Which images batch-norm statistics are taken from: the first of a fixed permutation."""

    images: Manifest
    num_images: int
    transform: TestTransform


def untrained(arch: Arch, *, seed: int, out: Path, statistics: Statistics | None, num_workers: int) -> Path:
    """Write the backbone and its card into `out`; the card's path. A complete, equal one is left as it is.

    Raises ConfigError when `out` holds something else.
    """
    origin = _origin(arch, seed, statistics)
    path = ensure_writable(out) / CARD_NAME
    if path.exists():
        card = read_card(path)
        if card.lineage != origin.lineage:
            raise ConfigError(
                f"{path}: holds '{card.lineage[0]}', expected '{origin.lineage[0]}'; choose another --out."
            )
        verify_weights(path, card)
        return path
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(arch)
    if statistics is not None and isinstance(model, Backbone):
        reestimate(model, statistics, num_workers=num_workers)
    return export_backbone(out, model.state_dict(), origin)


def _origin(arch: Arch, seed: int, statistics: Statistics | None) -> Origin:
    if arch == "raw_pixels":
        name, lineage = "raw pixels", ("no network: the pixels themselves",)
    else:
        name, lineage = f"{arch}, random weights", (f"{arch}, torchvision's random initialisation, seed {seed}",)
    if statistics is not None:
        images, how = statistics.images, statistics.transform
        name = f"{arch}, random weights, BN re-estimated"
        lineage = (
            *lineage,
            f"batch-norm statistics of {statistics.num_images} images of {images.dataset} {images.split} "
            f"(sha256 {images.sha256}) at {how.resize}/{how.crop} {how.interpolation}, batches of {BATCH}",
        )
    trained = None if arch == "raw_pixels" else seed
    return Origin(
        name=f"{name}, seed {seed}" if trained else name,
        family=name,
        arch=arch,
        pixels=IMAGENET_PIXELS,
        pretrain_seed=trained,
        epochs=None,
        lineage=lineage,
    )


@torch.no_grad()
def reestimate(model: Backbone, statistics: Statistics, *, num_workers: int) -> None:
    """Set every batch norm's statistics to the plain average over batches of training images, in place."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative
    order = np.random.default_rng(0).permutation(len(statistics.images))[: statistics.num_images]
    batches = [[int(i) for i in order[start : start + BATCH]] for start in range(0, len(order) - BATCH + 1, BATCH)]
    device = select()
    model.to(device).train()
    for (views,) in load_batches(partial(_read, statistics), batches, num_workers=num_workers):
        model(normalise(views.to(device), IMAGENET_PIXELS))
    model.to("cpu").eval()


def _read(statistics: Statistics, index: int) -> Sample:
    return (apply_test(decode(statistics.images.path(index)), statistics.transform),)


def main(
    arch: Annotated[str, typer.Option(help="resnet18, resnet34, resnet50, resnet101 or raw_pixels.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights and their card.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch_norm: Annotated[Literal["identity", "reestimated"], typer.Option(help="Batch-norm statistics.")] = "identity",
    dataset: Annotated[str | None, typer.Option(help="Where re-estimated statistics come from.")] = None,
    split: Annotated[str, typer.Option()] = "train",
    images: Annotated[int, typer.Option(help="How many of them; a multiple of the batch size.", min=BATCH)] = 2048,
    resize: Annotated[int, typer.Option(help="Shorter side of the images.", min=1)] = 256,
    crop: Annotated[int, typer.Option(help="Their centre crop.", min=1)] = 224,
    workers: Annotated[int, typer.Option(help="Loader processes.", min=0)] = 2,
) -> None:
    """Write an untrained backbone as a checkpoint."""
    problems = []
    if arch not in get_args(Arch):
        problems.append(f"--arch: expected one of {', '.join(get_args(Arch))}, found '{arch}'")
    if batch_norm == "reestimated" and arch == "raw_pixels":
        problems.append("--batch-norm reestimated: raw_pixels has no batch norm")
    if (batch_norm == "reestimated") != (dataset is not None):
        problems.append("--dataset goes with --batch-norm reestimated: expected both or neither")
    if images % BATCH:
        problems.append(f"--images: expected a multiple of {BATCH}, found {images}")
    found = manifest(dataset, split) if dataset is not None else None
    if found is not None and len(found) < images:
        problems.append(f"--images: expected at most the {len(found)} of {dataset} {split}, found {images}")
    if problems:
        raise ConfigError(several("python -m pretrain.untrained:", problems))
    transform = TestTransform(resize=resize, crop=crop, interpolation="bilinear", fit="centre_crop")
    statistics = None if found is None else Statistics(images=found, num_images=images, transform=transform)
    path = untrained(cast(Arch, arch), seed=seed, out=out, statistics=statistics, num_workers=workers)
    logger.info("untrained %s: %s", arch, path)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    guarded(app)

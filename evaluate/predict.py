"""What do trained heads say about a picture? The last step of a linear probe, for a person's own images.

A linear benchmark's record keeps its heads; they are put on the checkpoint they were trained on, and the picture goes
through the benchmark's own test transform.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from pydantic import ValidationError

from evaluate.job import LayerName
from zoo.checkpoint import CheckpointCard, read_card, verify_weights
from zoo.datasets import class_names, decode
from zoo.errors import CheckpointError, ConfigError, DataError, RecordError, several
from zoo.record import ResultRecord, read_file, read_record
from zoo.transforms import Pixels, apply_test

if TYPE_CHECKING:  # torch: seconds that a typing error need not wait
    from evaluate.heads import Head
    from evaluate.recipes import Settings
    from zoo.backbone import Backbone, RawPixels

HEADS = "heads.safetensors"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most likely classes of one picture, best first."""

    path: Path
    classes: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]


def newest_record(runs: Path) -> Path:
    """The record with heads that was begun last, of all suites in `runs`. Raises RecordError when there is none."""
    found = [path.with_name(path.name.removesuffix(HEADS) + "json") for path in runs.glob(f"*/records/*.{HEADS}")]
    records = [(read_record(path).started, path) for path in found if path.exists()]
    if not records:
        raise RecordError(
            f"{runs}: no trained heads in any suite's records; run a linear benchmark first, or name one with --record."
        )
    return max(records)[1]


def choose_head(record: ResultRecord, wanted: str | None) -> str:
    """`wanted`, or the head with the highest test top-1.

    Raises RecordError for a record without heads, ConfigError naming the heads there are.
    """
    if HEADS not in record.files_sha256:
        raise RecordError(
            f"record {record.cell_id[:12]}…: {record.benchmark_config} keeps no trained heads; expected a linear "
            "benchmark's record."
        )
    heads = {name.removeprefix("top1_"): value for name, value in record.metrics.items() if name.startswith("top1_")}
    if wanted is not None and wanted not in heads:
        raise ConfigError(f"--head: expected one of {', '.join(sorted(heads))}, found '{wanted}'.")
    return wanted or max(heads, key=lambda name: heads[name])


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """A linear benchmark's head, and what the picture goes through before it."""

    module: "Head"
    layer: LayerName
    settings: "Settings"
    names: tuple[str, ...]  # of the classes, by number


def load_head(record_path: Path, record: ResultRecord, head: str) -> TrainedHead:
    """The head kept beside a record, on the CPU. Raises RecordError for a missing, changed or outdated heads file."""
    import safetensors.torch

    from evaluate.heads import Head
    from evaluate.recipes import Settings
    from zoo.backbone import num_channels

    try:
        settings = Settings.model_validate_json(json.dumps(record.settings))
    except ValidationError as error:
        raise RecordError(
            f"{record_path}: its heads are those of another version of the linear benchmark; measure the cell again."
        ) from error
    (plan, *_) = [plan for plan in settings.heads() if plan.group == head]
    tensors = {
        name.removeprefix(f"{head}."): tensor
        for name, tensor in safetensors.torch.load(read_file(record_path.parent, record, HEADS)).items()
        if name.startswith(f"{head}.")
    }
    num_classes, width = tensors["linear.weight"].shape
    channels = num_channels(record.checkpoint.preprocessing["arch"], plan.layer) or width
    module = Head(width, channels, num_classes, batch_norm=plan.recipe.batch_norm, std=0.0, seed=0)
    module.load_state_dict(tensors)
    names = class_names(record.datasets["train"].dataset)
    if len(names) < num_classes:
        raise DataError(f"expected names of {num_classes} classes, found {len(names)} for the record's dataset.")
    return TrainedHead(module=module.eval(), layer=plan.layer, settings=settings, names=tuple(names))


def ask(
    head: TrainedHead, backbone: "Backbone | RawPixels", pixels: Pixels, pictures: Sequence[Image.Image]
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(classes, probabilities) of the five likeliest classes of each picture, best first. On the backbone's device."""
    import torch

    from evaluate.forward import Extractor

    settings = head.settings
    device = next(backbone.parameters(), torch.empty(0)).device
    crops = np.stack([apply_test(picture, settings.test_transform) for picture in pictures])  # (N, H, W, 3)
    extractor = Extractor(backbone, pixels, [(head.layer, settings.layers[head.layer])], settings.forward)
    with torch.inference_mode():
        (rows,) = extractor(torch.from_numpy(crops.transpose(0, 3, 1, 2).copy()).to(device))
        scores = head.module.to(device)(rows).softmax(1)
        best = scores.topk(min(5, scores.shape[1]), dim=1)
    return [(tuple(c), tuple(p)) for c, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def predict(
    images: Sequence[Path], record_path: Path, record: ResultRecord, head: str, checkpoint: Path | None = None
) -> list[Prediction]:
    """Top five of each image. checkpoint: a card, where the one that the record names has moved.

    Raises DataError for unreadable images, RecordError for a missing or changed heads file, CheckpointError when the
    checkpoint is not the record's.
    """
    from zoo import device as devices
    from zoo.backbone import load

    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise DataError(several("no such image:", missing))
    trained = load_head(record_path, record, head)
    card_path, card = _card(record, checkpoint)
    pictures = [decode(path) for path in images]
    backbone = load(card, verify_weights(card_path, card), devices.select())
    return [
        Prediction(path=path, classes=classes, names=tuple(trained.names[c] for c in classes), probabilities=values)
        for path, (classes, values) in zip(images, ask(trained, backbone, card.pixels, pictures), strict=True)
    ]


def _card(record: ResultRecord, checkpoint: Path | None) -> tuple[Path, CheckpointCard]:
    words = shlex.split(record.command)
    path = checkpoint or Path(words[words.index("--checkpoint") + 1])
    if not path.exists():
        raise CheckpointError(
            f"{path}: the checkpoint of record {record.cell_id[:12]}… is not there; name its card with --checkpoint."
        )
    card = read_card(path)
    if card.tensors_sha256 != record.checkpoint.tensors_sha256:
        raise CheckpointError(
            f"{path}: expected the checkpoint that the heads were trained on, tensors "
            f"{record.checkpoint.tensors_sha256[:12]}…, found {card.tensors_sha256[:12]}…."
        )
    return path, card

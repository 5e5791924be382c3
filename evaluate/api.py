"""Checkpoints from Python: get one by name, file or address; its features; its description; its answers.

    from evaluate.api import get_model, list_models

    model = get_model("epoch_100.pth")  # or a name of list_models(), a card's folder, an https:// or hf:// address
    print(model.describe())
    maps = model.extract(["a.jpg", "b.jpg"])  # {"feature1": (2, 64, 112, 112), ..., "avgpool": (2, 2048)}
    model.predict(["a.jpg"], record)  # by a linear benchmark's trained head

`model.backbone` is the network itself, an nn.Module under torchvision's names, for whatever else it is wanted.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from converters.cards import names
from converters.counts import num_parameters, operations
from converters.intake import Taken, take_in
from evaluate.predict import Prediction, ask, choose_head, load_head, newest_record
from zoo import device as devices
from zoo.backbone import Backbone, fingerprint, normalise
from zoo.datasets import decode
from zoo.errors import CheckpointError, DataError, several
from zoo.files import runs_dir
from zoo.record import read_record
from zoo.transforms import Pixels, TestTransform, apply_test

Picture = str | Path | Image.Image | np.ndarray
USUAL = TestTransform(resize=256, crop=224, interpolation="bilinear", fit="centre_crop")


class Model:
    """A whole, checked backbone in eval mode on one device, and what is known of it."""

    def __init__(self, taken: Taken, device: torch.device) -> None:
        self._taken = taken
        self.pixels = taken.pixels
        network = Backbone(taken.arch)
        own = network.state_dict()
        own.update(taken.state)  # batch counters may be absent; nothing else can be, the reader saw to it
        network.load_state_dict(own)
        self.backbone = network.to(device).eval().requires_grad_(False)
        self.device = device

    def describe(self) -> dict[str, Any]:
        """Name, layout, architecture, size, pixel statistics and provenance."""
        taken = self._taken
        return {
            "name": taken.name,
            "arch": taken.arch,
            "layout": taken.source_format,
            "method": taken.checkpoint.reading.method if taken.checkpoint else None,
            "parameters": num_parameters(taken.state),
            "operations": operations(taken.arch, pooled=False),
            "pixels": {**taken.pixels.model_dump(mode="json"), "from": taken.pixels_from},
            "epochs": taken.epochs,
            "licence": taken.licence,
            "url": taken.url,
            "lineage": list(taken.lineage),
            "tensors_sha256": fingerprint(taken.state),
        }

    @torch.inference_mode()
    def extract(
        self, images: Sequence[Picture] | Tensor, *, transform: TestTransform = USUAL, batch_size: int = 64
    ) -> dict[str, Tensor]:
        """The stages of each image, on the CPU in float32: feature1 … feature5 (N, C, h, w) and avgpool (N, D).

        images: paths, PIL images or (H, W, 3) uint8 RGB arrays, which go through `transform`; or a (N, 3, H, W) uint8
        RGB tensor, which is taken as it is. The checkpoint's mean and std are applied here. feature1 is the stem
        before its max-pool (protocols §2.2). For pixels normalised already: `model.backbone.stages(tensor)`.
        Raises DataError listing every input that is no image.
        """
        pixels = images if isinstance(images, Tensor) else _crops(images, transform)
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != 3 or len(pixels) == 0:
            raise DataError(
                f"images: expected a tensor (N, 3, H, W) of uint8 RGB, found {tuple(pixels.shape)} of {pixels.dtype}; "
                "for pixels normalised already use model.backbone.stages(tensor)."
            )
        parts: list[Mapping[str, Tensor]] = []
        for part in pixels.split(batch_size):
            stages = self.backbone.stages(normalise(part.to(self.device), self.pixels))
            parts.append({name: value.float().cpu() for name, value in stages.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def predict(
        self, images: Sequence[str | Path], record: str | Path | None = None, *, head: str | None = None
    ) -> list[Prediction]:
        """The five likeliest classes of each picture, by a linear benchmark's head that was trained on this backbone.

        record: the benchmark's record, by default the newest with heads. head: by default its best on the test images.
        Raises RecordError, CheckpointError when the record is another checkpoint's, DataError for missing pictures.
        """
        path = Path(record) if record is not None else newest_record(runs_dir())
        read = read_record(path)
        found = fingerprint(self._taken.state)
        if read.checkpoint.tensors_sha256 != found:
            raise CheckpointError(
                f"{path}: its heads were trained on {read.checkpoint.name}, tensors "
                f"{read.checkpoint.tensors_sha256[:12]}…; this model's are {found[:12]}…."
            )
        trained = load_head(path, read, choose_head(read, head))
        paths = [Path(image) for image in images]
        pixels = Pixels.model_validate(read.checkpoint.preprocessing["pixels"], strict=False)
        answers = ask(trained, self.backbone, pixels, _pictures(paths))
        return [
            Prediction(path=path, classes=classes, names=tuple(trained.names[c] for c in classes), probabilities=values)
            for path, (classes, values) in zip(paths, answers, strict=True)
        ]


def get_model(
    reference: str | Path,
    *,
    take: str | None = None,
    pixels: Pixels | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """The model of a checkpoint: a file of any known layout, a card's folder, an address, or a name of `list_models`.

    take, pixels: as in converters.intake.take_in. device: by default the first GPU, else the CPU. Raises ConfigError
    for a reference that is none, CheckpointError when the file is not a whole ResNet.
    """
    taken = take_in(str(reference), take=take, pixels=pixels)
    return Model(taken, torch.device(device) if device is not None else devices.select())


def list_models(pattern: str = "*") -> list[str]:
    """The names of the published checkpoints (configs/checkpoints/) that match a shell pattern."""
    return [name for name in names() if fnmatchcase(name, pattern)]


def _crops(images: Sequence[Picture], transform: TestTransform) -> Tensor:
    """(N, 3, crop, crop) uint8."""
    if not images:
        raise DataError("images: expected at least one.")
    crops = np.stack([apply_test(picture, transform) for picture in _pictures(images)])
    return torch.from_numpy(crops.transpose(0, 3, 1, 2).copy())


def _pictures(images: Sequence[Picture]) -> list[Image.Image]:
    problems: list[str] = []
    for number, image in enumerate(images):
        if isinstance(image, str | Path):
            if not Path(image).is_file():
                problems.append(f"{image}: no such file")
        elif isinstance(image, np.ndarray) and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
            problems.append(f"image {number}: expected (H, W, 3) uint8 RGB, found {image.shape} of {image.dtype}")
    if problems:
        raise DataError(several("not readable as images:", problems))
    return [_picture(image) for image in images]


def _picture(image: Picture) -> Image.Image:
    if isinstance(image, str | Path):
        return decode(Path(image))
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB")

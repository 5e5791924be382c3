"""python -m perf.extraction: images a second through a frozen ResNet-50, against the plain loop of the reference code.

The rival reads with PIL, transforms with torchvision (256/224), and runs the torchvision model in fp32 and NCHW under
inference_mode. Both sides have the same loader processes and batch, the same threads, JPEGs of ImageNet's usual size
(500 x 375) and random weights; ours includes writing the feature files. Every variant's features are compared with the
rival's.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from evaluate.features import obtain
from evaluate.job import FeatureSpec
from perf.checkpoint import random_checkpoint
from perf.measure import medians, print_table, write_json
from zoo.backbone import load
from zoo.checkpoint import read_card
from zoo.datasets import Manifest
from zoo.distributed import World
from zoo.transforms import IMAGENET_PIXELS

PLAIN: dict[str, object] = {"precision": "fp32", "memory_format": "contiguous"}
PLAIN |= {"fuse_batch_norm": False, "compile": False}
FAST = PLAIN | {"memory_format": "channels_last", "fuse_batch_norm": True}  # what the configs say
VARIANTS = {
    "ours, plain": PLAIN,
    "ours, channels_last": PLAIN | {"memory_format": "channels_last"},
    "ours, channels_last + fused (the configs)": FAST,
    "ours, the configs' in bf16": FAST | {"precision": "bf16"},
}
COMPILED = {"ours, the configs' compiled": FAST | {"compile": True}}
TRANSFORM = {"resize": 256, "crop": 224, "interpolation": "bilinear", "fit": "centre_crop"}


class _Rival(Dataset[Tensor]):
    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_PIXELS.mean, IMAGENET_PIXELS.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))  # type: ignore[return-value]  # torchvision types the image


def main(
    images: Annotated[int, typer.Option(help="JPEGs to read")] = 160,
    repeats: Annotated[int, typer.Option(help="rounds; each way once a round")] = 3,
    workers: Annotated[int, typer.Option(help="loader processes, on both sides")] = 1,
    compiled: Annotated[bool, typer.Option(help="torch.compile too; its first batch takes minutes")] = False,
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print images a second, the ratio to the plain loop, and the largest difference of the features."""
    me = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = _draw(folder / "images", images)
        card = read_card(random_checkpoint(folder / "checkpoint", "resnet50"))
        weights = folder / "checkpoint" / card.weights
        loader = DataLoader(_Rival([manifest.path(i) for i in range(images)]), batch_size=32, num_workers=workers)
        network = load(card, weights, me.device)
        found: dict[str, np.ndarray] = {}

        def rival() -> None:
            with torch.inference_mode():
                found["plain loop"] = torch.cat([network(batch) for batch in loader]).numpy()

        def ours(name: str, forward: dict[str, object]) -> None:
            with tempfile.TemporaryDirectory() as cache:
                os.environ["ZOO_CACHE"] = cache
                spec = FeatureSpec.model_validate(
                    {"transform": TRANSFORM, "layers": {"avgpool": None}, "storage": "fp32"}
                    | {"forward": forward | {"batch_size": 32}}
                )
                rows = obtain(card, weights, manifest, spec, num_workers=workers, me=me)
                found[name] = np.array(rows["avgpool"])

        variants = VARIANTS | (COMPILED if compiled else {})
        ways = {"plain loop": rival} | {n: (lambda n=n, f=f: ours(n, f)) for n, f in variants.items()}
        seconds = medians(ways, repeats=repeats)
    scale = float(np.abs(found["plain loop"]).max())
    rows = [
        {
            "way": name,
            "images_per_second": images / taken,
            "ratio": seconds["plain loop"] / taken,
            "largest_difference": float(np.abs(found[name] - found["plain loop"]).max()) / scale,
        }
        for name, taken in seconds.items()
    ]
    title = f"ResNet-50, {images} JPEGs, {torch.get_num_threads()} threads, medians of {repeats}"
    print_table(
        title, ["way", "images/s", "ratio", "largest difference / largest feature"], [list(r.values()) for r in rows]
    )
    if out is not None:
        write_json(out, {"title": title, "rows": rows})


def _draw(folder: Path, count: int) -> Manifest:
    """Photograph-like JPEGs: smooth noise at several scales."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        image = np.zeros((375, 500, 3))
        for size in (4, 16, 64, 250):
            noise = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
            image += np.asarray(noise.resize((500, 375), Image.Resampling.BICUBIC), dtype=float) / 4
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)
    paths = tuple(f"{number:05d}.jpg" for number in range(count))
    return Manifest(
        dataset="drawn",
        split="all",
        root=folder,
        paths=paths,
        labels=np.zeros(count, np.int64),
        annotations=(),
        sha256="0" * 64,
        folders=(".",),
    )


if __name__ == "__main__":
    typer.run(main)

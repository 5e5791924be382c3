"""How long would pre-training take on hardware that was not at hand? `python -m perf.estimate`

A roofline, calibrated on one known run. Every operation of one step (both views, backward, optimizer) is run on tensors
without content, and its FLOPs and the bytes of its operands counted; on a device it takes at least the larger of
FLOPs / peak rate and bytes / memory bandwidth. The sum over a step is the shortest time that eager execution could
take. MoCo v2's published 53 hours (200 epochs, 8 V100, fp32) are so many times its own shortest time, counted alike,
and that factor is taken over to other devices and to SimSiam.

Rates and bandwidths are the makers' (data sheets: V100 SXM2, A100 80 GB SXM, H100 SXM; dense).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from perf.measure import print_table
from pretrain.session import build_model
from zoo.backbone import Backbone
from zoo.config import load
from zoo.files import CONFIGS
from zoo.recipe import PretrainConfig

IMAGES = 1_281_167  # ImageNet's training set
ARCHIVE_BYTES = 147_897_477_120  # ILSVRC2012_img_train.tar
GPUS = 8
KNOWN_HOURS, KNOWN_EPOCHS, KNOWN_BATCH = 53.0, 200, 256  # MoCo v2 on 8 V100, as its authors say
QUEUE, EMBEDDING = 65_536, 128  # MoCo v2's


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a data sheet says. width: bytes of a number in this arithmetic."""

    name: str
    flops: float  # a second
    bytes: float  # of memory, a second
    width: int


V100 = Device(name="V100, fp32", flops=15.7e12, bytes=0.9e12, width=4)
DEVICES = (
    V100,
    Device(name="A100, fp32", flops=19.5e12, bytes=2.039e12, width=4),
    Device(name="A100, TF32", flops=156e12, bytes=2.039e12, width=4),
    Device(name="A100, bf16", flops=312e12, bytes=2.039e12, width=2),
    Device(name="H100, bf16", flops=989e12, bytes=3.35e12, width=2),
)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a step."""

    flops: int
    numbers: int  # read and written


class Counter(TorchDispatchMode):
    """Collects the operations that run within it; views, which move nothing, are not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.operations.append(Operation(flops=flops, numbers=sum(tensor.numel() for tensor in tensors)))
        return result


@contextmanager
def counted(parameters: Callable[[], Iterator[nn.Parameter]]) -> Iterator[Counter]:
    """Counts the block and, after it, one SGD step."""
    optimizer = torch.optim.SGD(parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    with Counter() as counter:
        yield counter
        optimizer.step()


def simsiam_step(config: PretrainConfig) -> list[Operation]:
    """One GPU's share of a step of `config`."""
    share = config.batch_size // GPUS
    model = build_model(config, num_classes=1000, seed=0).to("meta")
    views = tuple(torch.empty(share, 3, config.views.crop, config.views.crop, device="meta") for _ in range(2))
    with counted(model.parameters) as counter:
        loss, _ = model(views, torch.empty(share, dtype=torch.int64, device="meta"))  # type: ignore[arg-type]
        loss.backward()
    return counter.operations


def moco_step() -> list[Operation]:
    """One GPU's share of a step of MoCo v2: the query's forward and backward, the key's forward, the queue's logits."""
    share = KNOWN_BATCH // GPUS
    encoder = nn.Sequential(Backbone("resnet50"), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, EMBEDDING)).to(
        "meta"
    )
    view, queue = torch.empty(share, 3, 224, 224, device="meta"), torch.empty(EMBEDDING, QUEUE, device="meta")
    with counted(encoder.parameters) as counter:
        with torch.no_grad():
            encoder(view)
        (encoder(view) @ queue).logsumexp(1).mean().backward()
    return counter.operations


def shortest_seconds(operations: list[Operation], device: Device) -> float:
    """What `device` needs at least, at its peaks, one operation after the other."""
    return sum(max(each.flops / device.flops, each.numbers * device.width / device.bytes) for each in operations)


def hours(seconds_a_step: float, *, batch_size: int, epochs: int) -> float:
    return seconds_a_step * (IMAGES // batch_size) * epochs / 3600


def main(
    images_per_cpu_second: Annotated[
        float | None, typer.Option(help="What one core makes of two views, from python -m perf.views.")
    ] = None,
) -> None:
    """Hours of SimSiam, ResNet-50, on 8 GPUs, and what they ask of the loader."""
    config = load(CONFIGS / "pretrain" / "simsiam_r50_100e.yaml", PretrainConfig)
    moco, simsiam = moco_step(), simsiam_step(config)
    least = hours(shortest_seconds(moco, V100), batch_size=KNOWN_BATCH, epochs=KNOWN_EPOCHS)
    factor = KNOWN_HOURS / least
    print_table(
        "One step on one of 8 GPUs, 32 images",
        ["what", "TFLOP", "GB in fp32", "operations"],
        [
            (name, sum(o.flops for o in step) / 1e12, sum(o.numbers for o in step) * 4 / 1e9, len(step))
            for name, step in (("MoCo v2", moco), ("SimSiam", simsiam))
        ],
    )
    share = sum(each.flops for each in moco) / V100.flops / shortest_seconds(moco, V100) / factor
    typer.echo(f"MoCo v2 on 8 V100: shortest {least:.1f} h, known {KNOWN_HOURS:.0f} h: factor {factor:.2f}")
    typer.echo(f"  (that is {share:.0%} of the V100's peak rate)")
    rows: list[tuple[object, ...]] = []
    for device in DEVICES:
        seconds = factor * shortest_seconds(simsiam, device)
        rate = config.batch_size / seconds
        cores = f"{rate / images_per_cpu_second:.0f}" if images_per_cpu_second else "–"
        per_epochs = (hours(seconds, batch_size=config.batch_size, epochs=epochs) for epochs in (100, 200))
        a_launch = seconds / len(simsiam) * 1e6
        rows.append((device.name, *per_epochs, rate, rate * ARCHIVE_BYTES / IMAGES / 1e6, cores, a_launch))
    columns = [
        "8 x",
        "h, 100 epochs",
        "h, 200 epochs",
        "images/s",
        "MB/s read",
        "cores for the views",
        "us an operation",
    ]
    print_table("SimSiam, ResNet-50, batch size 256", columns, rows)


if __name__ == "__main__":
    typer.run(main)

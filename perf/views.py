"""python -m perf.views FOLDER: a loader worker's time for a training image, against the two-crop loop on PIL images.

FOLDER holds JPEGs, in class folders or not; ImageNet's are what the recipes see. The rival is `photometric: pil`: the
reference's operations, both views, as `pretrain.views` does them. Ours is `photometric: device`. Both are timed in
loader workers' processor seconds (one worker, batches of 16, the transfer to the training process included), so other
programs on the machine hardly matter. The device's part is timed apart, on the device of this machine, and the sum of
both. Pixels of both ways are compared.
"""

import resource
import statistics
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from perf.measure import print_table, write_json
from pretrain.photometric import apply_rows, read_crops
from pretrain.views import read_views
from zoo import device as devices
from zoo.config import load
from zoo.files import CONFIGS
from zoo.loading import Sample, load_batches
from zoo.recipe import PretrainConfig

BATCH = 16
PASSES = 3  # over the images, in one worker: starting it does not count for much
Read = Callable[[tuple[int, int]], Sample]


def main(
    folder: Annotated[Path, typer.Argument(help="JPEGs, searched for in its folders too")],
    recipe: Annotated[Path, typer.Option(help="whose views are made")] = CONFIGS / "pretrain" / "simsiam_r50_100e.yaml",
    repeats: Annotated[int, typer.Option(help="rounds; each way once a round")] = 5,
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print processor milliseconds an image, the ratio, and how far the pixels are apart."""
    torch.set_num_threads(1)  # a second thread waits by spinning, which would count
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise typer.BadParameter(f"{folder}: no JPEGs in it")
    views = load(recipe, PretrainConfig, overrides=()).views
    images: Any = SimpleNamespace(path=lambda index: paths[index])
    device = devices.select()
    found: list[list[Tensor]] = []
    expected: list[tuple[Tensor, ...]] = []
    spent: dict[str, list[float]] = {"PIL": [], "ours, worker": [], "ours, device": []}
    for number in range(repeats):
        seconds, expected = _in_worker(partial(read_views, images, views, 0, 2), len(paths), number)
        spent["PIL"].append(seconds)
        seconds, loaded = _in_worker(partial(read_crops, images, views, 0, 2), len(paths), number)
        spent["ours, worker"].append(seconds)
        start = time.process_time() if device.type == "cpu" else time.perf_counter()
        found = [[apply_rows(batch[view].to(device), batch[2 + view]).cpu() for view in range(2)] for batch in loaded]
        end = time.process_time() if device.type == "cpu" else time.perf_counter()
        spent["ours, device"].append(end - start)
    difference = torch.cat([_apart(*pair) for pair in zip(found, expected, strict=True)])
    ratios = [rival / ours for rival, ours in zip(spent["PIL"], spent["ours, worker"], strict=True)]
    totals = [
        rival / (worker + rest)
        for rival, worker, rest in zip(spent["PIL"], spent["ours, worker"], spent["ours, device"], strict=True)
    ]
    title = f"two views of {len(paths)} JPEGs at {views.crop} px, medians of {repeats}; device: {device.type}"
    rows = [[name, 1000 * statistics.median(seconds) / len(paths)] for name, seconds in spent.items()]
    print_table(title, ["way", "processor ms an image"], rows)
    print(f"images a processor second of a loader worker, ours / PIL: {statistics.median(ratios):.2f}")
    print(f"worker and device together, ours / PIL: {statistics.median(totals):.2f}")
    quantiles = torch.quantile(difference.abs(), torch.tensor([0.5, 0.99, 0.999])).tolist()
    print(
        f"levels of 255 apart: mean {float(difference.abs().mean()):.3f}, signed mean {float(difference.mean()):.4f}, "
        f"median, 99 % and 99.9 % {quantiles}, largest {float(difference.abs().max()):.0f}"
    )
    if out is not None:
        write_json(out, {"title": title, "seconds": spent, "ratios": ratios, "totals": totals})


def _in_worker(read: Read, count: int, repeat: int) -> tuple[float, list[tuple[Tensor, ...]]]:
    """Processor seconds of a loader worker for one pass over all images, and the last pass's batches."""
    keys = [(repeat * PASSES + number, index) for number in range(PASSES) for index in range(count)]
    batches = [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = deque(load_batches(read, batches, num_workers=1), maxlen=-(-count // BATCH))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # the worker has ended
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds / PASSES, list(loaded)


def _apart(found: list[Tensor], expected: tuple[Tensor, ...]) -> Tensor:
    """Differences of one batch's views, thinned out, (n,)."""
    pairs = zip(found, expected, strict=True)
    return torch.cat([(ours - theirs.float()).flatten()[::97] for ours, theirs in pairs])


if __name__ == "__main__":
    typer.run(main)

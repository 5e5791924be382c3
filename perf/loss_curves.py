"""python -m perf.loss_curves FOLDER: does the fast arithmetic learn as the reference does? The same steps, both ways.

The reference: fp32, NCHW, views by PIL. Fast: bf16, channels_last, fused SGD, views finished on the device; not
compiled, which takes longer than the steps. Both start from the same weights and see the same draws of the images in
FOLDER. FIGURE gets both curves.
"""

import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure

from perf.train_step import one_step, session_of
from pretrain.photometric import apply_rows, read_crops
from pretrain.schedule import global_batches
from pretrain.views import read_views
from zoo.backbone import normalise
from zoo.config import load
from zoo.files import CONFIGS
from zoo.loading import load_batches
from zoo.recipe import PretrainConfig

FAST = {"precision": "bf16", "channels_last": True, "fused_sgd": True}
WINDOW = 20


def main(
    folder: Annotated[Path, typer.Argument(help="images, searched for in its folders too")],
    figure: Annotated[Path, typer.Argument(help="the SVG to write")],
    steps: Annotated[int, typer.Option()] = 200,
    batch: Annotated[int, typer.Option(help="images a step")] = 16,
    pixels: Annotated[int, typer.Option(help="side of a view")] = 32,
    arch: Annotated[str, typer.Option()] = "resnet18",
    base_lr: Annotated[float, typer.Option(help="per 256 images")] = 0.5,
    threads: Annotated[int, typer.Option(help="on the CPU")] = 2,
) -> None:
    """Print the means of both losses over every WINDOW steps, and draw them."""
    torch.set_num_threads(threads)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    changes = (f"batch_size={batch}", f"views.crop={pixels}", f"arch={arch}", f"base_lr={base_lr}")
    config = load(CONFIGS / "pretrain" / "simsiam_r50_100e.yaml", PretrainConfig, overrides=changes)
    images: Any = SimpleNamespace(path=lambda index: paths[index])
    ways = {"reference": session_of(config, {}), "fast": session_of(config, FAST)}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    keys = global_batches(0, len(paths), batch_size=batch, epochs=steps * batch // len(paths) + 1, start_step=0)
    for step, wanted in zip(range(steps), keys, strict=False):
        (reference,) = load_batches(lambda key: read_views(images, config.views, 0, 2, key), [wanted], num_workers=0)
        (fast,) = load_batches(lambda key: read_crops(images, config.views, 0, 2, key), [wanted], num_workers=0)
        finished = [apply_rows(fast[view], fast[2 + view]) for view in range(2)]
        for name, views in (("reference", reference), ("fast", finished)):
            ready = tuple(normalise(view, config.pixels) for view in views)
            losses[name].append(one_step(ways[name], ready))
        if (step + 1) % WINDOW == 0:
            means = {name: statistics.mean(values[-WINDOW:]) for name, values in losses.items()}
            print(
                f"steps to {step + 1}: " + ", ".join(f"{name} {mean:.4f}" for name, mean in means.items()), flush=True
            )
    drawing = Figure(figsize=(6, 3.5), layout="constrained")
    axes = drawing.add_subplot(xlabel="step", ylabel="loss", title=f"SimSiam, {arch}, {pixels} px, batch {batch}")
    for name, values in losses.items():
        axes.plot(range(1, steps + 1), values, label=name, linewidth=1)
    axes.legend()
    drawing.savefig(figure)


if __name__ == "__main__":
    typer.run(main)

"""python -m perf.loss_curves FOLDER: does the fast arithmetic learn as the reference does? The same steps, both ways.

The reference: fp32, NCHW, views by PIL. Fast: bf16, channels_last, fused SGD, views finished on the device; not
compiled, which takes longer than the steps. Between them: each change alone, and `channels_last`, which only rounds in
another order, so that it shows what chance does. All start from the same weights and see the same draws of the images
in FOLDER; other seeds have other weights and other draws. FIGURE gets the curves.
"""

import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from perf.measure import print_table, write_json
from perf.train_step import one_step, session_of
from pretrain.photometric import apply_rows, read_crops
from pretrain.schedule import global_batches
from pretrain.views import read_views
from zoo.backbone import normalise
from zoo.config import load
from zoo.files import CONFIGS
from zoo.loading import load_batches
from zoo.recipe import PretrainConfig

BF16 = {"precision": "bf16"}
LAID_OUT = {"channels_last": True, "fused_sgd": True}
# the arithmetic, and whether views are finished on the device
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "reference": ({}, False),
    "channels_last": (LAID_OUT, False),
    "bf16": (BF16, False),
    "device views": ({}, True),
    "fast": (LAID_OUT | BF16, True),
}
WINDOW = 20


def main(
    folder: Annotated[Path, typer.Argument(help="images, searched for in its folders too")],
    figure: Annotated[Path, typer.Argument(help="the SVG to write")],
    steps: Annotated[int, typer.Option()] = 200,
    seeds: Annotated[int, typer.Option(min=2, help="of weights and draws")] = 4,
    batch: Annotated[int, typer.Option(help="images a step")] = 16,
    pixels: Annotated[int, typer.Option(help="side of a view")] = 32,
    arch: Annotated[str, typer.Option()] = "resnet18",
    base_lr: Annotated[float, typer.Option(help="per 256 images")] = 0.5,
    threads: Annotated[int, typer.Option(help="on the CPU")] = 2,
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print the reference's loss and how far the others are above it, means of WINDOW steps, and draw the curves."""
    torch.set_num_threads(threads)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(paths) < batch:
        raise typer.BadParameter(f"{folder}: expected at least {batch} images, a batch, found {len(paths)}")
    changes = (f"batch_size={batch}", f"views.crop={pixels}", f"arch={arch}", f"base_lr={base_lr}")
    config = load(CONFIGS / "pretrain" / "simsiam_r50_100e.yaml", PretrainConfig, overrides=changes)
    losses: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for seed in range(seeds):
        for name, values in one_seed(config, paths, steps, seed).items():
            losses[name].append(values)
        print(f"seed {seed}: " + ", ".join(f"{name} {losses[name][-1][-1]:.3f}" for name in WAYS), flush=True)
    means = {name: windows(values) for name, values in losses.items()}  # (seeds, windows)
    rows = []
    for at in range(means["reference"].shape[1]):
        row: list[Any] = [(at + 1) * WINDOW, f"{means['reference'][:, at].mean():.3f}"]
        rows.append(
            row + [difference(means[name][:, at] - means["reference"][:, at]) for name in WAYS if name != "reference"]
        )
    whole = [difference((means[name] - means["reference"]).mean(1)) for name in WAYS if name != "reference"]
    title = (
        f"SimSiam, {arch}, {pixels} px, batch {batch}, {seeds} seeds: loss above the reference's, mean ± standard error"
    )
    print_table(title, ["steps to", *WAYS], [*rows, ["all", f"{means['reference'].mean():.3f}", *whole]])
    draw(figure, losses, f"SimSiam, {arch}, {pixels} px, batch {batch}, {seeds} seeds")
    if out is not None:
        write_json(out, {"title": title, "losses": losses})


def one_seed(config: PretrainConfig, paths: list[Path], steps: int, seed: int) -> dict[str, list[float]]:
    """Way → the loss of every step."""
    images: Any = SimpleNamespace(path=lambda index: paths[index])
    size = config.batch_size
    sessions = {name: session_of(config, arithmetic, seed) for name, (arithmetic, _) in WAYS.items()}
    losses: dict[str, list[float]] = {name: [] for name in WAYS}
    epochs = math.ceil(steps / (len(paths) // size))  # whole batches only
    for wanted in islice(global_batches(seed, len(paths), batch_size=size, epochs=epochs, start_step=0), steps):
        (by_pil,) = load_batches(lambda key: read_views(images, config.views, seed, 2, key), [wanted], num_workers=0)
        (crops,) = load_batches(lambda key: read_crops(images, config.views, seed, 2, key), [wanted], num_workers=0)
        finished = [apply_rows(crops[view], crops[2 + view]) for view in range(2)]
        # once each: `normalise` changes views that are no bytes in place
        ready = {
            at: tuple(normalise(view, config.pixels) for view in views) for at, views in enumerate((by_pil, finished))
        }
        for name, (_, on_device) in WAYS.items():
            losses[name].append(one_step(sessions[name], ready[on_device]))
    return losses


def windows(losses: list[list[float]]) -> np.ndarray:
    """(seeds, steps) → (seeds, steps / WINDOW) means."""
    values = np.array(losses)
    return values[:, : values.shape[1] // WINDOW * WINDOW].reshape(len(values), -1, WINDOW).mean(2)


def difference(values: np.ndarray) -> str:
    """Of seeds: their mean and its standard error."""
    return f"{values.mean():+.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def draw(figure: Path, losses: dict[str, list[list[float]]], title: str) -> None:
    drawing = Figure(figsize=(6, 3.5), layout="constrained")
    axes = drawing.add_subplot(xlabel="step", ylabel=f"loss, mean of {WINDOW} steps", title=title)
    for name, values in losses.items():
        means = windows(values)
        middle, error = means.mean(0), means.std(0, ddof=1) / math.sqrt(len(means))
        steps = WINDOW * np.arange(1, len(middle) + 1)
        (line,) = axes.plot(steps, middle, label=name, linewidth=1)
        if name in ("reference", "fast"):
            axes.fill_between(steps, middle - error, middle + error, color=line.get_color(), alpha=0.15)
    axes.legend()
    drawing.savefig(figure)


if __name__ == "__main__":
    typer.run(main)

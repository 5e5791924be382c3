"""python -m perf.probes: four linear heads in one pass over the images, against four runs of one head each.

The data is the embedded world's ImageNet (python -m mini makes it), the backbone an untrained ResNet-18, the heads
those of imagenet_linear: both LARS variants and two rates of SGD. Those of the one pass are compared, bit for bit, with
those trained alone.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import typer

from evaluate.cells import resolve
from evaluate.run import extract_features, run_cell
from perf.checkpoint import random_checkpoint
from perf.measure import medians, print_table, write_json
from zoo.distributed import World

AVGPOOL_ONLY = (
    "settings.layers={avgpool: null}",
    "settings.train_transform.jitter=[0, 0, 0]",
    "settings.train_transform.lighting=0.0",
)
LARS = {"momentum": 0.9, "trust_coefficient": 0.001, "eps": 1e-8}
COMMON = {"layers": ["avgpool"], "batch_norm": "none", "head_std": 0.01, "weight_decay": [0.0], "epochs": 1}
COMMON |= {"batch_size": 64, "schedule": {"name": "cosine"}, "held_out_per_class": 0}
SGD = COMMON | {"optimiser": {"name": "sgd", "momentum": 0.9, "nesterov": False}}
RECIPES: dict[str, dict[str, Any]] = {
    "lars_mmselfsup": COMMON | {"optimiser": LARS | {"name": "lars_mmselfsup"}, "base_lr": [64.0]},
    "lars_apex": COMMON | {"optimiser": LARS | {"name": "lars_apex"}, "base_lr": [64.0]},
    "sgd_lr30": SGD | {"base_lr": [30.0]},
    "sgd_lr100": SGD | {"base_lr": [100.0]},
}


def main(
    repeats: Annotated[int, typer.Option(help="rounds; each way once a round")] = 3,
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print the seconds of both ways, their ratio, and whether the heads are equal."""
    me = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        card = random_checkpoint(Path(scratch) / "checkpoint", "resnet18")

        def run(names: list[str]) -> dict[str, torch.Tensor]:
            """Train these heads in one pass; their tensors."""
            recipes = {name: RECIPES[name] for name in names}
            cell = resolve("mini_linear", card, 0, (f"settings.recipes={json.dumps(recipes)}", *AVGPOOL_ONLY))
            extract_features([cell], num_workers=1, me=me)  # the test features: cached after the first time
            with tempfile.TemporaryDirectory() as records:
                run_cell(cell, Path(records) / "records", num_workers=1, me=me)
                return safetensors.torch.load_file(Path(records) / "records" / f"{cell.id}.heads.safetensors")

        found: dict[str, dict[str, torch.Tensor]] = {}
        run(list(RECIPES)[:1])  # extracts the test features
        seconds = medians(
            {
                "one pass": lambda: found.update({"one pass": run(list(RECIPES))}),
                "four runs": lambda: found.update(
                    {"four runs": {k: v for name in RECIPES for k, v in run([name]).items()}}
                ),
            },
            repeats=repeats,
        )
    equal = all(torch.equal(tensor, found["four runs"][name]) for name, tensor in found["one pass"].items())
    ratio = seconds["one pass"] / seconds["four runs"]
    title = (
        f"four heads, 12,000 images of 32 pixels, ResNet-18, {torch.get_num_threads()} threads, medians of {repeats}"
    )
    rows = [("one pass", seconds["one pass"], ratio, str(equal)), ("four runs", seconds["four runs"], 1.0, "")]
    print_table(title, ["way", "seconds", "ratio", "same heads, bit for bit"], rows)
    if out is not None:
        write_json(out, {"title": title, "seconds": seconds, "ratio": ratio, "equal": equal})


if __name__ == "__main__":
    typer.run(main)

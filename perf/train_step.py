"""python -m perf.train_step: a training step of SimSiam, ResNet-50, against plain fp32, NCHW, eager; and do they agree?

The rival is the reference recipe's arithmetic. Each way is one step of what the loop does: forward and backward through
both views, then SGD. They take turns in one process, from the same weights and on the same random images; how far their
losses are apart is printed too.
"""

import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer

from perf.measure import print_table, write_json
from pretrain.schedule import make_optimizer, set_rates
from pretrain.session import Session, as_called, build_model
from pretrain.train import accumulate_gradients
from zoo.config import load
from zoo.distributed import World
from zoo.files import CONFIGS
from zoo.recipe import PretrainConfig

RIVAL = "plain"  # fp32, NCHW, eager
_CL = {"channels_last": True}
_FUSED = _CL | {"fused_sgd": True}
WAYS: dict[str, dict[str, Any]] = {
    RIVAL: {},
    "channels_last": _CL,
    "channels_last+fused": _FUSED,
    "channels_last+fused+bf16": _FUSED | {"precision": "bf16"},
    "channels_last+fused+compile": _FUSED | {"compile": True},
    "all": _FUSED | {"precision": "bf16", "compile": True},
}


def main(
    batch: Annotated[int, typer.Option(help="images a step")] = 16,
    pixels: Annotated[int, typer.Option(help="side of a view")] = 224,
    recipe: Annotated[str, typer.Option(help="of configs/pretrain")] = "simsiam_r50_100e",
    repeats: Annotated[int, typer.Option(help="rounds; each way once a round")] = 3,
    threads: Annotated[int, typer.Option(help="on the CPU")] = 2,
    way: Annotated[list[str] | None, typer.Option(help="only these beside plain; compiling takes minutes")] = None,
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print seconds a step, wall clock and processor, and the ratio to the plain way (medians of ratios by round)."""
    torch.set_num_threads(threads)
    config = load(CONFIGS / "pretrain" / f"{recipe}.yaml", PretrainConfig, overrides=(f"batch_size={batch}",))
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(batch, 3, pixels, pixels, generator=generator) for _ in range(2))
    unknown = set(way or ()) - set(WAYS)
    if unknown:
        raise typer.BadParameter(f"--way: expected {', '.join(WAYS)}, found {', '.join(sorted(unknown))}")
    ways = {name: value for name, value in WAYS.items() if not way or name in (RIVAL, *way)}
    sessions = {name: session_of(config, arithmetic) for name, arithmetic in ways.items()}
    losses = {name: [one_step(session, views)] for name, session in sessions.items()}  # the first is the slow one
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, session in sessions.items():
            start, spent = time.perf_counter(), time.process_time()
            losses[name].append(one_step(session, views))
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - spent)
            print(f"{name}: {wall[name][-1]:.2f} s, {processor[name][-1]:.2f} of processor", flush=True)
    rows = [
        [
            name,
            statistics.median(wall[name]),
            statistics.median(r / o for r, o in zip(wall[RIVAL], wall[name], strict=True)),
            statistics.median(r / o for r, o in zip(processor[RIVAL], processor[name], strict=True)),
            max(abs(r - o) for r, o in zip(losses[RIVAL], losses[name], strict=True)),
        ]
        for name in ways
    ]
    title = f"{recipe}, batch {batch}, {pixels} px, {threads} threads, medians of {repeats}"
    columns = ["way", "s", "ratio", "ratio, processor", "losses apart"]
    print_table(title, columns, rows)
    if out is not None:
        write_json(out, {"title": title, "wall": wall, "processor": processor, "losses": losses})


def session_of(config: PretrainConfig, arithmetic: dict[str, Any], seed: int = 0) -> Session:
    """The recipe with other arithmetic, as the loop opens it; there is no dataset."""
    config = config.model_copy(update={"arithmetic": config.arithmetic.model_copy(update=arithmetic)})
    me = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    core = build_model(config, num_classes=2, seed=seed)
    model = as_called(core, config, me)
    plan: Any = SimpleNamespace(config=config)
    rest: Any = {"watch": None, "replacements": None, "monitored": None, "start_step": 0}
    return Session(plan=plan, me=me, core=core, model=model, optimizer=make_optimizer(core, config), **rest)


def one_step(session: Session, views: tuple[torch.Tensor, ...]) -> float:
    """A whole step on `views`, (B, 3, H, W) normalised; the loss before it."""
    arithmetic = session.plan.config.arithmetic
    layout = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
    ready = tuple(view.contiguous(memory_format=layout) for view in views)
    set_rates(session.optimizer, session.plan.config, 0)
    session.optimizer.zero_grad()
    loss, _ = accumulate_gradients(session, ready, torch.zeros(len(views[0]), dtype=torch.int64))
    session.optimizer.step()
    return float(loss)


if __name__ == "__main__":
    typer.run(main)

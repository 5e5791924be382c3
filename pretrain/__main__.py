"""Pre-train a backbone: `python -m pretrain configs/pretrain/simsiam_r50_100e.yaml`.

One process a GPU: `--procs 8` starts them here, `torchrun --nnodes … -m pretrain CONFIG` on many nodes. The result is
FOLDER/backbone.safetensors and card.yaml; called again, the command goes on where it was, or finds that all is done.
"""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from zoo.command import guarded
from zoo.config import load
from zoo.errors import ConfigError
from zoo.recipe import PretrainConfig

logger = logging.getLogger("pretrain")


def main(
    config: Annotated[Path, typer.Argument(help="A file of configs/pretrain/.")],
    seed: Annotated[int, typer.Option(help="Decides initialisation, order of samples and views.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Default: ZOO_RUNS/pretrain/NAME-seedN-KEY.")] = None,
    procs: Annotated[int, typer.Option(help="Processes to start on this machine, one a GPU.", min=1)] = 1,
    workers: Annotated[
        int | None,
        typer.Option(help="Loader processes beside each. Default: its share of the cores, at most 4.", min=0),
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value.")] = None,
) -> None:
    """Pre-train the backbone that CONFIG describes."""
    code = run(config, seed=seed, out=out, procs=procs, workers=workers, overrides=override or [])
    if code:
        raise typer.Exit(code)


def run(path: Path, *, seed: int, out: Path | None, procs: int, workers: int | None, overrides: list[str]) -> int:
    """The command after parsing; the exit code."""
    from pretrain.preflight import check, finished

    config = load(path, PretrainConfig, overrides=overrides)
    joined = "WORLD_SIZE" in os.environ
    if joined and procs > 1:
        raise ConfigError(f"--procs: expected 1 under torchrun, which has started the processes; found {procs}")
    nodes = int(os.environ.get("ZOO_NODES", 1))  # a Slurm job's
    processes = int(os.environ.get("WORLD_SIZE", procs * nodes))
    if workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", procs))
        workers = max(1, min(4, len(os.sched_getaffinity(0)) // here))
    plan = check(config, seed=seed, overrides=overrides, out=out, workers=workers, processes=processes)
    if not joined:
        card = finished(plan)
        if card is not None:
            logger.info("%s is complete: %s", plan.title, card)
            return 0
    if procs * nodes > 1 and not joined:
        from zoo.distributed import launch

        return launch(procs, ["pretrain", *_arguments(path, seed=seed, out=plan.out, workers=workers, sets=overrides)])
    from pretrain.train import train
    from zoo.distributed import world

    with world() as me:
        logger.info(
            "%s: run %s, %d images, %d steps of batch size %d on %d process(es) (%s), lr %g; %s",
            plan.title,
            plan.key[:12],
            len(plan.train),
            plan.total_steps,
            config.batch_size,
            me.size,
            me.device,
            config.lr,
            plan.out,
        )
        logger.info("%s", config.model_dump_json())
        train(plan, me)
    return 0


def _arguments(path: Path, *, seed: int, out: Path, workers: int, sets: list[str]) -> list[str]:
    options = [f"--seed={seed}", f"--out={out}", f"--workers={workers}", *(f"--set={text}" for text in sets)]
    return [str(path), *options]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    guarded(app)

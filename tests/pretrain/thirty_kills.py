"""Does a training that is killed 30 times end as one that never was? `python -m tests.pretrain.thirty_kills`

A tiny run of 160 steps goes on in a forked process, each time with another number of loader workers, and gets SIGKILL:
20 times at a random moment, 10 times while a state is written (half of its bytes on the disk; all of them, not renamed;
renamed, older states not yet removed). Weights, card, log and last state must be those of an uninterrupted run. Not a
part of the test suite: it takes minutes. Arguments: how many kills, and a seed for the moments.
"""

import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
import yaml

import pretrain.checkpoint as checkpoint
import zoo.files
import zoo.state as state
from pretrain.checkpoint import latest_state
from pretrain.preflight import Plan, check
from pretrain.progress import LOG_NAME, TIMES
from pretrain.train import train
from tests.pretrain.conftest import RECIPE, draw_images, tuples
from zoo import datasets
from zoo.checkpoint import CARD_NAME, WEIGHTS_NAME
from zoo.config import validate
from zoo.distributed import World
from zoo.recipe import PretrainConfig

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
EPOCHS = 16  # of ten steps
FORK = multiprocessing.get_context("fork")
STAGES = ("half written", "not renamed", "not tidied up")


def planned(out: Path, workers: int) -> Plan:
    save = {"every_steps": 5, "keep_last": 2, "keep_every_steps": None}
    recipe = {**RECIPE, "epochs": EPOCHS, "batch_size": 4, "save": save}
    recipe["collapse"] = {**RECIPE["collapse"], "below": 0.9}  # a batch of four does not fall lower
    config = validate(tuples(recipe), PretrainConfig, where="recipe")
    return check(config, seed=0, overrides=(), out=out, workers=workers, processes=1)


def run(out: Path, workers: int, stage: str | None, after_saves: int) -> None:
    """The whole run, or what is left of it; with a stage, killed there in the save after so many."""
    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(1)
    if stage is not None:
        kill_in_a_save(stage, after_saves)
    train(planned(out, workers), ALONE)


def kill_in_a_save(stage: str, after_saves: int) -> None:
    """Make this process kill itself at `stage` of a later save."""
    write, left = state.write_state, [after_saves]

    @contextmanager
    def torn(path: Path) -> Iterator[IO[bytes]]:
        with zoo.files.atomic_file(path) as stream:
            yield Torn(stream) if stage == "half written" else stream  # type: ignore[misc]
            if stage == "not renamed":
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(path: Path, content: Any) -> None:
        if left[0] == 0:
            state.atomic_file = torn
        left[0] -= 1
        write(path, content)

    checkpoint.write_state = counted


class Torn:
    """A stream that writes half, and no more after that."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def write(self, data: memoryview) -> None:
        self.stream.write(data[: len(data) // 2])
        self.stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def outcome(out: Path) -> dict[str, Any]:
    """What must be equal."""
    lines = [json.loads(line) for line in (out / LOG_NAME).read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    last = plain(state.read_state(max(out.glob("state-*.pt"))))
    kept = sorted(path.name for path in out.glob("state-*.pt"))
    files = {path.name: path.read_bytes() for path in (out / WEIGHTS_NAME, out / CARD_NAME)}
    return {"log": log, "states": kept, "last state": last, **files}


def plain(value: Any) -> Any:
    """Tensors as their bytes. The file's own bytes also tell which equal values were one object."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def main(kills: int = 30, seed: int = 0) -> int:
    warnings.filterwarnings("ignore", "This DataLoader will create 3 worker processes")  # on two cores
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    for label in (0, 1):
        draw_images(folder / "data" / "train" / f"class{label}", 21 + label, label)
        draw_images(folder / "data" / "val" / f"class{label}", 4, 10 + label)
    use(folder)
    whole, parts = folder / "whole", folder / "parts"
    begun = time.monotonic()
    run(whole, 0, None, 0)
    seconds = time.monotonic() - begun
    total = planned(whole, 0).total_steps
    print(f"uninterrupted: {total} steps, {seconds:.1f} s", flush=True)
    kinds: list[str | None] = [None] * (kills - kills // 3) + [STAGES[n % 3] for n in range(kills // 3)]
    rng.shuffle(kinds)
    done = 0
    for number, stage in enumerate(kinds, start=1):
        workers = rng.randrange(4)
        process = FORK.Process(target=run, args=(parts, workers, stage, rng.randrange(2)))
        process.start()
        if stage is None:
            wait_for_a_state_after(parts, done if rng.random() < 0.7 else -1)
            time.sleep(rng.uniform(0, 4 * seconds / total))
            process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            print(f"kill {number}: the run ended with {process.exitcode} before it")
            return 1
        found = latest_state(parts, planned(parts, 0).identity)
        done = found.step if found else 0
        print(f"kill {number}: {stage or 'anywhere'}, {workers} workers; state of step {done} of {total}", flush=True)
    last = FORK.Process(target=run, args=(parts, rng.randrange(4), None, 0))
    last.start()
    last.join()
    first, second = outcome(whole), outcome(parts)
    differing = [name for name in first if first[name] != second[name]]
    print(f"{kills} kills; differing: {differing or 'nothing'}")
    return 1 if differing or last.exitcode else 0


def wait_for_a_state_after(out: Path, step: int) -> None:
    """Until there is a state beyond `step`; with -1 not at all: the kill may come while the run starts."""
    while step >= 0 and not any(int(path.stem[6:]) > step for path in out.glob("state-*.pt")):
        time.sleep(0.005)


def use(folder: Path) -> None:
    """Make the data set `tiny` of `folder` known to this process and those forked from it."""
    splits = {split: {"num_images": None, "layouts": [{"class_folders": split}]} for split in ("train", "val")}
    dataset = {"name": "tiny", "title": "tiny", "root": None, "num_classes": 2, "substitute_for": "imagenet"}
    (folder / "configs" / "datasets").mkdir(parents=True)
    (folder / "configs" / "datasets" / "tiny.yaml").write_text(yaml.safe_dump({**dataset, "splits": splits}))
    (folder / "data.yaml").write_text(f"tiny: {folder / 'data'}\n")
    os.environ.update(ZOO_DATA=str(folder / "data.yaml"), ZOO_CACHE=str(folder / "cache"), ZOO_DEVICE="cpu")
    datasets.CONFIGS = folder / "configs"


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

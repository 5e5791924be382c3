"""python -m perf.planning: how long a large suite takes to plan, to estimate, and to tell where it stands.

Draws --checkpoints small cards, --benchmarks variants of mini_knn, and the same number of files as records for half of
the cells; the embedded world's ImageNet must be there (python -m mini). In this process: importing comes on top.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from perf.measure import print_table, write_json
from zoo import benchmark
from zoo.checkpoint import WEIGHTS_NAME, CheckpointCard, write_card
from zoo.config import dump_yaml, read_yaml
from zoo.files import CONFIGS, digest, sha256_file
from zoo.transforms import IMAGENET_PIXELS


def main(
    checkpoints: Annotated[int, typer.Option(min=1)] = 1000,
    benchmarks: Annotated[int, typer.Option(min=1)] = 20,
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print the seconds of each step, the first time and with a warm hash ledger."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ |= {"ZOO_RUNS": str(folder / "runs"), "ZOO_CACHE": str(folder / "cache")}
        suite = _draw(folder, checkpoints, benchmarks)
        seconds = _measure(suite)
    rows = [[name, *values] for name, values in seconds.items()]
    print_table(f"{checkpoints} checkpoints x {benchmarks} benchmarks", ("step", "first, s", "again, s"), rows)
    if out is not None:
        write_json(out, seconds)


def _draw(folder: Path, checkpoints: int, benchmarks: int) -> Path:
    """The suite file; configs, cards, weights of a few bytes under `folder`."""
    (folder / "configs" / "benchmarks").mkdir(parents=True)
    names = [f"variant_{number:03d}" for number in range(benchmarks)]
    template: dict[str, Any] = read_yaml(CONFIGS / "benchmarks" / "mini_knn.yaml")
    for number, name in enumerate(names):
        settings = template["settings"] | {"temperature": 0.01 + number / 1000}
        (folder / "configs" / "benchmarks" / f"{name}.yaml").write_text(dump_yaml(template | {"settings": settings}))
    benchmark.CONFIGS = folder / "configs"
    for number in range(checkpoints):
        place = folder / "cards" / f"{number:05d}"
        place.mkdir(parents=True)
        (place / WEIGHTS_NAME).write_text(str(number))
        write_card(
            place,
            CheckpointCard(
                name=f"checkpoint {number}",
                family="drawn",
                arch="resnet18",
                pixels=IMAGENET_PIXELS,
                weights=WEIGHTS_NAME,
                weights_sha256=sha256_file(place / WEIGHTS_NAME),
                tensors_sha256=digest(number),
                pretrain_seed=None,
                epochs=None,
                source_format="canonical",
                licence=None,
                lineage=(),
                url=None,
            ),
        )
    path = folder / "suite.yaml"
    entries = [{"card": str(folder / "cards" / "*")}]
    path.write_text(dump_yaml({"name": "large", "checkpoints": entries, "benchmarks": names, "seeds": [0]}))
    return path


def _measure(suite: Path) -> dict[str, tuple[float, float]]:
    """Step → seconds (first time, again)."""
    from evaluate.estimates import estimate
    from evaluate.status import report, standing
    from evaluate.suite import make_plan

    plan = make_plan(suite)
    for folder in ("records", "failed", "logs"):
        (plan.folder / folder).mkdir(parents=True)
    for number, planned in enumerate(plan.cells()):
        assert planned.cell is not None
        if number % 2:
            (plan.records / f"{planned.cell.id}.json").write_text("{}")
        elif number % 1000 == 0:
            note = {"task": planned.benchmark, "exit_code": 1, "reason": "drawn"}
            (plan.folder / "failed" / f"{planned.cell.id}.json").write_text(json.dumps(note))
    steps: dict[str, Callable[[], object]] = {
        "plan and page": lambda: make_plan(suite).page(),
        "plan with estimates": lambda: list(estimate(make_plan(suite)).lines()),
        "status": lambda: report(standing(make_plan(suite))),
    }
    found: dict[str, tuple[float, float]] = {}
    for name, step in steps.items():
        if name == "plan and page":  # the ledger of a suite seen for the first time is empty
            for entry in (Path(os.environ["ZOO_CACHE"]) / "ledger").rglob("*.json"):
                entry.unlink()
        found[name] = (_seconds(step), _seconds(step))
    return found


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
